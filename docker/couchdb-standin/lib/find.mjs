/**
 * `_find`, `_index` and `_explain`.
 *
 * An index decides, as in CouchDB, which sorts are possible and in which order rows come. It does not make anything faster here:
 * every query looks at every document.
 */
import { createHash } from "node:crypto";

import { collate } from "./collate.mjs";
import { compareBytes } from "./database.mjs";
import { toJson } from "./edits.mjs";
import { badRequest, CouchError, methodNotAllowed, notFound } from "./errors.mjs";
import { field, matcher, requiredFields } from "./selector.mjs";

const ALL_DOCS = { ddoc: null, name: "_all_docs", type: "special", def: { fields: [{ _id: "asc" }] } };
const NO_INDEX = "No matching index found, create an index to optimize query time.";
const DEFAULT_LIMIT = 25;

const required = (name) => new CouchError(400, "missing_required_key", `Missing required key: ${name}`);

/** `["a", {"b": "desc"}]` as `[{name, direction}]`; one direction only. */
function parseSort(sort) {
  const fields = sort.map((entry) => {
    const [name, direction] = typeof entry === "string" ? [entry, "asc"] : Object.entries(entry)[0];
    return { name, direction };
  });
  if (new Set(fields.map(({ direction }) => direction)).size > 1) {
    throw new CouchError(
      400,
      "unsupported_mixed_sort",
      "Sorts currently only support a single direction for all fields.",
    );
  }
  return fields;
}

function indexesOf(database) {
  const found = [];
  for (const [id, tree] of database.documents) {
    if (!id.startsWith("_design/") || tree.winner.deleted) continue;
    const { language, views } = database.body(tree.winner);
    if (language !== "query") continue;
    for (const [name, view] of Object.entries(views ?? {})) {
      const fields = Object.entries(view.map.fields).map(([key, direction]) => ({ [key]: direction }));
      found.push({ ddoc: id, name, type: "json", partitioned: false, def: { fields } });
    }
  }
  return found.sort((a, b) => compareBytes(a.ddoc, b.ddoc));
}

const fieldsOf = (index) => index.def.fields.map((entry) => Object.keys(entry)[0]);

/** The index whose fields the selector or the sort requires and that begins with the sort's; the most specific one. */
function choose(database, selector, sort) {
  const sorted = sort.map(({ name }) => name);
  const known = new Set([...requiredFields(selector), ...sorted, "_id", "_rev"]);
  const usable = indexesOf(database).filter((index) => {
    const fields = fieldsOf(index);
    return fields.every((name) => known.has(name)) && sorted.every((name, position) => fields[position] === name);
  });
  usable.sort((a, b) => fieldsOf(b).length - fieldsOf(a).length);
  if (usable.length > 0) return usable[0];
  if (sorted.every((name) => name === "_id")) return ALL_DOCS;
  throw new CouchError(400, "no_usable_index", "No index exists for this sort, try indexing by the sort fields.");
}

function parseQuery(body) {
  const {
    selector,
    limit = DEFAULT_LIMIT,
    skip = 0,
    sort = [],
    fields = [],
    bookmark,
    use_index: useIndex = [],
  } = body;
  if (selector === undefined) throw required("selector");
  for (const value of [limit, skip]) {
    if (!Number.isInteger(value) || value < 0) {
      throw new CouchError(
        400,
        "invalid_non_neg_integer",
        `${JSON.stringify(value)} is not an integer greater than or equal to zero`,
      );
    }
  }
  return {
    selector,
    matches: matcher(selector),
    limit,
    skip,
    sort: parseSort(sort),
    fields,
    after: parseBookmark(bookmark),
    useIndex,
  };
}

// A bookmark is the place of the last row given: its keys in the index, and its id.
const bookmarkOf = ({ keys, json }) => `g1${Buffer.from(JSON.stringify([keys, json._id])).toString("base64url")}`;

function parseBookmark(bookmark) {
  if (bookmark === undefined) return null;
  try {
    const [keys, id] = JSON.parse(Buffer.from(/^g1(.+)$/.exec(bookmark)[1], "base64url").toString("utf8"));
    return { keys, json: { _id: id } };
  } catch {
    throw new CouchError(400, "invalid_bookmark", `Invalid bookmark value: ${JSON.stringify(bookmark)}`);
  }
}

function project(json, fields) {
  if (fields.length === 0 || fields === "all_fields") return json;
  const projected = {};
  for (const name of fields) {
    const value = field(json, name);
    if (value === undefined) continue;
    const parts = name.split(".");
    let target = projected;
    for (const part of parts.slice(0, -1)) target = target[part] ??= {};
    target[parts.at(-1)] = value;
  }
  return projected;
}

export function find(database, body) {
  const started = performance.now();
  const { selector, matches, limit, skip, sort, fields, after, useIndex } = parseQuery(body);
  const index = choose(database, selector, sort);
  const warnings = [];
  const [wantedDesign] = [useIndex].flat();
  if (wantedDesign !== undefined && index.ddoc?.replace("_design/", "") !== wantedDesign.replace("_design/", "")) {
    const name = wantedDesign.startsWith("_design/") ? wantedDesign : `_design/${wantedDesign}`;
    warnings.push(`${name} was not used because it does not contain a valid index for this query.`);
  }
  if (index === ALL_DOCS) warnings.push(NO_INDEX);

  const descending = sort[0]?.direction === "desc";
  const names = fieldsOf(index);
  const compare = (a, b) => (collate(a.keys, b.keys) || compareBytes(a.json._id, b.json._id)) * (descending ? -1 : 1);
  const examined = database.ids().filter((id) => !id.startsWith("_design/"));
  const rows = examined
    .map((id) => database.documents.get(id))
    .map((tree) => toJson(database, tree, tree.winner, { conflicts: body.conflicts === true }))
    .map((json) => ({ json, keys: names.map((name) => field(json, name)) }))
    .filter(({ json, keys }) => keys.every((key) => key !== undefined) && matches(json))
    .sort(compare)
    .filter((row) => after === null || compare(row, after) > 0)
    .slice(skip, skip + limit);

  const answer = {
    docs: rows.map(({ json }) => project(json, fields)),
    bookmark: rows.length === 0 ? "nil" : bookmarkOf(rows.at(-1)),
  };
  if (body.execution_stats === true) {
    answer.execution_stats = {
      total_keys_examined: examined.length,
      total_docs_examined: examined.length,
      total_quorum_docs_examined: 0,
      results_returned: rows.length,
      execution_time_ms: performance.now() - started,
    };
  }
  if (warnings.length > 0) answer.warning = warnings.join("\n");
  return answer;
}

export function explain(database, body) {
  const { selector, limit, skip, sort, fields } = parseQuery(body);
  return {
    dbname: database.name,
    index: choose(database, selector, sort),
    partitioned: false,
    selector,
    opts: {},
    limit,
    skip,
    fields,
  };
}

export function createIndex(database, body) {
  if (body.index === undefined) throw required("index");
  if (!Array.isArray(body.index.fields)) throw required("fields");
  const { type = "json", index } = body;
  if (type !== "json")
    throw new CouchError(501, "not_implemented", `indexes of type ${type} are not known to the stand-in`);
  const fields = Object.fromEntries(parseSort(index.fields).map(({ name, direction }) => [name, direction]));
  const hash = createHash("sha1").update(JSON.stringify(fields)).digest("hex");
  const name = body.name ?? hash;
  const id = body.ddoc === undefined ? `_design/${hash}` : `_design/${body.ddoc.replace(/^_design\//, "")}`;
  const tree = database.documents.get(id);
  const design =
    tree && !tree.winner.deleted ? structuredClone(database.body(tree.winner)) : { language: "query", views: {} };
  const view = {
    map: { fields, partial_filter_selector: index.partial_filter_selector ?? {} },
    reduce: "_count",
    options: { def: { fields: index.fields } },
  };
  if (JSON.stringify(design.views?.[name]) === JSON.stringify(view)) return { result: "exists", id, name };
  design.views[name] = view;
  database.write({ id, revs: tree ? [tree.winner.rev] : [], deleted: false, body: design, attachments: [] });
  return { result: "created", id, name };
}

export function listIndexes(database) {
  const indexes = [ALL_DOCS, ...indexesOf(database)];
  return { total_rows: indexes.length, indexes };
}

/** `DELETE /db/_index/_design/DDOC/json/NAME`, also without `_design`. */
export function deleteIndex(database, segments) {
  const [ddoc, type, name] = segments[0] === "_design" ? segments.slice(1) : segments;
  const id = `_design/${ddoc}`;
  const index = indexesOf(database).find((candidate) => candidate.ddoc === id && candidate.name === name);
  if (!index || type !== "json") throw notFound("missing");
  const tree = database.documents.get(id);
  const design = structuredClone(database.body(tree.winner));
  delete design.views[name];
  const deleted = Object.keys(design.views).length === 0;
  database.write({ id, revs: [tree.winner.rev], deleted, body: deleted ? {} : design, attachments: [] });
  return { ok: true };
}

export async function answerFind(exchange, database, [what, ...rest]) {
  if (what === "_index" && exchange.isRead) return exchange.send(200, listIndexes(database));
  if (what === "_index" && exchange.method === "DELETE") return exchange.send(200, deleteIndex(database, rest));
  if (exchange.method !== "POST") throw methodNotAllowed("POST");
  exchange.requireJson();
  const body = await exchange.json();
  if (body === null || typeof body !== "object") throw badRequest("Request body must be a JSON object");
  const act = { _find: find, _explain: explain, _index: createIndex }[what];
  return exchange.send(200, act(database, body));
}
