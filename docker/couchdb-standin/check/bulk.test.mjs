/** Many documents at once: writing, reading, listing. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { database, del, get, post, put } from "./client.mjs";

const key = (value) => encodeURIComponent(JSON.stringify(value));

test("a bulk write is 201 and tells of each row", async (t) => {
  const db = await database(t);
  await put(`${db}/taken`, {});
  const answer = await post(`${db}/_bulk_docs`, {
    docs: [{ _id: "a", n: 1 }, { _id: "a", n: 2 }, { _id: "taken" }, { n: 3 }],
  });
  assert.equal(answer.status, 201);
  const [first, twice, taken, unnamed] = answer.json;
  assert.deepEqual([first.ok, first.id], [true, "a"]);
  assert.deepEqual(twice, { id: "a", error: "conflict", reason: "Document update conflict." });
  assert.deepEqual(taken, { id: "taken", error: "conflict", reason: "Document update conflict." });
  assert.match(unnamed.id, /^[0-9a-f]{32}$/);
  assert.equal((await get(`${db}/a`)).json.n, 1);

  const changed = await post(`${db}/_bulk_docs`, {
    docs: [
      { _id: "a", _rev: first.rev, n: 5 },
      { _id: "taken", _rev: "1-0", _deleted: true },
    ],
  });
  assert.match(changed.json[0].rev, /^2-/);
  assert.equal(changed.json[1].error, "conflict");
});

test("one bad document fails the whole request", async (t) => {
  const db = await database(t);
  for (const [bad, error] of [
    [{ _id: "b", _foo: 1 }, "doc_validation"],
    [{ _id: "_b" }, "illegal_docid"],
    [{ _id: "b", _rev: "x" }, "bad_request"],
    [7, "bad_request"],
  ]) {
    const { status, json } = await post(`${db}/_bulk_docs`, { docs: [{ _id: "a" }, bad] });
    assert.equal(status, 400);
    assert.equal(json.error, error);
  }
  const large = await post(`${db}/_bulk_docs`, { docs: [{ _id: "a" }, { _id: "large", text: "x".repeat(8_000_001) }] });
  assert.equal(large.status, 413);
  assert.deepEqual(large.json, { error: "document_too_large", reason: "large" });
  assert.equal((await get(`${db}/a`)).status, 404, "nothing was stored");
  // A stub is looked at shard by shard: other rows may have been stored by then, or not.
  const stub = { _id: "c", _attachments: { "no.mp3": { stub: true } } };
  assert.equal((await post(`${db}/_bulk_docs`, { docs: [{ _id: "b" }, stub] })).status, 412);
  assert.equal((await get(`${db}/c`)).status, 404);
});

test("a bulk write needs documents, and JSON", async (t) => {
  const db = await database(t);
  assert.equal((await post(`${db}/_bulk_docs`, {})).status, 400);
  assert.equal((await post(`${db}/_bulk_docs`, { docs: 7 })).status, 400);
  assert.equal((await post(`${db}/_bulk_docs`, "{}", { headers: { "content-type": "text/plain" } })).status, 415);
  assert.equal((await post(`${db}/_bulk_docs`, { docs: [{ _id: "a" }], all_or_nothing: true })).status, 417);
  assert.deepEqual((await post(`${db}/_bulk_docs`, { docs: [] })).json, []);
});

test("a bulk update that forgets the stub drops the attachment", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a/x.mp3`, "hello", { headers: { "content-type": "audio/mpeg" } })).json;
  const [kept] = (
    await post(`${db}/_bulk_docs`, { docs: [{ _id: "a", _rev: rev, _attachments: { "x.mp3": { stub: true } } }] })
  ).json;
  assert.equal((await get(`${db}/a`)).json._attachments["x.mp3"].length, 5);
  await post(`${db}/_bulk_docs`, { docs: [{ _id: "a", _rev: kept.rev }] });
  assert.equal((await get(`${db}/a`)).json._attachments, undefined);
});

test("two thousand documents at once, from several clients", async (t) => {
  const db = await database(t);
  const batch = (from) => ({ docs: Array.from({ length: 500 }, (_, n) => ({ _id: `d${from + n}`, n: from + n })) });
  const answers = await Promise.all([0, 500, 1000, 1500].map((from) => post(`${db}/_bulk_docs`, batch(from))));
  assert.ok(answers.every(({ status, json }) => status === 201 && json.every(({ ok }) => ok)));
  assert.equal((await get(`${db}/_all_docs?limit=0`)).json.total_rows, 2000);
});

test("all documents are listed in the order of their ids, and ranges of them", async (t) => {
  const db = await database(t);
  await post(`${db}/_bulk_docs`, { docs: ["b", "a", "B", "_design/x", "ä", "a!1", "1"].map((_id) => ({ _id })) });
  const all = (await get(`${db}/_all_docs`)).json;
  assert.deepEqual(
    all.rows.map(({ id }) => id),
    ["1", "B", "_design/x", "a", "a!1", "b", "ä"],
  );
  assert.equal(all.total_rows, 7);
  assert.deepEqual(Object.keys(all.rows[0]), ["id", "key", "value"]);
  const ids = async (query) => (await get(`${db}/_all_docs?${query}`)).json.rows.map(({ id }) => id);
  assert.deepEqual(await ids(`startkey=${key("a")}&endkey=${key("a\ufff0")}`), ["a", "a!1"]);
  assert.deepEqual(await ids(`startkey=${key("a!")}&endkey=${key('a"')}`), ["a!1"]);
  assert.deepEqual(await ids(`startkey=${key("a")}&endkey=${key("b")}&inclusive_end=false`), ["a", "a!1"]);
  assert.deepEqual(await ids("descending=true&limit=2"), ["ä", "b"]);
  assert.deepEqual(await ids("skip=5"), ["b", "ä"]);
  assert.deepEqual(await ids(`key=${key("b")}`), ["b"]);
  assert.deepEqual(
    (await get(`${db}/_design_docs`)).json.rows.map(({ id }) => id),
    ["_design/x"],
  );
});

test("documents can be listed by key, with their content and their conflicts", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/gone`, {})).json;
  const deleted = (await del(`${db}/gone?rev=${rev}`)).json.rev;
  const { rev: here } = (await put(`${db}/a`, { n: 1 })).json;
  const rival = `1-${"0".repeat(32)}`;
  await post(`${db}/_bulk_docs`, { new_edits: false, docs: [{ _id: "a", _rev: rival, n: 2 }] });
  const { rows } = (
    await post(`${db}/_all_docs?include_docs=true&conflicts=true`, { keys: ["a", "none", "gone", "a"] })
  ).json;
  assert.deepEqual(rows[0].doc, { _id: "a", _rev: here, n: 1, _conflicts: [rival] });
  assert.deepEqual(rows[1], { key: "none", error: "not_found" });
  assert.deepEqual(rows[2], { id: "gone", key: "gone", value: { rev: deleted, deleted: true }, doc: null });
  assert.equal(rows[3].id, "a");
});

test("bad parameters are refused", async (t) => {
  const db = await database(t);
  for (const query of ["limit=x", "limit=-1", "skip=-1", "descending=perhaps", "startkey=x"]) {
    assert.equal((await get(`${db}/_all_docs?${query}`)).status, 400, query);
  }
  assert.equal((await post(`${db}/_all_docs`, { keys: 7 })).status, 400);
  assert.equal((await post(`${db}/_all_docs`, "{}", { headers: { "content-type": "text/plain" } })).status, 415);
});

test("documents can be fetched in bulk, by revision or all their leaves", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, { n: 1 })).json;
  const rival = `1-${"0".repeat(32)}`;
  await post(`${db}/_bulk_docs`, { new_edits: false, docs: [{ _id: "a", _rev: rival, n: 2 }] });
  const { results } = (
    await post(`${db}/_bulk_get`, { docs: [{ id: "a" }, { id: "a", rev }, { id: "a", rev: "9-x" }, { id: "none" }] })
  ).json;
  assert.deepEqual(results[0].docs.map(({ ok }) => ok._rev).sort(), [rival, rev].sort());
  assert.deepEqual(results[1], { id: "a", docs: [{ ok: { _id: "a", _rev: rev, n: 1 } }] });
  assert.equal(results[2].docs[0].error.error, "not_found");
  assert.equal(results[3].docs[0].error.error, "not_found");
  assert.deepEqual(
    (await post(`${db}/_bulk_get?revs=true`, { docs: [{ id: "a", rev }] })).json.results[0].docs[0].ok._revisions.start,
    1,
  );
});

test("what is missing can be asked for, and documents purged", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, {})).json;
  const diff = (await post(`${db}/_revs_diff`, { a: [rev, "9-x"], b: ["1-x"] })).json;
  assert.deepEqual(diff.a.missing, ["9-x"]);
  assert.deepEqual(diff.b.missing, ["1-x"]);
  const purged = await post(`${db}/_purge`, { a: [rev] });
  assert.equal(purged.status, 201);
  assert.deepEqual(purged.json.purged, { a: [rev] });
  assert.deepEqual((await get(`${db}/a`)).json, { error: "not_found", reason: "missing" });
});
