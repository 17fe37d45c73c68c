/**
 * One request and its answer: path and query taken apart, bodies read, JSON and errors written.
 */
import { finished } from "node:stream/promises";
import { gunzipSync } from "node:zlib";
import { randomBytes } from "node:crypto";

import { badContentType, badRequest, CouchError, invalidJson, queryParseError } from "./errors.mjs";

const SERVER = "CouchDB/3.4.0 (kz-record-call stand-in)";
/** For one JSON body; beyond it, this process rather than the test would suffer. */
const MAX_JSON_BYTES = 512 * 1024 * 1024;
const DRAIN_MS = 5_000;

export class Exchange {
  constructor(request, response) {
    this.request = request;
    this.response = response;
    this.method = request.method;
    this.user = null;
    this.segments = [];
    this.query = new URLSearchParams();
    this.awaitsContinue = /^100-continue$/i.test(request.headers.expect ?? "");
    response.setHeader("Server", SERVER);
    response.setHeader("X-Couch-Request-ID", randomBytes(5).toString("hex"));
  }

  /** `%2F` inside a segment is part of a name, `/` parts segments, and `+` is a blank: as CouchDB reads paths. */
  parse() {
    const [path, query = ""] = splitOnce(this.request.url, "?");
    const raw = path.split("/").slice(1);
    if (raw.at(-1) === "") raw.pop();
    try {
      this.segments = raw.map((segment) => decodeURIComponent(segment.replaceAll("+", " ")));
    } catch {
      throw badRequest("invalid path");
    }
    this.query = new URLSearchParams(query);
  }

  get isRead() {
    return this.method === "GET" || this.method === "HEAD";
  }

  get hasBody() {
    return this.header("transfer-encoding") !== undefined || Number(this.header("content-length") ?? 0) > 0;
  }

  header(name) {
    return this.request.headers[name];
  }

  /** Whether the client takes this type; like CouchDB, no `Accept` at all takes everything. */
  accepts(type) {
    const accept = this.header("accept");
    if (!accept) return true;
    const ranges = accept.split(",").map((range) => range.split(";")[0].trim());
    return ranges.some((range) => range === type || range === "*/*" || range === type.replace(/\/.*/, "/*"));
  }

  /** The revision of `?rev=` and `If-Match`, which must agree; null when neither is there. */
  revision(parse) {
    const explicit = this.query.has("rev") ? parse(this.query.get("rev")) : null;
    const match = this.header("if-match");
    const etag = match === undefined ? null : parse(match.trim().replace(/^"+|"+$/g, ""));
    if (explicit !== null && etag !== null && explicit !== etag) {
      throw badRequest("Document rev and etag have different values");
    }
    return explicit ?? etag;
  }

  // --- parameters of the query ---------------------------------------------------------------------------------------

  flag(name) {
    return this.query.get(name) === "true";
  }

  /** A JSON value of the query, e.g. `doc_ids`; undefined when absent. */
  jsonParameter(name) {
    return this.query.has(name) ? parseJson(this.query.get(name)) : undefined;
  }

  /** Whole number of milliseconds or the like, at least 0. */
  number(name, otherwise) {
    if (!this.query.has(name)) return otherwise;
    const text = this.query.get(name);
    if (!/^-?\d+$/.test(text)) throw queryParseError(`Invalid value for integer: "${text}"`);
    return Number(text);
  }

  // --- bodies --------------------------------------------------------------------------------------------------------

  /** The body as a stream. Nothing of it may have been asked for before this call. */
  stream() {
    if (this.awaitsContinue) {
      this.awaitsContinue = false;
      this.response.writeContinue();
    }
    return this.request;
  }

  async body() {
    const chunks = [];
    let size = 0;
    for await (const chunk of this.stream().iterator({ destroyOnReturn: false })) {
      size += chunk.length;
      if (size > MAX_JSON_BYTES) throw new CouchError(413, "too_large", "the request entity is too large");
      chunks.push(chunk);
    }
    const bytes = Buffer.concat(chunks, size);
    return /^gzip$/i.test(this.header("content-encoding") ?? "") ? gunzipSync(bytes) : bytes;
  }

  async json() {
    return parseJson((await this.body()).toString("utf8"));
  }

  /** For all but PUT of a document, CouchDB insists on the type. */
  requireJson() {
    if (!/^application\/json\b/i.test(this.header("content-type") ?? "")) throw badContentType();
  }

  // --- answers -------------------------------------------------------------------------------------------------------

  /** A reference to something on this server, as `Location` has it. */
  location(...segments) {
    return `http://${this.header("host") ?? "localhost"}/${segments.map(encodeURIComponent).join("/")}`;
  }

  send(status, value, headers = {}) {
    const text = Buffer.from(JSON.stringify(value) + "\n");
    this.response.writeHead(status, {
      "Cache-Control": "must-revalidate",
      "Content-Type": "application/json",
      ...headers,
      "Content-Length": text.length,
    });
    this.response.end(this.method === "HEAD" ? undefined : text);
  }

  /** Chunked, one row a line; `head` ends with the opening bracket, `tail` starts with the closing one. */
  sendRows(head, rows, tail, separator = ",\r\n") {
    this.response.writeHead(200, { "Cache-Control": "must-revalidate", "Content-Type": "application/json" });
    this.response.end(this.method === "HEAD" ? undefined : head + rows.join(separator) + tail);
  }

  notModified(etag) {
    if (this.header("if-none-match") !== etag) return false;
    this.response.writeHead(304, { ETag: etag, "Content-Length": 0 });
    this.response.end();
    return true;
  }

  async fail(error) {
    const { response, request } = this;
    let known = error;
    if (!(error instanceof CouchError)) {
      if (request.socket.destroyed) return; // the client went away, nobody is there to be told
      console.error(`${this.method} ${request.url}:`, error);
      known = new CouchError(500, "unknown_error", String(error?.message ?? error));
    }
    if (response.headersSent) {
      response.destroy();
      return;
    }
    const text = Buffer.from(JSON.stringify({ error: known.error, reason: known.reason }) + "\n");
    const bodyUnread = this.hasBody && !request.complete;
    const headers = {
      "Cache-Control": "must-revalidate",
      "Content-Type": "application/json",
      "Content-Length": text.length,
      ...known.headers,
    };
    if (bodyUnread || known.status === 413) headers.Connection = "close";
    response.writeHead(known.status, headers);
    if (this.method === "HEAD") {
      response.end();
      return;
    }
    response.write(text);
    // The answer is complete for the client. Closing with bytes unread would reset the connection and could take the answer
    // away from a client that is still sending, so what comes is read and dropped for a moment.
    if (bodyUnread && !this.awaitsContinue) {
      const timer = setTimeout(() => request.destroy(), DRAIN_MS);
      request.resume();
      await finished(request).catch(() => {});
      clearTimeout(timer);
    }
    response.end();
  }
}

export function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw invalidJson();
  }
}

function splitOnce(text, separator) {
  const at = text.indexOf(separator);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + separator.length)];
}
