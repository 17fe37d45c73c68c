/** Views, and queries by selector. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { database, del, get, post, put } from "./client.mjs";

const enc = (value) => encodeURIComponent(JSON.stringify(value));

/** Six documents, of two kinds, and a design document over them. */
async function filled(t) {
  const db = await database(t);
  const views = {
    by_kind: { map: "function (doc) { if (doc.kind) emit([doc.kind, doc.n], {n: doc.n}); }" },
    sums: { map: "function (doc) { if (doc.kind) emit(doc.kind, doc.n); }", reduce: "_sum" },
    counts: { map: "function (doc) { if (doc.kind) emit([doc.kind, doc.n % 2], null); }", reduce: "_count" },
    linked: { map: "function (doc) { if (doc.kind === 'x') emit(doc.n, {_id: 'f'}); }" },
    faulty: { map: "function (doc) { emit(doc.nothing.at.all, 1); }" },
  };
  assert.equal((await put(`${db}/_design/v`, { views })).status, 201);
  const docs = ["a", "b", "c", "d", "e", "f"].map((_id, n) => ({ _id, kind: "xy"[n % 2], n }));
  await post(`${db}/_bulk_docs`, { docs });
  return { db, view: `${db}/_design/v/_view` };
}

const ids = ({ json }) => json.rows.map(({ id }) => id);

test("a view gives rows in the order of their keys", async (t) => {
  const { view } = await filled(t);
  const { json } = await get(`${view}/by_kind`);
  assert.equal(json.total_rows, 6);
  assert.equal(json.offset, 0);
  assert.deepEqual(json.rows[0], { id: "a", key: ["x", 0], value: { n: 0 } });
  assert.deepEqual(
    json.rows.map(({ id }) => id),
    ["a", "c", "e", "b", "d", "f"],
  );
});

test("a view can be asked for keys, ranges and pages", async (t) => {
  const { view } = await filled(t);
  const asked = async (query) => ids(await get(`${view}/by_kind?${query}`));
  assert.deepEqual(await asked(`key=${enc(["x", 2])}`), ["c"]);
  assert.deepEqual(await asked(`keys=${enc([["y", 1], ["q"], ["x", 0]])}`), ["b", "a"]);
  assert.deepEqual(await asked(`startkey=${enc(["x"])}&endkey=${enc(["x", {}])}`), ["a", "c", "e"]);
  assert.deepEqual(await asked(`startkey=${enc(["x", 2])}&limit=2`), ["c", "e"]);
  assert.deepEqual(await asked(`endkey=${enc(["x", 2])}&inclusive_end=false`), ["a"]);
  assert.deepEqual(await asked("descending=true&limit=2"), ["f", "d"]);
  assert.deepEqual(await asked(`descending=true&startkey=${enc(["x", {}])}&endkey=${enc(["x"])}`), ["e", "c", "a"]);
  assert.deepEqual(await asked("skip=4"), ["d", "f"]);
  assert.deepEqual(await asked("limit=0"), []);
  assert.deepEqual(await asked(`startkey=${enc(["x", 0])}&startkey_docid=b`), ["c", "e", "b", "d", "f"]);
  assert.deepEqual(ids(await post(`${view}/by_kind`, { keys: [["x", 0]] })), ["a"]);
  assert.deepEqual(ids(await post(`${view}/by_kind`, { startkey: ["y"], limit: 1 })), ["b"]);
  const { results } = (await post(`${view}/by_kind/queries`, { queries: [{ limit: 1 }, { keys: [["y", 5]] }] })).json;
  assert.deepEqual(
    results.map(({ rows }) => rows[0].id),
    ["a", "f"],
  );
});

test("a view follows what happens to the documents", async (t) => {
  const { db, view } = await filled(t);
  await get(`${view}/by_kind`);
  const a = (await get(`${db}/a`)).json;
  await put(`${db}/a`, { ...a, n: 9 });
  await del(`${db}/c?rev=${(await get(`${db}/c`)).json._rev}`);
  await put(`${db}/g`, { kind: "x", n: 5 });
  const { json } = await get(`${view}/by_kind?endkey=${enc(["x", {}])}`);
  assert.deepEqual(
    json.rows.map(({ id, key }) => [id, key[1]]),
    [
      ["e", 4],
      ["g", 5],
      ["a", 9],
    ],
  );
  assert.equal((await get(`${view}/by_kind?update=false`)).status, 200);
  assert.equal((await get(`${view}/by_kind?update=lazy`)).status, 200);
});

test("a view includes documents, linked ones and conflicts", async (t) => {
  const { db, view } = await filled(t);
  const { rev } = (await put(`${db}/h`, { kind: "z", n: 1 })).json;
  const rival = `1-${"0".repeat(32)}`;
  await post(`${db}/_bulk_docs`, { new_edits: false, docs: [{ _id: "h", _rev: rival }] });
  const [row] = (await get(`${view}/by_kind?startkey=${enc(["z"])}&include_docs=true&conflicts=true`)).json.rows;
  assert.deepEqual(row.doc, { _id: "h", _rev: rev, kind: "z", n: 1, _conflicts: [rival] });
  const [linked] = (await get(`${view}/linked?include_docs=true&limit=1`)).json.rows;
  assert.equal(linked.id, "a");
  assert.equal(linked.doc._id, "f");
});

test("a view reduces, by group or altogether", async (t) => {
  const { view } = await filled(t);
  assert.deepEqual((await get(`${view}/sums`)).json, { rows: [{ key: null, value: 15 }] });
  assert.deepEqual((await get(`${view}/sums?group=true`)).json.rows, [
    { key: "x", value: 6 },
    { key: "y", value: 9 },
  ]);
  assert.deepEqual((await get(`${view}/counts?group_level=1`)).json.rows, [
    { key: ["x"], value: 3 },
    { key: ["y"], value: 3 },
  ]);
  assert.equal((await get(`${view}/sums?reduce=false`)).json.rows.length, 6);
});

test("an index over fields is asked as a view", async (t) => {
  const db = await database(t);
  const map = { fields: { kind: "asc", n: "asc" }, partial_filter_selector: { open: { $eq: true } } };
  const views = { by_kind: { map, options: { def: { fields: ["kind", "n"] } } } };
  const design = { language: "query", autoupdate: false, views };
  assert.equal((await put(`${db}/_design/q`, design)).status, 201);
  const docs = ["a", "b", "c", "d"].map((_id, n) => ({ _id, kind: "x", n, open: n !== 1 }));
  await post(`${db}/_bulk_docs`, { docs: [...docs, { _id: "e", kind: "x", open: true }] });
  const view = `${db}/_design/q/_view/by_kind`;
  const { json } = await get(view);
  assert.deepEqual(json.rows[0], { id: "a", key: ["x", 0], value: null });
  assert.deepEqual(ids({ json }), ["a", "c", "d"]);
  assert.deepEqual(ids(await get(`${view}?startkey=${enc(["x", 1])}&endkey=${enc(["x", 2])}`)), ["c"]);
  assert.deepEqual(ids(await get(`${view}?key=${enc(["x", 3])}&include_docs=true`)), ["d"]);
  await del(`${db}/d?rev=${(await get(`${db}/d`)).json._rev}`);
  assert.deepEqual(ids(await get(view)), ["a", "c"]);
});

test("what makes no sense for a view is refused", async (t) => {
  const { db, view } = await filled(t);
  for (const query of [
    "limit=x",
    "limit=-1",
    "skip=-1",
    "descending=perhaps",
    "key=x",
    "update=perhaps",
    "reduce=true",
    "group=true",
    `startkey=${enc(["z"])}&endkey=${enc(["a"])}`,
  ]) {
    assert.equal((await get(`${view}/by_kind?${query}`)).status, 400, query);
  }
  assert.equal((await get(`${view}/sums?include_docs=true`)).status, 400);
  assert.deepEqual((await get(`${view}/none`)).json, { error: "not_found", reason: "missing_named_view" });
  assert.deepEqual((await get(`${db}/_design/none/_view/v`)).json, { error: "not_found", reason: "missing" });
  assert.equal((await post(`${view}/by_kind`, "{}", { headers: { "content-type": "text/plain" } })).status, 415);
  assert.deepEqual((await get(`${view}/faulty`)).json.rows, [], "a document on which the function fails has no row");
});

test("a design document that does not compile is not stored", async (t) => {
  const db = await database(t);
  const bad = { views: { v: { map: "function (doc) {" } } };
  const answer = await put(`${db}/_design/bad`, bad);
  assert.equal(answer.status, 400);
  assert.equal(answer.json.error, "compilation_error");
  const { status, json } = await post(`${db}/_bulk_docs`, { docs: [{ _id: "_design/bad", ...bad }, { _id: "a" }] });
  assert.equal(status, 201);
  assert.equal(json[0].error, "compilation_error");
  assert.equal(json[1].ok, true);
});

test("a changed design document changes the view", async (t) => {
  const { db, view } = await filled(t);
  const design = (await get(`${db}/_design/v`)).json;
  design.views.by_kind.map = "function (doc) { if (doc.kind) emit(-doc.n, null); }";
  await put(`${db}/_design/v`, design);
  assert.deepEqual(ids(await get(`${view}/by_kind?limit=2`)), ["f", "e"]);
});

test("keys of all kinds come in CouchDB's order", async (t) => {
  const db = await database(t);
  const keys = [
    ...[null, false, true, -1, 0, 1, 1.5, "", "_", "~", "1", "a", "A", "á", "aa", "ab", "b", "B"],
    ...[[], [1], ["a"], ["b"], {}, { a: 1 }, { a: 2 }, { b: 1 }, { b: 1, c: 1 }],
  ];
  const shuffled = [...keys].sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? 1 : -1));
  await put(`${db}/a`, { keys: shuffled });
  await put(`${db}/_design/v`, {
    views: { v: { map: "function (doc) { doc.keys.forEach(function (key) { emit(key, null); }); }" } },
  });
  assert.deepEqual(
    (await get(`${db}/_design/v/_view/v`)).json.rows.map(({ key }) => key),
    keys,
  );
});

// --- selectors --------------------------------------------------------------------------------------------------------

test("documents are found by selector", async (t) => {
  const { db } = await filled(t);
  const found = async (selector) => (await post(`${db}/_find`, { selector })).json.docs.map(({ _id }) => _id).sort();
  assert.deepEqual(await found({ kind: "x" }), ["a", "c", "e"]);
  assert.deepEqual(await found({ n: { $gt: 1, $lte: 4 } }), ["c", "d", "e"]);
  assert.deepEqual(await found({ kind: { $in: ["y"] }, n: { $ne: 3 } }), ["b", "f"]);
  assert.deepEqual(await found({ $or: [{ n: 0 }, { n: 5 }] }), ["a", "f"]);
  assert.deepEqual(await found({ $and: [{ kind: "x" }, { $not: { n: 0 } }] }), ["c", "e"]);
  assert.deepEqual(await found({ kind: { $exists: false } }), []);
  assert.deepEqual(await found({ nothing: { $ne: 1 } }), []);
  assert.deepEqual(await found({ kind: { $regex: "^[x]$" }, n: { $lt: 3 } }), ["a", "c"]);
  const { docs } = (await post(`${db}/_find`, { selector: { kind: "x" }, fields: ["_id", "n", "none"], limit: 1 }))
    .json;
  assert.deepEqual(Object.keys(docs[0]), ["_id", "n"]);
});

test("an index is made once, listed, used for sorting, and removed", async (t) => {
  const { db } = await filled(t);
  const unsorted = await post(`${db}/_find`, { selector: { n: { $gt: 0 } }, sort: ["n"] });
  assert.equal(unsorted.status, 400);
  assert.equal(unsorted.json.error, "no_usable_index");
  assert.match((await post(`${db}/_find`, { selector: { n: { $gt: 0 } } })).json.warning, /No matching index found/);

  const index = { index: { fields: ["n"] }, ddoc: "by-n", name: "n", type: "json" };
  assert.deepEqual((await post(`${db}/_index`, index)).json, { result: "created", id: "_design/by-n", name: "n" });
  assert.equal((await post(`${db}/_index`, index)).json.result, "exists");
  assert.deepEqual(
    (await get(`${db}/_index`)).json.indexes.map(({ name }) => name),
    ["_all_docs", "n"],
  );

  const first = (await post(`${db}/_find`, { selector: { n: { $gt: 0 } }, sort: [{ n: "desc" }], limit: 2 })).json;
  assert.deepEqual(
    first.docs.map(({ n }) => n),
    [5, 4],
  );
  assert.equal(first.warning, undefined);
  const next = (
    await post(`${db}/_find`, {
      selector: { n: { $gt: 0 } },
      sort: [{ n: "desc" }],
      limit: 2,
      bookmark: first.bookmark,
    })
  ).json;
  assert.deepEqual(
    next.docs.map(({ n }) => n),
    [3, 2],
  );

  assert.deepEqual((await del(`${db}/_index/_design/by-n/json/n`)).json, { ok: true });
  assert.equal((await del(`${db}/_index/_design/by-n/json/n`)).status, 404);
});

test("a query that makes no sense is refused", async (t) => {
  const db = await database(t);
  for (const [body, error] of [
    [{}, "missing_required_key"],
    [{ selector: 3 }, "invalid_selector_json"],
    [{ selector: { n: { $foo: 1 } } }, "invalid_operator"],
    [{ selector: {}, limit: -1 }, "invalid_non_neg_integer"],
    [{ selector: { n: 1 }, bookmark: "qq" }, "invalid_bookmark"],
  ]) {
    const { status, json } = await post(`${db}/_find`, body);
    assert.equal(status, 400, JSON.stringify(body));
    assert.equal(json.error, error);
  }
  assert.equal((await post(`${db}/_find`, "{}", { headers: { "content-type": "text/plain" } })).status, 415);
  assert.equal((await get(`${db}/_find`)).status, 405);
});
