/**
 * Which request goes where: the server's own addresses, and those of a database.
 */
import { randomUUID } from "node:crypto";

import { authorize } from "./auth.mjs";
import { answerChanges, sequence } from "./changes.mjs";
import { answerAttachment, answerDocument, postDocument } from "./documents.mjs";
import { base64Of, checkContent, checkDocId, errorRow, parseEdit, receiveInline, toJson } from "./edits.mjs";
import { badRequest, CouchError, functionClause, methodNotAllowed, notFound } from "./errors.mjs";
import { answerFind } from "./find.mjs";
import { parseRev } from "./revisions.mjs";
import { compareBytes } from "./database.mjs";
import { parseParameters, queryAllDocs, queryView, select } from "./views.mjs";

const VERSION = "3.4.0";
const VARIANT = "kz-record-call couchdb stand-in";

/** @param {{store: import("./store.mjs").Store, credentials: import("./auth.mjs").Credentials}} server */
export async function route(server, exchange) {
  exchange.user = server.credentials.identify(exchange);
  authorize(exchange, server.store);
  const [first, ...rest] = exchange.segments;
  if (first === undefined) return answerRoot(exchange);
  if (first.startsWith("_") && Object.hasOwn(SERVER, first) && !server.store.has(first))
    return SERVER[first](exchange, server, rest);
  return answerDatabase(exchange, server.store, first, rest);
}

function answerRoot(exchange) {
  allow(exchange, "GET,HEAD");
  exchange.send(200, {
    couchdb: "Welcome",
    version: VERSION,
    git_sha: "stand-in",
    uuid: "00000000000000000000000000000000",
    features: [],
    // As CouchDB: clients may trust a server of this vendor to compare digests.
    vendor: { name: "The Apache Software Foundation", variant: VARIANT },
  });
}

function allow(exchange, methods) {
  if (methods.split(",").includes(exchange.method)) return;
  const error = methodNotAllowed(methods);
  error.headers = { Allow: methods };
  throw error;
}

// --- the server -------------------------------------------------------------------------------------------------------

const SERVER = {
  _up: (exchange) => exchange.send(200, { status: "ok", seeds: {} }),

  _session(exchange, { credentials }) {
    if (exchange.method !== "GET") throw new CouchError(501, "not_implemented", "the stand-in knows no cookies");
    const info = { authentication_handlers: ["default"] };
    if (exchange.user !== null) info.authenticated = "default";
    const roles = exchange.user === credentials.user ? ["_admin"] : [];
    exchange.send(200, { ok: true, userCtx: { name: exchange.user, roles }, info });
  },

  _uuids(exchange) {
    const count = exchange.number("count", 1);
    exchange.send(200, { uuids: Array.from({ length: count }, () => randomUUID().replaceAll("-", "")) });
  },

  _all_dbs(exchange, { store }) {
    allow(exchange, "GET,HEAD");
    const names = store.names().map((name) => ({ id: name, key: name }));
    const { rows } = select(names, parseParameters(exchange.query), { compareKeys: compareBytes, rangeCheck: false });
    exchange.send(
      200,
      rows.map(({ key }) => key),
    );
  },

  async _dbs_info(exchange, { store }) {
    let names = store.names();
    if (exchange.method === "POST") {
      exchange.requireJson();
      ({ keys: names } = await exchange.json());
      if (!Array.isArray(names)) throw badRequest("`keys` member must exist.");
    }
    exchange.send(
      200,
      names.map((key) => (store.has(key) ? { key, info: infoOf(store.get(key)) } : { key, error: "not_found" })),
    );
  },

  _active_tasks: (exchange) => exchange.send(200, []),

  _membership: (exchange) =>
    exchange.send(200, { all_nodes: ["standin@127.0.0.1"], cluster_nodes: ["standin@127.0.0.1"] }),
};

// --- one database -----------------------------------------------------------------------------------------------------

function infoOf(database) {
  const size = database.logLength;
  return {
    instance_start_time: database.startTime,
    db_name: database.name,
    purge_seq: sequence(0),
    update_seq: sequence(database.seq),
    sizes: { file: size, external: size, active: size },
    props: {},
    doc_del_count: database.counts.deleted,
    doc_count: database.counts.living,
    disk_format_version: 8,
    compact_running: false,
    cluster: { q: 1, n: 1, w: 1, r: 1 },
  };
}

async function answerDatabase(exchange, store, name, rest) {
  const { method } = exchange;
  if (rest.length === 0 && method === "PUT") {
    store.create(name);
    return exchange.send(201, { ok: true }, { Location: exchange.location(name) });
  }
  if (rest.length === 0 && method === "DELETE" && exchange.query.has("rev")) {
    throw badRequest(
      "You tried to DELETE a database with a ?=rev parameter. Did you mean to DELETE a document instead?",
    );
  }
  const database = store.get(name); // 404 here, before anything of a body is read
  if (rest.length === 0) {
    allow(exchange, "DELETE,GET,HEAD,POST");
    if (method === "DELETE") {
      store.delete(name);
      return exchange.send(200, { ok: true });
    }
    return method === "POST" ? postDocument(exchange, database) : exchange.send(200, infoOf(database));
  }
  return answerWithin(exchange, database, rest);
}

async function answerWithin(exchange, database, [first, second, ...rest]) {
  if (/^_(design|local)\/./.test(first)) return redirect(exchange, database, first);
  if (first === "_design" || first === "_local") {
    if (second === undefined || second === "") throw badRequest(`Invalid ${first} document id.`);
    const id = `${first}/${second}`;
    if (first === "_design" && rest[0] === "_view") return answerView(exchange, database, id, rest.slice(1));
    if (first === "_design" && rest[0]?.startsWith("_")) throw notFound();
    return rest.length === 0
      ? answerDocument(exchange, database, id)
      : answerAttachment(exchange, database, id, rest.join("/"));
  }
  if (Object.hasOwn(DATABASE, first))
    return DATABASE[first](exchange, database, second === undefined ? [] : [second, ...rest]);
  if (second === undefined) {
    if (first.startsWith("_") && exchange.isRead) throw notFound();
    checkDocId(first);
    return answerDocument(exchange, database, first);
  }
  return answerAttachment(exchange, database, first, [second, ...rest].join("/"));
}

/** `_design%2Fname` is answered with the address that has a bare slash. */
function redirect(exchange, database, first) {
  const name = first.slice(first.indexOf("/") + 1);
  const kind = first.slice(0, first.indexOf("/"));
  const tail = exchange.segments.slice(2).map(encodeURIComponent);
  const path = [encodeURIComponent(database.name), kind, encodeURIComponent(name), ...tail].join("/");
  const query = exchange.query.toString();
  exchange.response.writeHead(301, { Location: `/${path}${query === "" ? "" : `?${query}`}`, "Content-Length": 0 });
  exchange.response.end();
}

// --- rows -------------------------------------------------------------------------------------------------------------

async function parametersOf(exchange) {
  if (exchange.method !== "POST") return parseParameters(exchange.query);
  exchange.requireJson();
  return parseParameters(exchange.query, await exchange.json());
}

function sendRows(exchange, { rows, ...head }) {
  const opening = Object.entries(head).map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)},`);
  exchange.sendRows(
    `{${opening.join("")}"rows":[\r\n`,
    rows.map((row) => JSON.stringify(row)),
    "\r\n]}\n",
  );
}

/** Many questions in one request; `answer` takes the parameters of each. */
async function answerQueries(exchange, answer) {
  allow(exchange, "POST");
  exchange.requireJson();
  const { queries } = await exchange.json();
  if (!Array.isArray(queries)) throw badRequest("POST body must include `queries` parameter.");
  exchange.send(200, { results: queries.map((query) => answer(parseParameters(exchange.query, query))) });
}

async function answerView(exchange, database, designId, [viewName, ...rest]) {
  if (rest[0] === "queries")
    return answerQueries(exchange, (parameters) => queryView(database, designId, viewName, parameters));
  allow(exchange, "GET,HEAD,POST");
  return sendRows(exchange, queryView(database, designId, viewName, await parametersOf(exchange)));
}

async function answerAllDocs(exchange, database, rest, options = {}) {
  if (rest[0] === "queries")
    return answerQueries(exchange, (parameters) => queryAllDocs(database, parameters, options));
  allow(exchange, "GET,HEAD,POST");
  return sendRows(exchange, queryAllDocs(database, await parametersOf(exchange), options));
}

// --- many documents ---------------------------------------------------------------------------------------------------

async function answerBulkDocs(exchange, database) {
  allow(exchange, "POST");
  exchange.requireJson();
  const body = await exchange.json();
  if (body?.docs === undefined) throw badRequest("POST body must include `docs` parameter.");
  if (!Array.isArray(body.docs)) throw badRequest("`docs` parameter must be an array.");
  const edits = body.docs.map(parseEdit);
  for (const edit of edits) edit.id ??= randomUUID().replaceAll("-", "");
  if (body.all_or_nothing === true && edits.length > 0) {
    const refusal = { error: "not_implemented", reason: "all_or_nothing is not supported" };
    return exchange.send(
      417,
      edits.map(({ id }) => ({ id, rev: "0-", ...refusal })),
    );
  }
  const received = await receiveInline(database, edits);
  const write = (edit, act) => {
    try {
      checkContent(edit);
      return act(edit);
    } catch (error) {
      return errorRow(edit.id, error);
    }
  };
  try {
    if (body.new_edits === false) {
      for (const edit of edits) if (edit.revs.length === 0) edit.revs = ["0-"];
      const rows = edits.map((edit) => write(edit, () => database.replicate(edit)));
      return exchange.send(
        201,
        rows.filter((row) => row !== undefined),
      );
    }
    edits.filter(({ id }) => !id.startsWith("_local/")).forEach((edit) => database.checkStubs(edit));
  } catch (error) {
    await database.attachments.discard(received);
    throw error;
  }
  const rows = edits.map((edit) =>
    write(edit, () => {
      const local = edit.id.startsWith("_local/");
      return { ok: true, id: edit.id, rev: local ? database.writeLocal(edit.id, edit) : database.write(edit) };
    }),
  );
  return exchange.send(201, rows);
}

async function answerBulkGet(exchange, database) {
  allow(exchange, "POST");
  exchange.requireJson();
  const { docs } = await exchange.json();
  if (!Array.isArray(docs)) throw badRequest("Missing JSON list of 'docs'.");
  const options = { revs: exchange.flag("revs") };
  const failed = (id, rev) => ({ error: { rev: rev ?? "undefined", reason: "missing", id, error: "not_found" } });
  const results = [];
  for (const { id, rev } of docs) {
    const tree = database.documents.get(id);
    const wanted = rev === undefined ? (tree?.leaves().map((leaf) => leaf.rev) ?? []) : [parseRev(rev)];
    const found = [];
    for (const name of wanted) {
      const revision = tree?.get(name);
      if (revision && exchange.flag("attachments")) options.attachments = await base64Of(database, revision);
      found.push(revision ? { ok: toJson(database, tree, revision, options) } : failed(id, name));
    }
    results.push({ id, docs: found.length > 0 ? found : [failed(id, rev)] });
  }
  return exchange.send(200, { results });
}

async function answerRevsDiff(exchange, database) {
  allow(exchange, "POST");
  exchange.requireJson();
  const answer = {};
  for (const [id, revs] of Object.entries(await exchange.json())) {
    const tree = database.documents.get(id);
    const missing = revs.filter((rev) => !tree?.get(parseRev(rev)));
    if (missing.length > 0) answer[id] = { missing };
  }
  return exchange.send(200, answer);
}

async function answerPurge(exchange, database) {
  allow(exchange, "POST");
  exchange.requireJson();
  const purged = {};
  for (const [id, revs] of Object.entries(await exchange.json())) purged[id] = database.purge(id, revs.map(parseRev));
  return exchange.send(201, { purge_seq: null, purged });
}

// --- settings and chores ----------------------------------------------------------------------------------------------

async function answerSecurity(exchange, database) {
  allow(exchange, "GET,HEAD,PUT");
  if (exchange.isRead) return exchange.send(200, database.security);
  const value = await exchange.json();
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw badRequest("Request body must be a JSON object");
  database.set("security", value);
  return exchange.send(200, { ok: true });
}

async function answerRevsLimit(exchange, database) {
  allow(exchange, "GET,HEAD,PUT");
  if (exchange.isRead) return exchange.send(200, database.revsLimit);
  const value = await exchange.json();
  if (!Number.isInteger(value) || value < 1) throw functionClause();
  database.set("revsLimit", value);
  return exchange.send(200, { ok: true });
}

/** What CouchDB does in the background and this server need not do at all. */
function chore(status, value, { typed = true } = {}) {
  return async (exchange) => {
    allow(exchange, "POST");
    if (typed) exchange.requireJson();
    await exchange.body();
    return exchange.send(status, value);
  };
}

function answerLocalDocs(exchange, database) {
  return parametersOf(exchange).then(({ keys, include_docs: includeDocs }) => {
    const ids = keys ?? [...database.locals.keys()].sort(compareBytes);
    const rows = ids.map((id) => {
      const found = database.locals.get(id);
      if (!found) return { key: id, error: "not_found" };
      const row = { id, key: id, value: { rev: found.rev } };
      return includeDocs ? { ...row, doc: { _id: id, _rev: found.rev, ...found.body } } : row;
    });
    return sendRows(exchange, { total_rows: null, offset: null, rows });
  });
}

const DATABASE = {
  _all_docs: answerAllDocs,
  _design_docs: (exchange, database, rest) => answerAllDocs(exchange, database, rest, { prefix: "_design/" }),
  _local_docs: answerLocalDocs,
  _bulk_docs: answerBulkDocs,
  _bulk_get: answerBulkGet,
  _changes(exchange, database) {
    allow(exchange, "GET,HEAD,POST");
    return answerChanges(exchange, database);
  },
  _find: (exchange, database) => answerFind(exchange, database, ["_find"]),
  _explain: (exchange, database) => answerFind(exchange, database, ["_explain"]),
  _index: (exchange, database, rest) => answerFind(exchange, database, ["_index", ...rest]),
  _revs_diff: answerRevsDiff,
  _purge: answerPurge,
  _security: answerSecurity,
  _revs_limit: answerRevsLimit,
  _ensure_full_commit: chore(201, { ok: true, instance_start_time: "0" }),
  _compact: chore(202, { ok: true }),
  _view_cleanup: chore(202, { ok: true }, { typed: false }),
  _temp_view() {
    throw new CouchError(410, "gone", "Temporary views are not supported in CouchDB");
  },
};
