/** Attachments, one by one and inline. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import net from "node:net";

import { audio, basic, database, del, earlyAnswer, get, host, post, put, request, revOf } from "./client.mjs";

const HELLO = "XUFAKrxLKna5cZ2REBfFkg=="; // the MD5 of "hello"
const STUB = { content_type: "audio/mpeg", revpos: 1, digest: `md5-${HELLO}`, length: 5, stub: true };
const MEGABYTE = 1024 * 1024;

test("an attachment makes its document and shows as a stub", async (t) => {
  const db = await database(t);
  const answer = await put(`${db}/a/x.mp3`, "hello", audio);
  assert.equal(answer.status, 201);
  assert.deepEqual(Object.keys(answer.json), ["ok", "id", "rev"]);
  assert.equal(answer.headers.etag, undefined);
  const doc = await get(`${db}/a`);
  assert.deepEqual(doc.json._attachments, { "x.mp3": STUB });
  assert.deepEqual(Object.keys(doc.json._attachments["x.mp3"]), ["content_type", "revpos", "digest", "length", "stub"]);

  const second = await put(`${db}/a/sub/y.mp3?rev=${answer.json.rev}`, "", audio);
  assert.match(second.json.rev, /^2-/);
  const { "sub/y.mp3": y, "x.mp3": x } = (await get(`${db}/a`)).json._attachments;
  assert.deepEqual([y.revpos, y.length, y.digest], [2, 0, "md5-1B2M2Y8AsgTpgAmY7PhCfg=="]);
  assert.deepEqual(x, STUB);
  assert.equal((await get(`${db}/a/sub/y.mp3`)).raw.length, 0);
});

test("an attachment is read whole, in part, or not at all", async (t) => {
  const db = await database(t);
  await put(`${db}/a/x.mp3`, "hello", audio);
  const whole = await get(`${db}/a/x.mp3`);
  assert.equal(whole.text, "hello");
  assert.equal(whole.headers["content-length"], "5");
  assert.equal(whole.headers["content-type"], "audio/mpeg");
  assert.equal(whole.headers.etag, `"${HELLO}"`);
  assert.equal(whole.headers["accept-ranges"], "bytes");
  assert.equal(whole.headers["content-security-policy"], "sandbox");
  assert.equal(whole.headers["content-md5"], undefined);
  const head = await request("HEAD", `${db}/a/x.mp3`);
  assert.deepEqual([head.status, head.headers["content-length"], head.raw.length], [200, "5", 0]);

  const part = (range) => get(`${db}/a/x.mp3`, { headers: { range } });
  const middle = await part("bytes=1-2");
  assert.deepEqual([middle.status, middle.text, middle.headers["content-range"]], [206, "el", "bytes 1-2/5"]);
  assert.equal((await part("bytes=3-")).text, "lo");
  assert.equal((await part("bytes=-2")).text, "lo");
  assert.deepEqual(
    [(await part("bytes=3-99")).text, (await part("bytes=3-99")).headers["content-range"]],
    ["lo", "bytes 3-4/5"],
  );
  for (const range of ["bytes=9-12", "bytes=3-1"]) assert.equal((await part(range)).status, 416, range);
  assert.deepEqual([(await part("lines=1-2")).status, (await part("lines=1-2")).text], [200, "hello"]);
  assert.equal((await get(`${db}/a/x.mp3`, { headers: { "if-none-match": `"${HELLO}"` } })).status, 304);
});

test("what is not there is missing", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a/x.mp3`, "hello", audio)).json;
  assert.deepEqual((await get(`${db}/a/none`)).json, { error: "not_found", reason: "Document is missing attachment" });
  assert.deepEqual((await get(`${db}/none/x.mp3`)).json, { error: "not_found", reason: "missing" });
  await del(`${db}/a?rev=${rev}`);
  assert.deepEqual((await get(`${db}/a/x.mp3`)).json, { error: "not_found", reason: "deleted" });
  assert.equal((await get(`${db}/a/x.mp3?rev=${rev}`)).text, "hello");
});

test("an attachment is not written over without the latest revision", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a/x.mp3`, "hello", audio)).json;
  const none = await put(`${db}/a/x.mp3`, "other", audio);
  assert.deepEqual([none.status, none.json.error], [409, "conflict"]);
  const never = `4-${"0".repeat(32)}`;
  for (const path of [`${db}/a/x.mp3?rev=${never}`, `${db}/none/x.mp3?rev=${never}`]) {
    const answer = await put(path, "other", audio);
    assert.deepEqual([answer.status, answer.json], [409, { error: "not_found", reason: "missing_rev" }]);
  }
  assert.equal((await put(`${db}/a/x.mp3?rev=4`, "other", audio)).status, 400);
  const two = await put(`${db}/a/x.mp3`, "other", { headers: { ...audio.headers, "if-match": rev } });
  assert.equal(two.status, 201);
  assert.equal((await put(`${db}/a/x.mp3?rev=${rev}`, "third", audio)).status, 409);
  assert.equal((await get(`${db}/a/x.mp3`)).text, "other");
});

test("of ten writers of one attachment exactly one succeeds", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, {})).json;
  const writers = (path) => Promise.all(Array.from({ length: 10 }, (_, n) => put(path, `${n}`.repeat(100_000), audio)));
  for (const path of [`${db}/a/x.mp3?rev=${rev}`, `${db}/fresh/x.mp3`]) {
    assert.deepEqual((await writers(path)).map(({ status }) => status).sort(), [201, ...Array(9).fill(409)]);
  }
  assert.equal((await get(`${db}/a?conflicts=true`)).json._conflicts, undefined);
});

test("names beginning with an underscore are refused", async (t) => {
  const db = await database(t);
  const answer = await put(`${db}/a/_x`, "hello", audio);
  assert.equal(answer.status, 400);
  assert.equal(answer.json.reason, "Attachment name '_x' starts with prohibited character '_'");
  await put(`${db}/a`, {});
  assert.equal((await get(`${db}/a/_x`)).status, 404);
});

test("without a type it is a stream of octets", async (t) => {
  const db = await database(t);
  await put(`${db}/a/x`, "hello");
  assert.equal((await get(`${db}/a`)).json._attachments.x.content_type, "application/octet-stream");
});

test("texts are stored gzipped, audio as it is", async (t) => {
  const db = await database(t);
  const text = "text ".repeat(1000);
  await put(`${db}/a/x.txt`, text, { headers: { "content-type": "text/plain" } });
  const { digest, length } = (await get(`${db}/a`)).json._attachments["x.txt"];
  assert.equal(length, text.length);
  assert.notEqual(digest, `md5-${createHash("md5").update(text).digest("base64")}`);
  const plain = await get(`${db}/a/x.txt`);
  assert.equal(plain.text, text);
  assert.equal(plain.headers["accept-ranges"], "none");
  assert.equal(plain.headers.etag, `"${digest.slice(4)}"`);
  const packed = await get(`${db}/a/x.txt`, { headers: { "accept-encoding": "gzip" } });
  assert.equal(packed.headers["content-encoding"], "gzip");
  assert.equal(gunzipSync(packed.raw).toString(), text);
  assert.equal(`md5-${createHash("md5").update(packed.raw).digest("base64")}`, digest);
  const { encoding, encoded_length: packedLength } = (await get(`${db}/a?att_encoding_info=true`)).json._attachments[
    "x.txt"
  ];
  assert.deepEqual([encoding, packedLength], ["gzip", packed.raw.length]);
});

test("an attachment is deleted with its document's revision", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a/x.mp3`, "hello", audio)).json;
  assert.equal((await del(`${db}/a/x.mp3`)).status, 409);
  assert.equal((await del(`${db}/a/none`)).status, 404);
  assert.equal((await del(`${db}/a/none?rev=${rev}`)).status, 404);
  assert.equal((await del(`${db}/none/x.mp3`)).status, 404);
  const answer = await del(`${db}/a/x.mp3?rev=${rev}`);
  assert.equal(answer.status, 200);
  assert.match(answer.json.rev, /^2-/);
  assert.equal((await del(`${db}/a/x.mp3?rev=${rev}`)).status, 409);
  assert.equal((await get(`${db}/a`)).json._attachments, undefined);
});

test("a document keeps the attachments whose stubs it sends, and drops the others", async (t) => {
  const db = await database(t);
  const one = (await put(`${db}/a/x.mp3`, "hello", audio)).json.rev;
  await put(`${db}/a/y.mp3?rev=${one}`, "other", audio);
  const doc = (await get(`${db}/a`)).json;
  delete doc._attachments["y.mp3"];
  await put(`${db}/a`, { ...doc, n: 1 });
  assert.deepEqual((await get(`${db}/a`)).json._attachments, { "x.mp3": STUB });
  await put(`${db}/a`, { _rev: await revOf(`${db}/a`), _attachments: { "x.mp3": { stub: true } } });
  assert.deepEqual((await get(`${db}/a`)).json._attachments, { "x.mp3": STUB });
  await put(`${db}/a`, { _rev: await revOf(`${db}/a`) });
  assert.equal((await get(`${db}/a`)).json._attachments, undefined);
});

test("a stub of what is not there is refused", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a/x.mp3`, "hello", audio)).json;
  const stub = { _attachments: { "no.mp3": { stub: true } } };
  const answer = await put(`${db}/a`, { _rev: rev, ...stub });
  assert.equal(answer.status, 412);
  assert.deepEqual(answer.json, { error: "missing_stub", reason: "Invalid attachment stub in a for no.mp3" });
  assert.equal((await put(`${db}/b`, stub)).status, 412);
  assert.equal((await put(`${db}/a`, { ...stub })).status, 409, "a conflict comes first");
  assert.equal((await put(`${db}/a`, { _rev: rev, _attachments: { "x.mp3": { stub: true, revpos: 7 } } })).status, 412);
});

test("attachments may be inline, and are given back so", async (t) => {
  const db = await database(t);
  const inline = { content_type: "audio/mpeg", data: Buffer.from("hello").toString("base64") };
  assert.equal((await put(`${db}/a`, { n: 1, _attachments: { "x.mp3": inline } })).status, 201);
  assert.deepEqual((await get(`${db}/a`)).json._attachments, { "x.mp3": STUB });
  const json = await get(`${db}/a?attachments=true`, { headers: { accept: "application/json" } });
  assert.equal(json.json._attachments["x.mp3"].data, inline.data);
  assert.equal(json.json._attachments["x.mp3"].stub, undefined);
  const [row] = (await post(`${db}/_bulk_docs`, { docs: [{ _id: "b", _attachments: { "x.mp3": inline } }] })).json;
  assert.equal(row.ok, true);
  assert.equal((await get(`${db}/b/x.mp3`)).text, "hello");
  for (const bad of [{ data: "*" }, { content_type: "audio/mpeg" }]) {
    const answer = await put(`${db}/c`, { _attachments: { "x.mp3": bad } });
    assert.deepEqual([answer.status, answer.json.reason], [400, "Invalid attachment data for x.mp3"]);
  }
  assert.equal((await put(`${db}/c`, { _attachments: [] })).status, 400);
});

test("an upload may come in chunks", async (t) => {
  const db = await database(t);
  const answer = await put(`${db}/a/x.mp3`, undefined, {
    ...audio,
    body: (sent) => {
      sent.write("hel");
      sent.end("lo");
    },
  });
  assert.equal(answer.status, 201);
  assert.deepEqual((await get(`${db}/a`)).json._attachments["x.mp3"], STUB);
});

test("sixty megabytes arrive and come back unchanged", async (t) => {
  const db = await database(t);
  const piece = randomBytes(MEGABYTE);
  const hash = createHash("md5");
  for (let n = 0; n < 60; n += 1) hash.update(piece);
  const digest = hash.digest("base64");
  const answer = await put(`${db}/a/x.mp3`, undefined, {
    ...audio,
    body: async (sent) => {
      for (let n = 0; n < 60; n += 1) if (!sent.write(piece)) await once(sent, "drain");
      sent.end();
    },
  });
  assert.equal(answer.status, 201);
  assert.equal((await get(`${db}/a`)).json._attachments["x.mp3"].digest, `md5-${digest}`);
  const back = await get(`${db}/a/x.mp3`);
  assert.equal(createHash("md5").update(back.raw).digest("base64"), digest);
});

test("an upload that is cut leaves no document", async (t) => {
  const db = await database(t);
  for (const framing of ["content-length: 1000000", "transfer-encoding: chunked"]) {
    const socket = net.connect(host.port, host.host);
    await once(socket, "connect");
    const lines = [
      `PUT ${db}/cut/x.mp3 HTTP/1.1`,
      "host: localhost",
      `authorization: ${basic}`,
      "content-type: audio/mpeg",
      framing,
    ];
    socket.write(`${lines.join("\r\n")}\r\n\r\n`);
    socket.write(framing.includes("chunked") ? `${(1000).toString(16)}\r\n${"x".repeat(1000)}\r\n` : "x".repeat(1000));
    await new Promise((resolve) => setTimeout(resolve, 200));
    socket.destroy();
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.equal((await get(`${db}/cut`)).status, 404, framing);
  }
  assert.equal((await put(`${db}/cut/x.mp3`, "hello", audio)).status, 201, "the next try is not in its way");
});

test("an upload to a database that is not there is answered before it is over", async () => {
  const piece = Buffer.alloc(MEGABYTE);
  const upload = async (sent) => {
    for (let n = 0; n < 60 && !sent.destroyed; n += 1) {
      if (!sent.write(piece))
        await new Promise((resolve) => ["drain", "close"].forEach((event) => sent.once(event, resolve)));
    }
    sent.end();
  };
  const headers = { ...audio.headers, "content-length": 60 * MEGABYTE };
  const answer = await earlyAnswer(put("/check-none/a/x.mp3", undefined, { headers, agent: false, body: upload }));
  if (answer)
    assert.deepEqual([answer.status, answer.json], [404, { error: "not_found", reason: "Database does not exist." }]);
});
