/**
 * The functions of design documents: compiled and run in a context of their own, with a limit of time.
 *
 * Documents go in and rows come out as JSON text, so nothing of this process is within a function's reach by accident. (It is
 * no wall against malice: `vm` is not one.)
 */
import vm from "node:vm";

import { CouchError } from "./errors.mjs";

const LIMIT_MS = 30_000;

/** What CouchDB's query server offers to functions. */
const PRELUDE = `
  var rows = [];
  function emit(key, value) { rows.push([key === undefined ? null : key, value === undefined ? null : value]); }
  function sum(values) { var total = 0; for (var i = 0; i < values.length; i++) total += values[i]; return total; }
  function isArray(value) { return Array.isArray(value); }
  function toJSON(value) { return JSON.stringify(value); }
  function log() {}
  function run(map, texts) {
    var all = JSON.parse(texts).map(function (doc) {
      rows = [];
      try { map(doc); } catch (error) { rows = []; }
      return rows;
    });
    return JSON.stringify(all);
  }
`;

function evaluate(source, kind, view) {
  const context = vm.createContext({});
  vm.runInContext(PRELUDE, context);
  try {
    const value = vm.runInContext(`(${source})`, context, { timeout: LIMIT_MS });
    if (typeof value !== "function") throw new SyntaxError("not a function");
    context.subject = value;
  } catch (error) {
    const reason = `Compilation of the ${kind} function in the '${view}' view failed: ${error.name}: ${error.message} (${source})`;
    throw new CouchError(400, "compilation_error", reason);
  }
  return context;
}

/** @returns {(documents: object[]) => [any, any][][]} for each document the rows it emits */
export function compileMap(source, view = "") {
  const context = evaluate(source, "map", view);
  return (documents) => {
    context.texts = JSON.stringify(documents);
    return JSON.parse(vm.runInContext("run(subject, texts)", context, { timeout: LIMIT_MS }));
  };
}

/** @returns {(keys: [any, string][], values: any[]) => any} */
export function compileReduce(source, view = "") {
  const context = evaluate(source, "reduce", view);
  return (keys, values) => {
    context.input = JSON.stringify([keys, values]);
    const text = vm.runInContext(
      "(function () { var parsed = JSON.parse(input); return JSON.stringify(subject(parsed[0], parsed[1], false)); })()",
      context,
      { timeout: LIMIT_MS },
    );
    return text === undefined ? null : JSON.parse(text);
  };
}

/** Refuses a design document as CouchDB does when it is stored. */
export function checkDesign({ views, language = "javascript" }) {
  if (views === undefined || language !== "javascript") return;
  if (views === null || typeof views !== "object" || Array.isArray(views)) {
    throw new CouchError(400, "invalid_design_doc", "`views` field must have object type");
  }
  for (const [name, view] of Object.entries(views)) {
    if (typeof view?.map === "string") compileMap(view.map, name);
    if (typeof view?.reduce === "string" && !view.reduce.startsWith("_")) compileReduce(view.reduce, name);
  }
}
