/** The changes feed. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { database, del, get, post, put } from "./client.mjs";

test("each document is in the feed once, with its latest revision", async (t) => {
  const db = await database(t);
  const { rev } = (await put(`${db}/a`, { n: 1 })).json;
  const latest = (await put(`${db}/a`, { _rev: rev, n: 2 })).json.rev;
  const b = (await put(`${db}/b`, {})).json.rev;
  const deleted = (await del(`${db}/b?rev=${b}`)).json.rev;
  const { results, last_seq: last, pending } = (await get(`${db}/_changes?include_docs=true`)).json;
  assert.equal(results.length, 2);
  assert.equal(pending, 0);
  assert.equal(typeof last, "string");
  const byId = Object.fromEntries(results.map((row) => [row.id, row]));
  assert.deepEqual(byId.a.changes, [{ rev: latest }]);
  assert.equal(byId.a.doc.n, 2);
  assert.equal(byId.b.deleted, true);
  assert.deepEqual(byId.b.changes, [{ rev: deleted }]);
});

test("the feed goes on from where it was left", async (t) => {
  const db = await database(t);
  await put(`${db}/a`, {});
  const { last_seq: since } = (await get(`${db}/_changes`)).json;
  assert.deepEqual((await get(`${db}/_changes?since=${since}`)).json.results, []);
  await put(`${db}/b`, {});
  assert.deepEqual(
    (await get(`${db}/_changes?since=${since}`)).json.results.map(({ id }) => id),
    ["b"],
  );
  assert.deepEqual((await get(`${db}/_changes?since=now`)).json.results, []);
  assert.equal((await get(`${db}/_changes?limit=1`)).json.results.length, 1);
  assert.equal((await get(`${db}/_changes?limit=1`)).json.pending, 1);
  assert.equal((await get(`${db}/_changes?since=zzz`)).status, 400);
  assert.equal((await get(`${db}/_changes?feed=zzz`)).status, 400);
});

test("the feed can be narrowed", async (t) => {
  const db = await database(t);
  await post(`${db}/_bulk_docs`, { docs: [{ _id: "a", n: 1 }, { _id: "b", n: 2 }, { _id: "_design/d" }] });
  const ids = ({ json }) => json.results.map(({ id }) => id);
  assert.deepEqual(ids(await get(`${db}/_changes?filter=_doc_ids&doc_ids=["a"]`)), ["a"]);
  assert.deepEqual(ids(await post(`${db}/_changes?filter=_doc_ids`, { doc_ids: ["b", "none"] })), ["b"]);
  assert.deepEqual(ids(await post(`${db}/_changes?filter=_selector`, { selector: { n: 2 } })), ["b"]);
  assert.deepEqual(ids(await get(`${db}/_changes?filter=_design`)), ["_design/d"]);
  assert.equal((await get(`${db}/_changes?filter=none/such`)).status, 404);
});

test("longpoll waits for a change, or for its time-out", async (t) => {
  const db = await database(t);
  const started = Date.now();
  const idle = await get(`${db}/_changes?feed=longpoll&since=now&timeout=400`);
  assert.deepEqual(idle.json.results, []);
  assert.ok(Date.now() - started >= 300, "it came back too early");

  const waiting = get(`${db}/_changes?feed=longpoll&since=now&timeout=20000`);
  await sleep(200);
  await put(`${db}/a`, {});
  const { results } = (await waiting).json;
  assert.deepEqual(
    results.map(({ id }) => id),
    ["a"],
  );
  assert.ok(Date.now() - started < 10_000);
});

test("continuous gives a line per change and ends after its time-out", async (t) => {
  const db = await database(t);
  await put(`${db}/a`, {});
  const waiting = get(`${db}/_changes?feed=continuous&timeout=1000`);
  await sleep(200);
  await put(`${db}/b`, {});
  const lines = (await waiting).text
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    lines.slice(0, -1).map(({ id }) => id),
    ["a", "b"],
  );
  assert.equal(typeof lines.at(-1).last_seq, "string");
});

test("conflicting leaves are in the feed with style=all_docs", async (t) => {
  const db = await database(t);
  await put(`${db}/a`, {});
  await post(`${db}/_bulk_docs`, { new_edits: false, docs: [{ _id: "a", _rev: `1-${"0".repeat(32)}` }] });
  assert.equal((await get(`${db}/_changes`)).json.results[0].changes.length, 1);
  assert.equal((await get(`${db}/_changes?style=all_docs`)).json.results[0].changes.length, 2);
});
