/**
 * The bytes of attachments: one file each, written as they arrive, so that memory does not grow with their size.
 *
 * What is kept beside the file is what CouchDB shows of it. Texts are stored gzipped, as CouchDB does, and their digest is
 * that of the gzipped bytes; audio is stored as it came.
 */
import { createHash, randomUUID } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { readFile, unlink } from "node:fs/promises";
import path from "node:path";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createGzip, gunzipSync } from "node:zlib";

import { noDatabase } from "./errors.mjs";

/** CouchDB's default `compressible_types`. */
const COMPRESSIBLE = [/^text\//i, /^application\/(javascript|json|xml)\b/i];

/**
 * @typedef {object} Attachment
 * @property {string} name
 * @property {string} type
 * @property {number} revpos
 * @property {string} digest          `md5-` and base64, of the stored bytes
 * @property {"identity"|"gzip"} encoding
 * @property {number} length          of the plain bytes; of the stored ones when they came gzipped
 * @property {number} stored          length of the stored bytes
 * @property {string} file
 */

/** Counts and hashes what passes. */
function meter() {
  const hash = createHash("md5");
  const through = new Transform({
    transform(chunk, _encoding, done) {
      through.bytes += chunk.length;
      hash.update(chunk);
      done(null, chunk);
    },
  });
  through.bytes = 0;
  through.digest = () => `md5-${hash.digest("base64")}`;
  return through;
}

export class AttachmentFolder {
  constructor(folder) {
    this.folder = folder;
  }

  path(attachment) {
    return path.join(this.folder, attachment.file);
  }

  /**
   * Writes a stream to a file of its own. Nothing is left of it when the stream breaks.
   * @returns {Promise<Attachment>} without `revpos`, which the revision gives
   */
  async receive(name, type, source, { encoding = "identity" } = {}) {
    const attachment = { name, type, file: randomUUID() };
    const plain = meter();
    const stored = meter();
    const compress = encoding === "identity" && COMPRESSIBLE.some((pattern) => pattern.test(type));
    const steps = [source, plain, ...(compress ? [createGzip({ level: 8 })] : []), stored];
    try {
      await pipeline(...steps, createWriteStream(this.path(attachment), { highWaterMark: 1024 * 1024 }));
    } catch (error) {
      await this.discard([attachment]);
      // The folder goes when the database is deleted under an upload.
      throw error.code === "ENOENT" ? noDatabase() : error;
    }
    attachment.digest = stored.digest();
    attachment.encoding = compress ? "gzip" : encoding;
    attachment.length = plain.bytes;
    attachment.stored = stored.bytes;
    return attachment;
  }

  async discard(attachments) {
    await Promise.all(attachments.map((attachment) => unlink(this.path(attachment)).catch(() => {})));
  }

  /** The plain bytes, whole: for `attachments=true`. */
  async read(attachment) {
    const bytes = await readFile(this.path(attachment));
    return attachment.encoding === "gzip" ? gunzipSync(bytes) : bytes;
  }

  /** Sends the stored bytes, or the plain ones when `decode`; `from` and `to` are inclusive. */
  async pour(attachment, target, { decode = false, from, to, end = true } = {}) {
    const source = createReadStream(this.path(attachment), { start: from, end: to, highWaterMark: 256 * 1024 });
    await pipeline(...[source, ...(decode ? [createGunzip()] : [])], target, { end });
  }
}
