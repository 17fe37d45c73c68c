/**
 * From the JSON of a document to an edit, with CouchDB's checks, and back to JSON.
 */
import { Readable } from "node:stream";

import { badRequest, CouchError, docValidation, documentTooLarge, functionClause, illegalDocId } from "./errors.mjs";
import { generation, hashOf, parseRev } from "./revisions.mjs";
import { checkDesign } from "./sandbox.mjs";

const MAX_DOCUMENT_BYTES = 8_000_000;
const IGNORED = new Set(["_id", "_rev", "_revs_info", "_local_seq", "_conflicts", "_deleted_conflicts"]);
const DIGEST = /^md5-[A-Za-z0-9+/]{22}==$/;
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;

export function checkDocId(id) {
  if (typeof id !== "string") throw illegalDocId("Document id must be a string");
  if (id === "") throw illegalDocId("Document id must not be empty");
  if (id === "_design/" || id === "_local/") throw illegalDocId(`Illegal document id \`${id}\``);
  if (id.startsWith("_") && !/^_(design|local)\//.test(id)) {
    throw illegalDocId("Only reserved document ids may start with underscore.");
  }
}

export function checkAttachmentName(name) {
  if (name.startsWith("_")) throw badRequest(`Attachment name '${name}' starts with prohibited character '_'`);
}

/**
 * Takes a document's JSON apart. Attachments stay as they were described: see {@link receiveInline}.
 * @returns {import("./database.mjs").Edit}
 */
export function parseEdit(json) {
  if (json === null || typeof json !== "object" || Array.isArray(json))
    throw badRequest("Document must be a JSON object");
  const edit = { id: undefined, revs: [], deleted: false, body: {}, attachments: [] };
  if (Object.hasOwn(json, "_id")) {
    checkDocId(json._id);
    edit.id = json._id;
  }
  if (Object.hasOwn(json, "_rev")) edit.revs = [parseRev(json._rev)];
  for (const [key, value] of Object.entries(json)) {
    if (!key.startsWith("_")) edit.body[key] = value;
    else if (key === "_deleted" && typeof value === "boolean") edit.deleted = value;
    else if (key === "_revisions" && isObject(value)) edit.revs = parseRevisions(value);
    else if (key === "_attachments" && isObject(value)) edit.attachments = Object.entries(value).map(parseAttachment);
    else if (!IGNORED.has(key)) throw docValidation(`Bad special document member: ${key}`);
  }
  if (Buffer.byteLength(JSON.stringify(edit.body)) > MAX_DOCUMENT_BYTES) throw documentTooLarge(edit.id ?? "");
  return edit;
}

/** A design document must compile; in a bulk request this concerns its row only. */
export function checkContent(edit) {
  if (edit.id.startsWith("_design/") && !edit.deleted) checkDesign(edit.body);
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function parseRevisions({ start, ids }) {
  if (!Number.isInteger(start)) throw docValidation("_revisions.start isn't an integer.");
  if (!Array.isArray(ids)) throw docValidation("_revisions.ids isn't a array.");
  return ids.map((id, index) => parseRev(`${start - index}-${id}`));
}

function parseAttachment([name, described]) {
  checkAttachmentName(name);
  const type = described.content_type ?? "application/octet-stream";
  if (described.stub === true) {
    if (described.digest !== undefined && !DIGEST.test(described.digest)) throw functionClause();
    return { name, stub: true, revpos: described.revpos };
  }
  if (described.follows === true) {
    if (!Number.isInteger(described.length)) throw functionClause();
    return { name, type, follows: true, length: described.length, digest: described.digest };
  }
  if (typeof described.data !== "string" || !BASE64.test(described.data))
    throw badRequest(`Invalid attachment data for ${name}`);
  return { name, type, data: described.data };
}

/** Writes the attachments that came as base64, so that the edit can be written at one go. */
export async function receiveInline(database, edits) {
  const received = [];
  try {
    for (const edit of edits) {
      for (const [index, { name, type, data, follows }] of edit.attachments.entries()) {
        if (follows) throw badRequest(`Invalid attachment data for ${name}`);
        if (data === undefined) continue;
        const bytes = Buffer.from(data, "base64");
        const attachment = await database.attachments.receive(
          name,
          type,
          Readable.from([bytes], { objectMode: false }),
        );
        received.push(attachment);
        edit.attachments[index] = attachment;
      }
    }
  } catch (error) {
    await database.attachments.discard(received);
    throw error;
  }
  return received;
}

/**
 * A revision as JSON, `_id` and `_rev` first.
 * @param {object} options  revs, revsInfo, conflicts, deletedConflicts, localSeq, encodingInfo: booleans;
 *                          attachments: "stub" (default), "follows", or a map from name to base64
 */
export function toJson(database, tree, revision, options = {}) {
  const json = { _id: tree.id, _rev: revision.rev, ...database.body(revision) };
  if (revision.deleted) json._deleted = true;
  if (options.revs) {
    const names = tree.history(revision.rev);
    json._revisions = { start: generation(revision.rev), ids: names.map(hashOf) };
  }
  if (options.revsInfo) {
    json._revs_info = tree.history(revision.rev).map((rev) => {
      const { known, deleted } = tree.revisions.get(rev);
      return { rev, status: !known ? "missing" : deleted ? "deleted" : "available" };
    });
  }
  if (options.localSeq) json._local_seq = tree.seq;
  if (revision === tree.winner) {
    const living = tree.conflicts();
    const deleted = tree.conflicts({ deleted: true });
    if (options.conflicts && living.length > 0) json._conflicts = living;
    if (options.deletedConflicts && deleted.length > 0) json._deleted_conflicts = deleted;
  }
  if (revision.attachments.length > 0) {
    json._attachments = {};
    for (const attachment of revision.attachments) json._attachments[attachment.name] = describe(attachment, options);
  }
  return json;
}

function describe(
  { name, type, revpos, digest, length, encoding, stored },
  { attachments = "stub", encodingInfo = false },
) {
  const described = { content_type: type, revpos, digest };
  if (attachments === "stub") Object.assign(described, { length, stub: true });
  else if (attachments === "follows") Object.assign(described, { length, follows: true });
  else described.data = attachments.get(name);
  if (encodingInfo && encoding !== "identity") Object.assign(described, { encoding, encoded_length: stored });
  return described;
}

/** For `attachments=true` in JSON. */
export async function base64Of(database, revision) {
  const data = new Map();
  for (const attachment of revision.attachments) {
    data.set(attachment.name, (await database.attachments.read(attachment)).toString("base64"));
  }
  return data;
}

/** An error as a row of a bulk answer. */
export function errorRow(id, error) {
  if (!(error instanceof CouchError)) throw error;
  return { id, error: error.error, reason: error.reason };
}
