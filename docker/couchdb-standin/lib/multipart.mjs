/**
 * `multipart/related`, in both directions: a document's JSON first, then the bytes of its attachments in the order in which the
 * JSON names them. Nothing is held in memory but the JSON and one piece of what passes.
 */
import { randomUUID } from "node:crypto";
import { once } from "node:events";

import { badContentType, badRequest, functionClause } from "./errors.mjs";
import { parseJson } from "./exchange.mjs";

const CRLF = Buffer.from("\r\n");
const BLANK_LINE = Buffer.from("\r\n\r\n");

/** Reads the parts of a body one after the other. */
export class MultipartReader {
  constructor(source, contentType) {
    const [, quoted, bare] = /;\s*boundary=(?:"([^"]+)"|([^\s;]+))/i.exec(contentType) ?? [];
    if (!(quoted ?? bare)) throw badRequest("the boundary of the multipart body is missing");
    this.delimiter = Buffer.from(`\r\n--${quoted ?? bare}`);
    this.chunks = source.iterator({ destroyOnReturn: false });
    // The first delimiter may stand at the very beginning, where no line end precedes it.
    this.buffer = CRLF;
    this.ended = false;
    this.inPart = true; // what precedes the first delimiter counts as a part, which nobody reads
  }

  /** @returns {Promise<boolean>} false when there is no more */
  async #more() {
    const { done, value } = await this.chunks.next();
    if (done) this.ended = true;
    else this.buffer = this.buffer.length === 0 ? value : Buffer.concat([this.buffer, value]);
    return !done;
  }

  /** The bytes of the part at hand, up to the delimiter, or to the end of the body. */
  async *body() {
    while (this.inPart) {
      const at = this.buffer.indexOf(this.delimiter);
      if (at >= 0) {
        const bytes = this.buffer.subarray(0, at);
        this.buffer = this.buffer.subarray(at + this.delimiter.length);
        this.inPart = false;
        if (bytes.length > 0) yield bytes;
        return;
      }
      // The delimiter may have begun at the end of what is here.
      const safe = this.buffer.length - this.delimiter.length;
      if (safe > 0) {
        const bytes = this.buffer.subarray(0, safe);
        this.buffer = this.buffer.subarray(safe);
        yield bytes;
      }
      if (!(await this.#more())) {
        const bytes = this.buffer;
        this.buffer = Buffer.alloc(0);
        this.inPart = false;
        if (bytes.length > 0) yield bytes;
      }
    }
  }

  /** Goes on to the next part. Returns its headers, or null after the last one. */
  async next() {
    for await (const skipped of this.body()) void skipped;
    while (this.buffer.length < 2) if (!(await this.#more())) return null;
    if (this.buffer.subarray(0, 2).toString() === "--") return null;
    let end;
    while ((end = this.buffer.indexOf(BLANK_LINE)) < 0) if (!(await this.#more())) return null;
    const lines = this.buffer.subarray(0, end).toString("latin1").split("\r\n").filter(Boolean);
    this.buffer = this.buffer.subarray(end + BLANK_LINE.length);
    this.inPart = true;
    return Object.fromEntries(
      lines.map((line) => [line.split(":")[0].trim().toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
    );
  }

  /** Reads to the end, so that the connection can be used again. */
  async drain() {
    while (!this.ended) {
      this.buffer = Buffer.alloc(0);
      await this.#more();
    }
  }

  /** Lets go of the source, whatever is left in it. */
  async release() {
    await this.chunks.return();
  }
}

export const isMultipartRelated = (contentType) => /^multipart\/related;/i.test(contentType ?? "");

/** The JSON of a document sent as multipart, from the first part. */
export async function readDocument(reader) {
  const headers = await reader.next();
  if (!/^application\/json\b/i.test(headers?.["content-type"] ?? "")) throw badContentType();
  const pieces = [];
  for await (const piece of reader.body()) pieces.push(piece);
  return parseJson(Buffer.concat(pieces).toString("utf8"));
}

/**
 * Receives the attachments that follow and puts them in the places of their descriptions. The lengths promised must be kept
 * exactly; on any failure nothing stays.
 */
export async function receiveFollowing(database, edit, reader) {
  const received = [];
  try {
    for (const [index, described] of edit.attachments.entries()) {
      if (!described.follows) continue;
      if ((await reader.next()) === null) throw badRequest("attachment shorter than expected");
      const attachment = await database.attachments.receive(
        described.name,
        described.type,
        exactly(reader.body(), described.length),
      );
      received.push(attachment);
      if (described.digest !== undefined && described.digest !== attachment.digest) throw functionClause();
      edit.attachments[index] = attachment;
    }
    await reader.drain();
  } catch (error) {
    await database.attachments.discard(received);
    throw error;
  }
  return received;
}

async function* exactly(source, length) {
  let seen = 0;
  for await (const piece of source) {
    seen += piece.length;
    if (seen > length) throw badRequest("attachment longer than expected");
    yield piece;
  }
  if (seen < length) throw badRequest("attachment shorter than expected");
}

/** Answers with a document whose attachments follow. */
export async function sendDocument(exchange, database, json, attachments, headers) {
  const { response } = exchange;
  const boundary = randomUUID().replaceAll("-", "");
  const opening = Buffer.from(`--${boundary}\r\nContent-Type: application/json\r\n\r\n${JSON.stringify(json)}`);
  const closing = Buffer.from(`\r\n--${boundary}--`);
  const partHead = ({ name, type, stored, encoding }) => {
    const lines = [
      `Content-Disposition: attachment; filename="${name}"`,
      `Content-Type: ${type}`,
      `Content-Length: ${stored}`,
      ...(encoding === "identity" ? [] : [`Content-Encoding: ${encoding}`]),
    ];
    return Buffer.from(`\r\n--${boundary}\r\n${lines.join("\r\n")}\r\n\r\n`);
  };
  const heads = attachments.map(partHead);
  const length = attachments.reduce(
    (sum, { stored }, index) => sum + heads[index].length + stored,
    opening.length + closing.length,
  );
  response.writeHead(200, {
    "Content-Type": `multipart/related; boundary="${boundary}"`,
    ...headers,
    "Content-Length": length,
  });
  if (exchange.method === "HEAD") {
    response.end();
    return;
  }
  response.write(opening);
  for (const [index, attachment] of attachments.entries()) {
    if (!response.write(heads[index])) await once(response, "drain");
    await database.attachments.pour(attachment, response, { end: false });
  }
  response.end(closing);
}
