/**
 * Views: one sorted list of rows per map function, brought up to date when it is asked.
 *
 * `_all_docs` and its relatives use the same parameters and the same way of answering, over rows made on the spot.
 */
import { collate } from "./collate.mjs";
import { compareBytes } from "./database.mjs";
import { toJson } from "./edits.mjs";
import { badRequest, CouchError, notFound, queryParseError } from "./errors.mjs";
import { parseJson } from "./exchange.mjs";
import { compileMap, compileReduce } from "./sandbox.mjs";
import { field, matcher } from "./selector.mjs";

// --- parameters -------------------------------------------------------------------------------------------------------

const JSON_PARAMETERS = new Set(["key", "keys", "startkey", "endkey"]);
const NUMBERS = new Set(["limit", "skip", "group_level"]);
const BOOLEANS = new Set([
  ...["descending", "include_docs", "inclusive_end", "conflicts", "reduce", "group", "attachments", "update_seq"],
  ...["sorted", "stable", "att_encoding_info"],
]);
const ALIASES = {
  start_key: "startkey",
  end_key: "endkey",
  start_key_doc_id: "startkey_docid",
  end_key_doc_id: "endkey_docid",
};

/** Parameters of the query and, over them, those of a JSON body. Unknown names are ignored, as CouchDB does. */
export function parseParameters(query, body = {}) {
  const parameters = { descending: false, inclusive_end: true, skip: 0, limit: Infinity, update: "true" };
  for (const [name, text] of query) {
    const key = ALIASES[name] ?? name;
    parameters[key] = JSON_PARAMETERS.has(key) ? parseJson(text) : check(key, text);
  }
  if (body === null || typeof body !== "object" || Array.isArray(body))
    throw badRequest("Request body must be a JSON object");
  for (const [name, value] of Object.entries(body)) {
    const key = ALIASES[name] ?? name;
    parameters[key] = JSON_PARAMETERS.has(key) ? value : check(key, value);
  }
  if (parameters.keys !== undefined && !Array.isArray(parameters.keys))
    throw badRequest("`keys` member must be an array.");
  if (parameters.key !== undefined) parameters.startkey = parameters.endkey = parameters.key;
  return parameters;
}

function check(key, value) {
  if (NUMBERS.has(key)) {
    if (!/^-?\d+$/.test(String(value))) throw queryParseError(`Invalid value for integer: "${value}"`);
    if (Number(value) < 0) throw queryParseError(`Invalid value for positive integer: "${value}"`);
    return Number(value);
  }
  if (BOOLEANS.has(key)) {
    if (!["true", "false"].includes(String(value))) throw queryParseError(`Invalid boolean parameter: "${value}"`);
    return String(value) === "true";
  }
  if (key === "update" && !["true", "false", "lazy"].includes(String(value)))
    throw queryParseError("Invalid value for `update`.");
  if (key === "stale") return value;
  return key === "update" ? String(value) : value;
}

// --- the range --------------------------------------------------------------------------------------------------------

/**
 * Rows sorted by key and id, narrowed to what was asked.
 * @returns {{rows: object[], offset: number}}
 */
export function select(sorted, parameters, { compareKeys = collate, rangeCheck = true } = {}) {
  const { descending, startkey, endkey, startkey_docid, endkey_docid, inclusive_end, skip, limit, keys } = parameters;
  const span = (bounds) => sorted.slice(...spanOf(sorted, compareKeys, bounds));
  if (keys !== undefined) {
    const rows = keys.flatMap((key) => span({ low: key, high: key }));
    return { rows: (descending ? rows.reverse() : rows).slice(skip, skip + limit), offset: 0 };
  }
  const [low, lowId, high, highId] = descending
    ? [endkey, endkey_docid, startkey, startkey_docid]
    : [startkey, startkey_docid, endkey, endkey_docid];
  if (rangeCheck && low !== undefined && high !== undefined && compareKeys(low, high) > 0) {
    const remedy = `reverse your start_key and end_key or set descending=${!descending}`;
    throw queryParseError(`No rows can match your key range, ${remedy}`);
  }
  const [from, to] = spanOf(sorted, compareKeys, { low, lowId, high, highId });
  let rows = sorted.slice(from, to);
  if (!inclusive_end && endkey !== undefined) rows = rows.filter((row) => compareKeys(row.key, endkey) !== 0);
  if (descending) rows.reverse();
  const before = descending ? sorted.length - Math.max(from, to) : from;
  return { rows: rows.slice(skip, skip + limit), offset: before + Math.min(skip, rows.length) };
}

/** Where the rows between two keys begin and end; ids count among rows of the same key. */
function spanOf(sorted, compareKeys, { low, lowId, high, highId }) {
  const compare = (row, key, id) => compareKeys(row.key, key) || (id === undefined ? 0 : compareBytes(row.id, id));
  const from = low === undefined ? 0 : firstIndex(sorted, (row) => compare(row, low, lowId) >= 0);
  const to = high === undefined ? sorted.length : firstIndex(sorted, (row) => compare(row, high, highId) > 0);
  return [from, to];
}

/** The first row for which the test holds, given that it holds for all after it. */
function firstIndex(sorted, holds) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(sorted[middle])) high = middle;
    else low = middle + 1;
  }
  return low;
}

// --- the index --------------------------------------------------------------------------------------------------------

const byKey = (a, b) => collate(a.key, b.key) || compareBytes(a.id, b.id);

/** Rows of one map function over the living documents. */
class Index {
  constructor(emitRows, { designs = false } = {}) {
    this.emitRows = emitRows;
    this.designs = designs;
    this.seq = 0;
    this.rows = [];
  }

  update(database) {
    if (this.seq === database.seq) return;
    const start = firstIndex(database.changes, (change) => change.seq > this.seq);
    const changed = new Set(database.changes.slice(start).map(({ id }) => id));
    const documents = [...changed]
      .filter((id) => this.designs || !id.startsWith("_design/"))
      .map((id) => database.documents.get(id))
      .filter((tree) => tree && !tree.winner.deleted)
      .map((tree) => toJson(database, tree, tree.winner));
    const emitted = this.emitRows(documents);
    const fresh = documents.flatMap(({ _id: id }, index) => emitted[index].map(([key, value]) => ({ id, key, value })));
    fresh.sort(byKey);
    this.rows = merge(
      this.rows.filter(({ id }) => !changed.has(id)),
      fresh,
    );
    this.seq = database.seq;
  }
}

function merge(a, b) {
  if (b.length === 0) return a;
  const merged = [];
  let i = 0;
  for (const row of b) {
    while (i < a.length && byKey(a[i], row) <= 0) merged.push(a[i++]);
    merged.push(row);
  }
  while (i < a.length) merged.push(a[i++]);
  return merged;
}

/** The index of a name, made anew when its definition has changed. */
export function indexOf(database, name, definition, makeEmit) {
  let index = database.indexes.get(name);
  if (index?.definition !== definition) {
    index = new Index(makeEmit());
    index.definition = definition;
    database.indexes.set(name, index);
  }
  return index;
}

/** The rows of an index over fields (Mango): one for each document that has all its fields and matches its selector. */
function fieldsOf({ fields, partial_filter_selector: selector = {} }) {
  const names = Object.keys(fields);
  const matches = matcher(selector);
  return (documents) =>
    documents.map((document) => {
      const values = names.map((name) => field(document, name));
      return values.includes(undefined) || !matches(document) ? [] : [[values, null]];
    });
}

/** What a view's map is, in a text that changes with it, and what it emits. */
function mapOf({ map }, language, viewName) {
  if (language === "query" && typeof map?.fields === "object") return [JSON.stringify(map), () => fieldsOf(map)];
  if (language === "javascript" && typeof map === "string") return [map, () => compileMap(map, viewName)];
  throw notFound("missing_named_view");
}

// --- one view ---------------------------------------------------------------------------------------------------------

/** Answers a view as an object with its head and its rows. */
export function queryView(database, designId, viewName, parameters) {
  const design = database.documents.get(designId);
  if (!design) throw notFound("missing");
  if (design.winner.deleted) throw notFound("deleted");
  const { views = {}, language = "javascript" } = database.body(design.winner);
  const view = Object.hasOwn(views, viewName) ? views[viewName] : undefined;
  const [definition, makeEmit] = mapOf(view ?? {}, language, viewName);

  const grouped = parameters.group === true || parameters.group_level > 0;
  const reducing = view.reduce !== undefined && parameters.reduce !== false;
  if (parameters.reduce === true && view.reduce === undefined)
    throw queryParseError("Reduce is invalid for map-only views.");
  if (grouped && !reducing) throw queryParseError("Invalid use of grouping on a map view.");
  if (reducing && parameters.include_docs) throw queryParseError("`include_docs` is invalid for reduce");

  const index = indexOf(database, `${designId}/${viewName}`, definition, makeEmit);
  const stale = parameters.update !== "true" || parameters.stale !== undefined;
  if (!stale) index.update(database);
  const { rows, offset } = select(index.rows, reducing ? { ...parameters, skip: 0, limit: Infinity } : parameters);
  if (stale && (parameters.update === "lazy" || parameters.stale === "update_after")) {
    setImmediate(() => database.closed || index.update(database));
  }
  if (reducing) return { rows: reduceRows(rows, view.reduce, viewName, parameters) };
  return {
    total_rows: index.rows.length,
    offset,
    ...(parameters.update_seq ? { update_seq: `${index.seq}-standin` } : {}),
    rows: rows.map((row) => (parameters.include_docs ? { ...row, doc: documentOf(database, row, parameters) } : row)),
  };
}

/** `value._id` names another document to be included. */
function documentOf(database, { id, value }, { conflicts }) {
  const tree = database.documents.get(typeof value?._id === "string" ? value._id : id);
  return tree && !tree.winner.deleted ? toJson(database, tree, tree.winner, { conflicts }) : null;
}

// --- reduce -----------------------------------------------------------------------------------------------------------

function reduceRows(rows, reduce, viewName, { group, group_level: level, skip, limit }) {
  if (rows.length === 0 && !group && !level) return [];
  const keyOf = (key) => {
    if (group) return key;
    if (!level) return null;
    return Array.isArray(key) ? key.slice(0, level) : key;
  };
  const groups = [];
  for (const row of rows) {
    const key = keyOf(row.key);
    if (groups.length === 0 || collate(groups.at(-1).key, key) !== 0) groups.push({ key, rows: [] });
    groups.at(-1).rows.push(row);
  }
  const combine = reducer(reduce, viewName);
  return groups.slice(skip, skip + limit).map(({ key, rows: members }) => ({ key, value: combine(members) }));
}

function reducer(reduce, viewName) {
  const numbers = (members) =>
    members.map(({ value }) => {
      if (typeof value === "number") return value;
      throw new CouchError(500, "builtin_reduce_error", `The ${reduce} function requires that map values be numbers`);
    });
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  switch (reduce) {
    case "_count":
      return (members) => members.length;
    case "_sum":
      return (members) => sum(numbers(members));
    case "_stats":
      return (members) => {
        const values = numbers(members);
        return {
          sum: sum(values),
          count: values.length,
          min: values.reduce((low, value) => Math.min(low, value), Infinity),
          max: values.reduce((high, value) => Math.max(high, value), -Infinity),
          sumsqr: sum(values.map((value) => value * value)),
        };
      };
    default: {
      if (reduce.startsWith("_"))
        throw new CouchError(501, "not_implemented", `${reduce} is not known to the stand-in`);
      const run = compileReduce(reduce, viewName);
      return (members) =>
        run(
          members.map(({ key, id }) => [key, id]),
          members.map(({ value }) => value),
        );
    }
  }
}

// --- _all_docs --------------------------------------------------------------------------------------------------------

/** `_all_docs`, `_design_docs`, and by key whatever is asked for, deleted documents included. */
export function queryAllDocs(database, parameters, { prefix = "" } = {}) {
  const row = (tree) => {
    const { rev, deleted } = tree.winner;
    const made = { id: tree.id, key: tree.id, value: deleted ? { rev, deleted: true } : { rev } };
    if (parameters.include_docs) {
      made.doc = deleted ? null : toJson(database, tree, tree.winner, { conflicts: parameters.conflicts });
    }
    return made;
  };
  const ids = database.ids().filter((id) => id.startsWith(prefix));
  if (parameters.keys !== undefined) {
    const { skip, limit, keys } = parameters;
    const rows = keys.slice(skip, skip + limit).map((key) => {
      const tree = database.documents.get(key);
      return tree ? row(tree) : { key, error: "not_found" };
    });
    return { total_rows: ids.length, offset: null, rows };
  }
  const sorted = ids.map((id) => ({ id, key: id }));
  const compareKeys = (a, b) => (typeof a === "string" && typeof b === "string" ? compareBytes(a, b) : collate(a, b));
  const { rows, offset } = select(sorted, parameters, { compareKeys, rangeCheck: false });
  return { total_rows: ids.length, offset, rows: rows.map(({ id }) => row(database.documents.get(id))) };
}
