/** Documents one by one: revisions, conflicts, what is refused. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { database, del, get, post, put, request, revOf } from "./client.mjs";

const REV = /^[1-9]\d*-[0-9a-f]{32}$/;
const CONFLICT = { error: "conflict", reason: "Document update conflict." };

test("a document is written, read and changed", async (t) => {
  const db = await database(t);
  const first = await put(`${db}/a`, { b: 1, a: { c: [1, "x", null, true] } });
  assert.equal(first.status, 201);
  assert.deepEqual(Object.keys(first.json), ["ok", "id", "rev"]);
  assert.match(first.json.rev, REV);
  assert.equal(first.headers.etag, `"${first.json.rev}"`);
  assert.match(first.headers.location, /\/a$/);

  const read = await get(`${db}/a`);
  assert.deepEqual(Object.entries(read.json), [
    ["_id", "a"],
    ["_rev", first.json.rev],
    ["b", 1],
    ["a", { c: [1, "x", null, true] }],
  ]);
  assert.equal(read.headers.etag, `"${first.json.rev}"`);
  assert.equal(Number(read.headers["content-length"]), read.raw.length);

  const second = await put(`${db}/a`, { _rev: first.json.rev, b: 2 });
  assert.match(second.json.rev, /^2-/);
  assert.equal((await get(`${db}/a?rev=${first.json.rev}`)).json.b, 1, "the old revision is still there");
  const head = await request("HEAD", `${db}/a`);
  assert.equal(head.status, 200);
  assert.equal(head.headers.etag, `"${second.json.rev}"`);
});

test("a document is not written over without its latest revision", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, { n: 1 })).json;
  await put(`${db}/a?rev=${rev}`, { n: 2 });
  for (const [path, body] of [
    ["a", { n: 3 }],
    ["a", { _rev: rev, n: 3 }],
    [`a?rev=${rev}`, { n: 3 }],
    ["a", { _rev: `9-${"0".repeat(32)}` }],
  ]) {
    const answer = await put(`${db}/${path}`, body);
    assert.equal(answer.status, 409);
    assert.deepEqual(answer.json, CONFLICT);
  }
  assert.equal((await get(`${db}/a`)).json.n, 2);
});

test("of ten writers of one revision exactly one succeeds, and no conflict is left", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, { n: 0 })).json;
  const answers = await Promise.all(Array.from({ length: 10 }, (_, n) => put(`${db}/a`, { _rev: rev, n })));
  assert.deepEqual(answers.map(({ status }) => status).sort(), [201, ...Array(9).fill(409)]);
  assert.equal((await get(`${db}/a?conflicts=true`)).json._conflicts, undefined);
  const creators = await Promise.all(Array.from({ length: 50 }, (_, n) => put(`${db}/b`, { n })));
  assert.equal(creators.filter(({ status }) => status === 201).length, 1);
});

test("the revision may come as If-Match, with or without quotes", async (t) => {
  const db = await database(t);
  const one = (await put(`${db}/a`, { n: 1 })).json.rev;
  const two = (await put(`${db}/a`, { n: 2 }, { headers: { "if-match": `"${one}"` } })).json.rev;
  assert.match(two, /^2-/);
  assert.equal((await put(`${db}/a`, { n: 3 }, { headers: { "if-match": one } })).status, 409);
  const three = (await put(`${db}/a`, { n: 3 }, { headers: { "if-match": two } })).json.rev;
  assert.equal((await del(`${db}/a`, { headers: { "if-match": two } })).status, 409);
  assert.equal((await del(`${db}/a`, { headers: { "if-match": three } })).status, 200);
});

test("revisions that differ or make no sense are refused", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, {})).json;
  const other = `1-${"0".repeat(32)}`;
  assert.equal((await put(`${db}/a?rev=${other}`, { _rev: rev })).status, 400);
  assert.equal((await put(`${db}/a?rev=${other}`, {}, { headers: { "if-match": rev } })).status, 400);
  for (const answer of [
    await put(`${db}/a?rev=x`, {}),
    await put(`${db}/a`, { _rev: "x" }),
    await get(`${db}/a?rev=x`),
  ]) {
    assert.equal(answer.status, 400);
    assert.deepEqual(answer.json, { error: "bad_request", reason: "Invalid rev format" });
  }
});

test("a revision on a document that never was is accepted", async (t) => {
  const db = await database(t);
  // CouchDB refuses it (409) on a shard that has never been written to; of several documents some go to every shard.
  await post(`${db}/_bulk_docs`, { docs: Array.from({ length: 20 }, (_, n) => ({ _id: `other${n}` })) });
  const answer = await put(`${db}/a?rev=3-abc`, {});
  assert.equal(answer.status, 201);
  assert.match(answer.json.rev, /^4-/);
  assert.deepEqual((await get(`${db}/a?revs=true`)).json._revisions.ids.slice(1), ["abc"]);
});

test("a deleted document is missing, says so, and can come back", async (t) => {
  const db = await database(t);
  const never = await get(`${db}/a`);
  assert.equal(never.status, 404);
  assert.deepEqual(never.json, { error: "not_found", reason: "missing" });
  assert.equal((await del(`${db}/a`)).status, 404);

  const { rev } = (await put(`${db}/a`, { n: 1 })).json;
  assert.equal((await del(`${db}/a`)).status, 409, "without its revision");
  const deleted = await del(`${db}/a?rev=${rev}`);
  assert.equal(deleted.status, 200);
  assert.match(deleted.json.rev, /^2-/);
  for (const answer of [await get(`${db}/a`), await del(`${db}/a?rev=${rev}`)]) {
    assert.equal(answer.status, 404);
    assert.deepEqual(answer.json, { error: "not_found", reason: "deleted" });
  }
  assert.equal((await get(`${db}/a?rev=${deleted.json.rev}`)).json._deleted, true);

  const back = await put(`${db}/a`, { n: 2 });
  assert.equal(back.status, 201);
  assert.match(back.json.rev, /^3-/);
  assert.equal((await put(`${db}/a`, { _rev: back.json.rev, _deleted: true, why: "test" })).status, 200);
  assert.equal((await get(`${db}/a`)).json.reason, "deleted");
});

test("what is no document is refused", async (t) => {
  const db = await database(t);
  for (const [body, error] of [
    [{ _foo: 1 }, "doc_validation"],
    [[1], "bad_request"],
    ["", "bad_request"],
    ["{", "bad_request"],
  ]) {
    const { status, json } = await put(`${db}/a`, body);
    assert.equal(status, 400, JSON.stringify(body));
    assert.equal(json.error, error, JSON.stringify(body));
  }
  assert.equal((await put(`${db}/a`, "{")).json.reason, "invalid UTF-8 JSON");
  assert.equal((await put(`${db}/a`, { _foo: 1 })).json.reason, "Bad special document member: _foo");
  const reserved = await put(`${db}/_foo`, {});
  assert.equal(reserved.status, 400);
  assert.equal(reserved.json.error, "illegal_docid");
});

test("the id of the address wins over that of the body", async (t) => {
  const db = await database(t);
  assert.equal((await put(`${db}/a`, { _id: "b" })).json.id, "a");
  assert.equal((await get(`${db}/b`)).status, 404);
});

test("ids may have slashes and anything else", async (t) => {
  const db = await database(t);
  for (const id of ["x/y", "ü €", "a!b", "c%41", "a?b#c", "202611-abc"]) {
    const address = `${db}/${encodeURIComponent(id)}`;
    assert.equal((await put(address, {})).json.id, id);
    assert.equal((await get(address)).json._id, id);
  }
});

test("POST makes a document, named or not, and insists on JSON", async (t) => {
  const db = await database(t);
  const unnamed = await post(db, { n: 1 });
  assert.equal(unnamed.status, 201);
  assert.match(unnamed.json.id, /^[0-9a-f]{32}$/);
  assert.equal((await post(db, { _id: "a", n: 1 })).json.id, "a");
  assert.equal((await post(db, { _id: "a", n: 1 })).status, 409);
  const text = await post(db, "{}", { headers: { "content-type": "text/plain" } });
  assert.equal(text.status, 415);
  assert.deepEqual(text.json, { error: "bad_content_type", reason: "Content-Type must be application/json" });
  assert.equal((await post(db, "{}")).status, 415);
  assert.equal((await post(db, "{}", { headers: { "content-type": "application/json; charset=utf-8" } })).status, 201);
  assert.equal(
    (await put(`${db}/t`, "{}", { headers: { "content-type": "text/plain" } })).status,
    201,
    "PUT does not look",
  );
});

test("a document of more than 8 MB is too large", async (t) => {
  const db = await database(t);
  assert.equal((await put(`${db}/fits`, { text: "x".repeat(7_900_000) })).status, 201);
  const answer = await put(`${db}/large`, { text: "x".repeat(8_000_001) });
  assert.equal(answer.status, 413);
  assert.equal(answer.json.error, "document_too_large");
  assert.equal(answer.headers.connection, "close");
  assert.equal((await get(`${db}/large`)).status, 404);
});

test("batch=ok is accepted without a revision", async (t) => {
  const db = await database(t);
  const answer = await put(`${db}/a?batch=ok`, {});
  assert.equal(answer.status, 202);
  assert.deepEqual(answer.json, { ok: true, id: "a" });
});

test("what the client has already is not sent again", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, {})).json;
  const answer = await get(`${db}/a`, { headers: { "if-none-match": `"${rev}"` } });
  assert.equal(answer.status, 304);
  assert.equal(answer.raw.length, 0);
});

test("a body may be gzipped", async (t) => {
  const db = await database(t);
  const body = gzipSync(JSON.stringify({ n: 1 }));
  assert.equal(
    (await put(`${db}/a`, body, { headers: { "content-encoding": "gzip", "content-type": "application/json" } }))
      .status,
    201,
  );
  assert.equal((await get(`${db}/a`)).json.n, 1);
});

test("revisions can be listed, and conflicts seen, opened and resolved", async (t) => {
  const db = await database(t);
  const one = (await put(`${db}/a`, { n: 1 })).json.rev;
  const two = (await put(`${db}/a`, { _rev: one, n: 2 })).json.rev;
  const { _revisions: revisions, _revs_info: info } = (await get(`${db}/a?revs=true&revs_info=true`)).json;
  assert.deepEqual(revisions, { start: 2, ids: [two.slice(2), one.slice(2)] });
  assert.deepEqual(info, [
    { rev: two, status: "available" },
    { rev: one, status: "available" },
  ]);

  // A sibling of the second revision, as replication brings it.
  const rival = `2-${"0".repeat(32)}`;
  const doc = { _id: "a", n: 3, _rev: rival, _revisions: { start: 2, ids: ["0".repeat(32), one.slice(2)] } };
  assert.deepEqual((await post(`${db}/_bulk_docs`, { new_edits: false, docs: [doc] })).json, []);
  const winner = (await get(`${db}/a?conflicts=true`)).json;
  assert.equal(winner._rev, two, "the higher hash wins");
  assert.deepEqual(winner._conflicts, [rival]);
  assert.equal((await get(`${db}/a`)).json._conflicts, undefined);
  assert.equal((await get(`${db}/a?rev=${rival}`)).json.n, 3);

  const json = { headers: { accept: "application/json" } };
  const leaves = (await get(`${db}/a?open_revs=all`, json)).json;
  assert.deepEqual(leaves.map(({ ok }) => ok._rev).sort(), [rival, two].sort());
  const named = (await get(`${db}/a?open_revs=${encodeURIComponent(JSON.stringify([rival, "7-zz"]))}`, json)).json;
  assert.deepEqual(named, [{ ok: { _id: "a", _rev: rival, n: 3 } }, { missing: "7-zz" }]);
  const mixed = await get(`${db}/a?open_revs=all`);
  assert.match(mixed.headers["content-type"], /^multipart\/mixed; boundary="/);

  assert.equal((await del(`${db}/a?rev=${rival}`)).status, 200);
  const resolved = (await get(`${db}/a?conflicts=true&deleted_conflicts=true`)).json;
  assert.equal(resolved._conflicts, undefined);
  assert.equal(resolved._deleted_conflicts.length, 1);
  assert.equal((await put(`${db}/a`, { _rev: rival })).status, 409);
});

test("a longer branch wins over a shorter, a living over a deleted", async (t) => {
  const db = await database(t);
  const docs = [
    { _id: "a", _rev: "1-aa", n: 1 },
    { _id: "a", _rev: "3-00", n: 3, _revisions: { start: 3, ids: ["00", "bb", "cc"] } },
    { _id: "a", _rev: "5-ff", _deleted: true, _revisions: { start: 5, ids: ["ff"] } },
  ];
  await post(`${db}/_bulk_docs`, { new_edits: false, docs });
  const { json } = await get(`${db}/a?conflicts=true`);
  assert.equal(json._rev, "3-00");
  assert.deepEqual(json._conflicts, ["1-aa"]);
});

test("new_edits=false by PUT keeps the revision given and needs one", async (t) => {
  const db = await database(t);
  assert.equal((await put(`${db}/a?new_edits=false`, { _rev: "4-abc", n: 1 })).json.rev, "4-abc");
  assert.equal((await get(`${db}/a`)).json._rev, "4-abc");
  assert.equal((await put(`${db}/b?new_edits=false`, {})).status, 400);
});

test("local documents are kept apart and never conflict", async (t) => {
  const db = await database(t);
  assert.deepEqual((await put(`${db}/_local/a`, { n: 1 })).json, { ok: true, id: "_local/a", rev: "0-1" });
  assert.deepEqual((await get(`${db}/_local/a`)).json, { _id: "_local/a", _rev: "0-1", n: 1 });
  assert.equal((await put(`${db}/_local/a`, { _rev: "0-1", n: 2 })).json.rev, "0-2");
  assert.equal((await put(`${db}/_local/a`, { n: 3 })).json.rev, "0-1");
  assert.deepEqual(
    (await get(`${db}/_local_docs`)).json.rows.map(({ id }) => id),
    ["_local/a"],
  );
  assert.equal((await get(db)).json.doc_count, 0);
  assert.equal((await get(`${db}/_all_docs`)).json.rows.length, 0);
  assert.equal((await del(`${db}/_local/a`)).status, 200);
  assert.equal((await get(`${db}/_local/a`)).status, 404);
});

test("a document can be copied", async (t) => {
  const db = await database(t);
  await put(`${db}/a`, { n: 1 });
  assert.equal((await request("COPY", `${db}/a`, { headers: { destination: "b" } })).status, 201);
  assert.equal((await get(`${db}/b`)).json.n, 1);
  assert.equal((await request("COPY", `${db}/a`, { headers: { destination: "b" } })).status, 409);
});

test("a document survives many changes", async (t) => {
  const db = await database(t);
  let rev;
  for (let n = 1; n <= 30; n += 1) rev = (await put(`${db}/a`, { n, ...(rev ? { _rev: rev } : {}) })).json.rev;
  assert.match(rev, /^30-/);
  assert.equal((await get(`${db}/a?revs=true`)).json._revisions.ids.length, 30);
  assert.equal(await revOf(`${db}/a`), rev);
});
