/**
 * What the checks speak with: a plain HTTP client that hides nothing, and a database of its own for each check.
 *
 * COUCHDB_URL (with user and password) names the server. It may be the stand-in or a real CouchDB: what is expected here was
 * seen on CouchDB 3.4.3.
 */
import http from "node:http";
import { randomBytes } from "node:crypto";

const url = new URL(process.env.COUCHDB_URL ?? "http://admin:secret@127.0.0.1:5984");
export const host = { host: url.hostname, port: url.port };
const credentials = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
export const basic = `Basic ${Buffer.from(credentials).toString("base64")}`;
const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });

/**
 * @param {object} [options]
 * @param {object|Buffer|string|Function} [options.body]  an object goes as JSON; a function gets the request and ends it
 * @param {object} [options.headers]
 * @param {string|false} [options.auth]
 */
export function request(method, path, { body, headers = {}, auth = basic, agent: via = agent } = {}) {
  const all = { ...headers };
  if (auth) all.authorization ??= auth;
  let bytes = body;
  if (body !== undefined && typeof body !== "function" && typeof body !== "string" && !Buffer.isBuffer(body)) {
    bytes = JSON.stringify(body);
    all["content-type"] ??= "application/json";
  }
  if (typeof bytes === "string") bytes = Buffer.from(bytes);
  if (Buffer.isBuffer(bytes)) all["content-length"] ??= bytes.length;
  return new Promise((resolve, reject) => {
    const sent = http.request({ ...host, method, path, headers: all, agent: via }, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const raw = Buffer.concat(chunks);
        const answer = { status: response.statusCode, headers: response.headers, raw, text: raw.toString("utf8") };
        Object.defineProperty(answer, "json", { get: () => JSON.parse(answer.text) });
        resolve(answer);
      });
    });
    sent.on("error", reject);
    if (typeof bytes === "function") bytes(sent);
    else sent.end(bytes);
  });
}

export const get = (path, options) => request("GET", path, options);
export const put = (path, body, options) => request("PUT", path, { body, ...options });
export const post = (path, body = {}, options) => request("POST", path, { body, ...options });
export const del = (path, options) => request("DELETE", path, options);

/** A fresh database, removed when the check is over; its path is given, e.g. `/check%2Fab12`. */
export async function database(t) {
  const path = `/check%2F${randomBytes(6).toString("hex")}`;
  const { status, text } = await put(path);
  if (status !== 201) throw new Error(`cannot create a database: ${status} ${text}`);
  t.after(() => del(path));
  return path;
}

export const audio = { headers: { "content-type": "audio/mpeg" } };

/** The revision of a document as it is now. */
export const revOf = async (path) => (await get(path)).json._rev;

/** A body of `multipart/related`. */
export function multipart(document, parts, { end = true, boundary = "frontier" } = {}) {
  const pieces = [Buffer.from(`--${boundary}\r\nContent-Type: application/json\r\n\r\n${JSON.stringify(document)}`)];
  for (const part of parts)
    pieces.push(Buffer.from(`\r\n--${boundary}\r\nContent-Type: audio/mpeg\r\n\r\n`), Buffer.from(part));
  if (end) pieces.push(Buffer.from(`\r\n--${boundary}--`));
  return Buffer.concat(pieces);
}

export const asMultipart = { headers: { "content-type": 'multipart/related; boundary="frontier"' } };

export const follows = (length, more = {}) => ({ follows: true, content_type: "audio/mpeg", length, ...more });

/**
 * The answer to an upload that is refused early. CouchDB closes the connection with bytes unread, so that it may be reset
 * before the answer was seen: then null.
 */
export const earlyAnswer = (sending) =>
  sending.catch((error) => {
    if (["ECONNRESET", "EPIPE"].includes(error.code)) return null;
    throw error;
  });
