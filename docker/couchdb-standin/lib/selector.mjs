/**
 * Selectors of `_find` and of the changes feed: JSON to a function over documents.
 */
import { collate } from "./collate.mjs";
import { CouchError } from "./errors.mjs";

const invalidOperator = (name) => new CouchError(400, "invalid_operator", `Invalid operator: ${name}`);

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

const typeOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : typeof value);

/** Operators on a value that exists. */
const OPERATORS = {
  $eq: (wanted) => (value) => collate(value, wanted) === 0,
  $ne: (wanted) => (value) => collate(value, wanted) !== 0,
  $lt: (wanted) => (value) => collate(value, wanted) < 0,
  $lte: (wanted) => (value) => collate(value, wanted) <= 0,
  $gt: (wanted) => (value) => collate(value, wanted) > 0,
  $gte: (wanted) => (value) => collate(value, wanted) >= 0,
  $in: (list) => (value) =>
    list.some(
      (wanted) =>
        collate(value, wanted) === 0 || (Array.isArray(value) && value.some((item) => collate(item, wanted) === 0)),
    ),
  $nin: (list) => (value) => !list.some((wanted) => collate(value, wanted) === 0),
  $exists: (wanted) => () => wanted,
  $type: (wanted) => (value) => typeOf(value) === wanted,
  $size: (wanted) => (value) => Array.isArray(value) && value.length === wanted,
  $mod:
    ([divisor, remainder]) =>
    (value) =>
      Number.isInteger(value) && value % divisor === remainder,
  $regex: (pattern) => {
    const expression = new RegExp(pattern);
    return (value) => typeof value === "string" && expression.test(value);
  },
  $beginsWith: (prefix) => (value) => typeof value === "string" && value.startsWith(prefix),
  $all: (list) => (value) =>
    Array.isArray(value) && list.every((wanted) => value.some((item) => collate(item, wanted) === 0)),
  $elemMatch: (selector) => {
    const matches = valueMatcher(selector);
    return (value) => Array.isArray(value) && value.some(matches);
  },
  $allMatch: (selector) => {
    const matches = valueMatcher(selector);
    return (value) => Array.isArray(value) && value.length > 0 && value.every(matches);
  },
};

/** What each operator becomes under `$not`. A field that is missing matches neither. */
const NEGATIONS = {
  $eq: "$ne",
  $ne: "$eq",
  $lt: "$gte",
  $gte: "$lt",
  $gt: "$lte",
  $lte: "$gt",
  $in: "$nin",
  $nin: "$in",
};

/**
 * @param {object} selector
 * @returns {(document: object) => boolean}
 */
export function matcher(selector) {
  if (!isObject(selector)) {
    throw new CouchError(
      400,
      "invalid_selector_json",
      `Selector must be a JSON object, not: ${JSON.stringify(selector)}`,
    );
  }
  return combine(selector, (document) => document, false);
}

/** Inside `$elemMatch` the conditions may be about the element itself. */
function valueMatcher(selector) {
  return combine(selector, (value) => value, false);
}

/** `get` leads from the document to what this part of the selector is about; undefined when it is missing. */
function combine(selector, get, negated) {
  if (!isObject(selector)) return leaf("$eq", selector, get, negated);
  const parts = Object.entries(selector).map(([key, argument]) => {
    switch (key) {
      case "$and":
      case "$or":
      case "$nor": {
        const all = (key === "$and") !== negated && key !== "$nor";
        const turned = key === "$nor" ? !negated : negated;
        const members = argument.map((member) => combine(member, get, turned));
        const every = key === "$nor" ? !negated : all;
        return every
          ? (document) => members.every((member) => member(document))
          : (document) => members.some((member) => member(document));
      }
      case "$not":
        return combine(argument, get, !negated);
      default:
        if (key.startsWith("$")) return leaf(key, argument, get, negated);
        return combine(argument, (document) => field(get(document), key), negated);
    }
  });
  return negated
    ? (document) => parts.some((part) => part(document))
    : (document) => parts.every((part) => part(document));
}

function leaf(operator, argument, get, negated) {
  if (!Object.hasOwn(OPERATORS, operator)) throw invalidOperator(operator);
  if (operator === "$exists") {
    const wanted = argument !== negated;
    return (document) => (get(document) !== undefined) === wanted;
  }
  const turned = negated && Object.hasOwn(NEGATIONS, operator);
  const test = OPERATORS[turned ? NEGATIONS[operator] : operator](argument);
  const invert = negated && !turned;
  return (document) => {
    const value = get(document);
    return value !== undefined && test(value) !== invert;
  };
}

/** `a.b` is a field of a field; `a\.b` has a dot in its name. */
export function field(document, name) {
  let value = document;
  for (const part of name.split(/(?<!\\)\./)) {
    const key = part.replaceAll("\\.", ".");
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, key)) return undefined;
    value = value[key];
  }
  return value;
}

/** Names of the fields which a document must have to match. */
export function requiredFields(selector) {
  const required = new Set();
  for (const [key, argument] of Object.entries(selector)) {
    if (key === "$and") argument.forEach((member) => requiredFields(member).forEach((name) => required.add(name)));
    else if (!key.startsWith("$") && !(isObject(argument) && argument.$exists === false)) required.add(key);
  }
  return required;
}
