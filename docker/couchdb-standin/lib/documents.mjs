/**
 * Documents and their attachments: `/db/id` and `/db/id/name`, design and local documents included.
 */
import { randomUUID } from "node:crypto";

import { base64Of, checkAttachmentName, checkContent, checkDocId, parseEdit, receiveInline, toJson } from "./edits.mjs";
import {
  badContentType,
  badRequest,
  conflict,
  CouchError,
  methodNotAllowed,
  missingRev,
  noAttachment,
  notFound,
} from "./errors.mjs";
import { isMultipartRelated, MultipartReader, readDocument, receiveFollowing, sendDocument } from "./multipart.mjs";
import { parseJson } from "./exchange.mjs";
import { parseRev } from "./revisions.mjs";

const DEFAULT_TYPE = "application/octet-stream";

export async function answerDocument(exchange, database, id) {
  if (id.startsWith("_local/")) return answerLocal(exchange, database, id);
  switch (exchange.method) {
    case "GET":
    case "HEAD":
      return readDocumentRequest(exchange, database, id);
    case "PUT":
      return putDocument(exchange, database, id);
    case "DELETE":
      return deleteDocument(exchange, database, id);
    case "COPY":
      return copyDocument(exchange, database, id);
    default:
      throw methodNotAllowed("DELETE,GET,HEAD,POST,PUT,COPY");
  }
}

// --- reading ----------------------------------------------------------------------------------------------------------

/** The revision asked for, or the winner; deleted ones only by name. */
export function openRevision(database, id, rev = null) {
  const tree = database.documents.get(id);
  if (!tree) throw notFound();
  if (rev !== null) {
    const revision = tree.get(rev);
    if (!revision) throw notFound();
    return { tree, revision };
  }
  if (tree.winner.deleted) throw notFound("deleted");
  return { tree, revision: tree.winner };
}

function readOptions(exchange) {
  const meta = exchange.flag("meta");
  return {
    revs: exchange.flag("revs"),
    revsInfo: exchange.flag("revs_info") || meta,
    conflicts: exchange.flag("conflicts") || meta,
    deletedConflicts: exchange.flag("deleted_conflicts") || meta,
    localSeq: exchange.flag("local_seq"),
    encodingInfo: exchange.flag("att_encoding_info"),
  };
}

async function readDocumentRequest(exchange, database, id) {
  const options = readOptions(exchange);
  if (exchange.query.has("open_revs")) return sendOpenRevs(exchange, database, id, options);
  const rev = exchange.query.has("rev") && !exchange.flag("latest") ? parseRev(exchange.query.get("rev")) : null;
  const { tree, revision } = openRevision(database, id, rev);
  const etag = `"${revision.rev}"`;
  if (exchange.notModified(etag)) return undefined;
  const headers = { ETag: etag };
  if (exchange.flag("attachments") && revision.attachments.length > 0) {
    if (exchange.accepts("multipart/related")) {
      const json = toJson(database, tree, revision, { ...options, attachments: "follows", encodingInfo: true });
      return sendDocument(exchange, database, json, revision.attachments, headers);
    }
    options.attachments = await base64Of(database, revision);
  }
  return exchange.send(200, toJson(database, tree, revision, options), headers);
}

/** Leaves, or the revisions named; as JSON, or as `multipart/mixed` to clients that do not ask for JSON alone. */
async function sendOpenRevs(exchange, database, id, options) {
  const tree = database.documents.get(id);
  const wanted = exchange.query.get("open_revs");
  if (wanted === "all" && !tree) throw notFound();
  const list = wanted === "all" ? tree.leaves().map(({ rev }) => rev) : exchange.jsonParameter("open_revs");
  if (!Array.isArray(list)) throw badRequest("Invalid list of revisions");
  const named = list.map(parseRev);
  const results = [];
  for (const rev of named) {
    const revision = tree?.get(rev);
    if (!revision) {
      results.push({ missing: rev });
      continue;
    }
    const attachments = exchange.flag("attachments") ? await base64Of(database, revision) : "stub";
    results.push({ ok: toJson(database, tree, revision, { ...options, attachments }) });
  }
  if (!exchange.accepts("multipart/mixed")) return exchange.send(200, results);
  const boundary = randomUUID().replaceAll("-", "");
  const parts = results.map((result) => {
    const failed = result.ok ? "" : '; error="true"';
    return `\r\nContent-Type: application/json${failed}\r\n\r\n${JSON.stringify(result.ok ?? result)}\r\n--${boundary}`;
  });
  exchange.response.writeHead(200, { "Content-Type": `multipart/mixed; boundary="${boundary}"` });
  return exchange.response.end(`--${boundary}${parts.join("")}--`);
}

// --- writing ----------------------------------------------------------------------------------------------------------

/** The base of an edit is named by the body, the query or `If-Match`; where two are there they must agree. */
function settleBase(exchange, edit) {
  const inQuery = exchange.query.has("rev") ? parseRev(exchange.query.get("rev")) : null;
  if (edit.revs.length > 0 && inQuery !== null && inQuery !== edit.revs[0]) {
    throw badRequest("Document rev from request body and query string have different values");
  }
  const named = exchange.revision(parseRev);
  if (edit.revs.length === 0) edit.revs = named === null ? [] : [named];
  else if (named !== null && named !== edit.revs[0]) throw badRequest("Document rev and etag have different values");
}

function sendWritten(exchange, database, edit, rev) {
  const headers = {};
  if (exchange.method !== "POST") headers.ETag = `"${rev}"`;
  if (exchange.method !== "DELETE") headers.Location = exchange.location(database.name, edit.id);
  exchange.send(edit.deleted ? 200 : 201, { ok: true, id: edit.id, rev }, headers);
}

async function putDocument(exchange, database, id) {
  checkDocId(id);
  const contentType = exchange.header("content-type");
  if (!isMultipartRelated(contentType)) {
    return store(exchange, database, id, await exchange.json(), (edit) => receiveInline(database, [edit]));
  }
  const reader = new MultipartReader(exchange.stream(), contentType);
  try {
    const json = await readDocument(reader);
    return await store(exchange, database, id, json, (edit) => receiveFollowing(database, edit, reader));
  } finally {
    await reader.release();
  }
}

/** The way of every document: checked, its attachments received, written at one go; or nothing of it stays. */
async function store(exchange, database, id, json, receive) {
  const edit = parseEdit(json);
  edit.id = id; // the address decides, whatever the body says
  settleBase(exchange, edit);
  checkContent(edit);
  const replicated = exchange.query.get("new_edits") === "false";
  if (replicated && edit.revs.length === 0) {
    throw badRequest("When `new_edits: false`, the document needs `_rev` or `_revisions` specified");
  }
  const received = await receive(edit);
  try {
    if (replicated) database.replicate(edit);
    const rev = replicated ? edit.revs[0] : database.write(edit);
    if (exchange.query.get("batch") === "ok") return exchange.send(202, { ok: true, id });
    return sendWritten(exchange, database, edit, rev);
  } catch (error) {
    await database.attachments.discard(received);
    throw error;
  }
}

function deleteDocument(exchange, database, id) {
  openRevision(database, id);
  const edit = { id, revs: [], deleted: true, body: {}, attachments: [] };
  settleBase(exchange, edit);
  return sendWritten(exchange, database, edit, database.write(edit));
}

function copyDocument(exchange, database, id) {
  const [target, query = ""] = (exchange.header("destination") ?? "").split("?");
  if (target === "") throw badRequest("Destination header is mandatory for COPY.");
  const { revision } = openRevision(database, id, exchange.revision(parseRev));
  const rev = new URLSearchParams(query).get("rev");
  const edit = {
    id: decodeURIComponent(target),
    revs: rev === null ? [] : [parseRev(rev)],
    deleted: false,
    body: database.body(revision),
    attachments: revision.attachments,
  };
  checkDocId(edit.id);
  return sendWritten(exchange, database, edit, database.write(edit));
}

/** POST to the database: a document that may name itself. */
export async function postDocument(exchange, database) {
  exchange.requireJson();
  const json = await exchange.json();
  const id = json?._id ?? randomUUID().replaceAll("-", "");
  checkDocId(id);
  return store(exchange, database, id, json, (edit) => receiveInline(database, [edit]));
}

// --- local documents --------------------------------------------------------------------------------------------------

async function answerLocal(exchange, database, id) {
  const found = database.locals.get(id);
  if (exchange.isRead || exchange.method === "DELETE") {
    if (!found) throw notFound();
    if (exchange.isRead) return exchange.send(200, { _id: id, _rev: found.rev, ...found.body });
    const rev = database.writeLocal(id, { revs: [], deleted: true, body: {} });
    return exchange.send(200, { ok: true, id, rev });
  }
  if (exchange.method !== "PUT") throw methodNotAllowed("DELETE,GET,HEAD,POST,PUT,COPY");
  const edit = { ...parseEdit(parseJson((await exchange.body()).toString("utf8"))), id };
  const rev = database.writeLocal(id, edit);
  return exchange.send(
    edit.deleted ? 200 : 201,
    { ok: true, id, rev },
    { Location: exchange.location(database.name, id) },
  );
}

// --- attachments ------------------------------------------------------------------------------------------------------

export async function answerAttachment(exchange, database, id, name) {
  if (id.startsWith("_local/")) throw badRequest("_local documents do not accept attachments.");
  switch (exchange.method) {
    case "GET":
    case "HEAD":
      return sendAttachment(exchange, database, id, name);
    case "PUT":
      return putAttachment(exchange, database, id, name);
    case "DELETE":
      return deleteAttachment(exchange, database, id, name);
    default:
      throw methodNotAllowed("DELETE,GET,HEAD,PUT");
  }
}

function findAttachment(revision, name) {
  const found = revision.attachments.find((attachment) => attachment.name === name);
  if (!found) throw noAttachment();
  return found;
}

/**
 * One range as `[from, to]`, inclusive; null where the header asks for nothing that can be served as a part. Several ranges
 * are answered with the whole.
 */
function parseRange(header, length) {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (!match || match[0] === "bytes=-") return null;
  const [, first, last] = match;
  const from = first === "" ? Math.max(0, length - Number(last)) : Number(first);
  const to = first === "" || last === "" ? length - 1 : Math.min(Number(last), length - 1);
  if (first === "0" && last === "") return null;
  if (from > to) throw new CouchError(416, "requested_range_not_satisfiable", "Requested range not satisfiable");
  return [from, to];
}

async function sendAttachment(exchange, database, id, name) {
  const rev = exchange.query.has("rev") ? parseRev(exchange.query.get("rev")) : null;
  const attachment = findAttachment(openRevision(database, id, rev).revision, name);
  const etag = `"${attachment.digest.slice("md5-".length)}"`;
  if (exchange.notModified(etag)) return undefined;

  const plain = attachment.encoding === "identity";
  const asStored = plain || /\bgzip\b/.test(exchange.header("accept-encoding") ?? "");
  const range = plain ? parseRange(exchange.header("range"), attachment.length) : null;
  const headers = {
    "Cache-Control": "must-revalidate",
    "Content-Type": attachment.type,
    "Content-Security-Policy": "sandbox",
    "Accept-Ranges": plain ? "bytes" : "none",
    ETag: etag,
  };
  if (!plain && asStored) headers["Content-Encoding"] = attachment.encoding;
  const [from, to] = range ?? [0, (asStored ? attachment.stored : attachment.length) - 1];
  // What came gzipped has no known plain length; CouchDB sends it in chunks then, and so do we.
  if (asStored || attachment.length !== attachment.stored) headers["Content-Length"] = to - from + 1;
  if (range) headers["Content-Range"] = `bytes ${from}-${to}/${attachment.length}`;
  exchange.response.writeHead(range ? 206 : 200, headers);
  if (exchange.method === "HEAD" || to < from) return exchange.response.end();
  return database.attachments.pour(attachment, exchange.response, {
    decode: !asStored,
    ...(range ? { from, to } : {}),
  });
}

/** What an attachment request is about: the revision named, or a document that is yet to be made. */
function baseOf(exchange, database, id) {
  const rev = exchange.revision(parseRev);
  if (rev === null) return { rev, body: {}, attachments: [], deleted: false };
  const revision = database.documents.get(id)?.get(rev);
  if (!revision) throw missingRev();
  return { rev, body: database.body(revision), attachments: revision.attachments, deleted: revision.deleted };
}

/** The edit that leaves all as it is but for one attachment. */
function amend(id, base, name, added) {
  const kept = base.attachments
    .filter((attachment) => attachment.name !== name)
    .map((attachment) => ({ name: attachment.name, stub: true, revpos: attachment.revpos }));
  return {
    id,
    revs: base.rev === null ? [] : [base.rev],
    deleted: base.deleted,
    body: base.body,
    attachments: [...added, ...kept],
  };
}

async function putAttachment(exchange, database, id, name) {
  checkDocId(id);
  checkAttachmentName(name);
  const encoding = (exchange.header("content-encoding") ?? "identity").trim().toLowerCase();
  if (!["identity", "gzip"].includes(encoding))
    throw badContentType("Only gzip and identity content-encodings are supported");
  exchange.revision(parseRev); // what is malformed is refused before the bytes are taken
  const type = exchange.header("content-type") ?? DEFAULT_TYPE;
  const attachment = await database.attachments.receive(name, type, exchange.stream(), { encoding });
  try {
    const base = baseOf(exchange, database, id);
    const rev = database.write(amend(id, base, name, [attachment]));
    return exchange.send(201, { ok: true, id, rev }, { Location: exchange.location(database.name, id, name) });
  } catch (error) {
    await database.attachments.discard([attachment]);
    throw error;
  }
}

function deleteAttachment(exchange, database, id, name) {
  checkAttachmentName(name);
  const base = baseOf(exchange, database, id);
  if (base.rev === null) {
    findAttachment(openRevision(database, id).revision, name);
    throw conflict();
  }
  // CouchDB 3.4 looks at the revision before it misses the attachment: a stale one is a conflict.
  const tree = database.documents.get(id);
  if (!tree.isLeaf(base.rev)) throw conflict();
  findAttachment({ attachments: base.attachments }, name);
  const rev = database.write(amend(id, base, name, []));
  return exchange.send(200, { ok: true, id, rev });
}
