/** A document and its audio in one request. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { test } from "node:test";

import { asMultipart, audio, database, earlyAnswer, follows, get, multipart, put } from "./client.mjs";

const HELLO = "md5-XUFAKrxLKna5cZ2REBfFkg==";

test("a document and its attachments arrive together", async (t) => {
  const db = await database(t);
  const doc = { n: 1, _attachments: { "b.mp3": follows(5), "a.mp3": follows(3) } };
  const answer = await put(`${db}/a`, multipart(doc, ["hello", "abc"]), asMultipart);
  assert.equal(answer.status, 201);
  assert.deepEqual(Object.keys(answer.json), ["ok", "id", "rev"]);
  assert.equal(answer.headers.etag, `"${answer.json.rev}"`);
  const stored = (await get(`${db}/a`)).json;
  assert.equal(stored.n, 1);
  assert.deepEqual(stored._attachments["b.mp3"], {
    content_type: "audio/mpeg",
    revpos: 1,
    digest: HELLO,
    length: 5,
    stub: true,
  });
  assert.equal((await get(`${db}/a/b.mp3`)).text, "hello", "parts belong to names in their order");
  assert.equal((await get(`${db}/a/a.mp3`)).text, "abc");
});

test("the boundary needs no quotes, the last delimiter may be missing, extra parts are ignored", async (t) => {
  const db = await database(t);
  const doc = { _attachments: { "a.mp3": follows(5) } };
  const bare = { headers: { "content-type": "multipart/related;boundary=frontier" } };
  assert.equal((await put(`${db}/a`, multipart(doc, ["hello"]), bare)).status, 201);
  assert.equal((await put(`${db}/b`, multipart(doc, ["hello"], { end: false }), asMultipart)).status, 201);
  assert.equal((await put(`${db}/c`, multipart(doc, ["hello", "more"]), asMultipart)).status, 201);
  for (const id of ["a", "b", "c"])
    assert.equal((await get(`${db}/${id}`)).json._attachments["a.mp3"].digest, HELLO, id);
});

test("it only creates, unless the latest revision is given", async (t) => {
  const db = await database(t);
  const doc = { n: 1, _attachments: { "a.mp3": follows(5) } };
  const { rev } = (await put(`${db}/a`, multipart(doc, ["hello"]), asMultipart)).json;
  const again = await put(`${db}/a`, multipart({ ...doc, n: 2 }, ["other"]), asMultipart);
  assert.deepEqual([again.status, again.json], [409, { error: "conflict", reason: "Document update conflict." }]);
  assert.equal((await get(`${db}/a`)).json.n, 1);
  assert.equal((await get(`${db}/a/a.mp3`)).text, "hello");
  const two = await put(`${db}/a`, multipart({ ...doc, _rev: rev, n: 2 }, ["other"]), asMultipart);
  assert.equal(two.status, 201);
  assert.equal((await get(`${db}/a/a.mp3`)).text, "other");
  assert.equal((await get(`${db}/a`)).json._attachments["a.mp3"].revpos, 2);
});

test("stubs and what follows may be mixed", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a/kept.mp3`, "hello", audio)).json;
  const doc = { _rev: rev, _attachments: { "kept.mp3": { stub: true }, "new.mp3": follows(3) } };
  assert.equal((await put(`${db}/a`, multipart(doc, ["abc"]), asMultipart)).status, 201);
  assert.equal((await get(`${db}/a/kept.mp3`)).text, "hello");
  assert.equal((await get(`${db}/a/new.mp3`)).text, "abc");
});

test("of ten creators exactly one succeeds", async (t) => {
  const db = await database(t);
  const doc = { _attachments: { "a.mp3": follows(200_000) } };
  const answers = await Promise.all(
    Array.from({ length: 10 }, () => put(`${db}/a`, multipart(doc, [randomBytes(200_000)]), asMultipart)),
  );
  assert.deepEqual(answers.map(({ status }) => status).sort(), [201, ...Array(9).fill(409)]);
});

test("a length that is not kept stores nothing", async (t) => {
  const db = await database(t);
  for (const [length, parts, reason] of [
    [9, ["hello"], "attachment shorter than expected"],
    [3, ["hello"], "attachment longer than expected"],
    [5, [], "attachment shorter than expected"],
  ]) {
    const answer = await put(`${db}/a`, multipart({ _attachments: { "a.mp3": follows(length) } }, parts), asMultipart);
    assert.deepEqual([answer.status, answer.json], [400, { error: "bad_request", reason }]);
    assert.equal((await get(`${db}/a`)).status, 404);
  }
});

test("a digest that is wrong stores nothing, a right one is taken", async (t) => {
  const db = await database(t);
  const doc = { _attachments: { "a.mp3": follows(5, { digest: HELLO }) } };
  assert.equal((await put(`${db}/wrong`, multipart(doc, ["hellp"]), asMultipart)).status, 500);
  assert.equal((await get(`${db}/wrong`)).status, 404);
  assert.equal((await put(`${db}/right`, multipart(doc, ["hello"]), asMultipart)).status, 201);
});

test("the first part must be JSON, and a document", async (t) => {
  const db = await database(t);
  const raw = (text) => put(`${db}/a`, text, asMultipart);
  assert.equal((await raw("--frontier\r\nContent-Type: application/json\r\n\r\n{no\r\n--frontier--")).status, 400);
  assert.equal((await raw("--frontier\r\n\r\n{}\r\n--frontier--")).status, 415);
  assert.equal((await put(`${db}/a`, multipart({ _foo: 1 }, []), asMultipart)).status, 400);
});

test("an upload that is cut leaves nothing", async (t) => {
  const db = await database(t);
  const body = multipart({ _attachments: { "a.mp3": follows(1_000_000) } }, [randomBytes(1_000_000)]);
  await new Promise((resolve) => {
    put(`${db}/a`, undefined, {
      headers: { ...asMultipart.headers, "content-length": body.length },
      agent: false,
      body: (sent) => {
        sent.write(body.subarray(0, 500_000));
        setTimeout(() => sent.destroy(), 200);
      },
    }).catch(resolve);
  });
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal((await get(`${db}/a`)).status, 404);
  assert.equal((await put(`${db}/a`, body, asMultipart)).status, 201);
});

test("a missing database is told before the body is over", async () => {
  const body = multipart({ _attachments: { "a.mp3": follows(8_000_000) } }, [randomBytes(8_000_000)]);
  const answer = await earlyAnswer(put("/check-none/a", body, { ...asMultipart, agent: false }));
  if (answer)
    assert.deepEqual([answer.status, answer.json], [404, { error: "not_found", reason: "Database does not exist." }]);
});

test("twenty megabytes with a boundary that almost occurs in them", async (t) => {
  const db = await database(t);
  const near = Buffer.from("\r\n--frontie\r\n--frontie--\r\n-\r\n");
  const bytes = Buffer.concat([randomBytes(10_000_000), ...Array(100_000).fill(near), randomBytes(10_000_000)]);
  const digest = `md5-${createHash("md5").update(bytes).digest("base64")}`;
  const body = multipart({ _attachments: { "a.mp3": follows(bytes.length) } }, [bytes]);
  const answer = await put(`${db}/a`, undefined, {
    headers: { ...asMultipart.headers, "content-length": body.length },
    body: async (sent) => {
      // In pieces that do not fit the delimiters.
      for (let at = 0; at < body.length; at += 99_991)
        if (!sent.write(body.subarray(at, at + 99_991))) await once(sent, "drain");
      sent.end();
    },
  });
  assert.equal(answer.status, 201);
  assert.equal((await get(`${db}/a`)).json._attachments["a.mp3"].digest, digest);
});

test("a document with attachments is given as multipart to whom takes it", async (t) => {
  const db = await database(t);
  await put(`${db}/a`, multipart({ n: 1, _attachments: { "a.mp3": follows(5) } }, ["hello"]), asMultipart);
  const answer = await get(`${db}/a?attachments=true`);
  const [, boundary] = /^multipart\/related; boundary="(.+)"$/.exec(answer.headers["content-type"]);
  assert.equal(Number(answer.headers["content-length"]), answer.raw.length);
  const [, json, part] = answer.text.split(`--${boundary}`);
  assert.equal(JSON.parse(json.split("\r\n\r\n")[1])._attachments["a.mp3"].follows, true);
  assert.equal(part.split("\r\n\r\n")[1], "hello\r\n");
});
