/** The server and its databases: names, credentials, creation and deletion. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { database, del, get, post, put, request } from "./client.mjs";

test("the root says welcome and names a version that parses", async () => {
  const { status, json } = await get("/", { auth: false });
  assert.equal(status, 200);
  assert.equal(json.couchdb, "Welcome");
  assert.match(json.version, /^3\.\d+\.\d+/);
  assert.equal(typeof json.vendor.name, "string");
});

test("only the root, _up and _session are open to nobody in particular", async (t) => {
  const db = await database(t);
  assert.deepEqual((await get("/_up", { auth: false })).json.status, "ok");
  assert.deepEqual((await get("/_session", { auth: false })).json.userCtx, { name: null, roles: [] });
  for (const [method, path] of [
    ["GET", "/_all_dbs"],
    ["PUT", "/check-new"],
    ["DELETE", db],
  ]) {
    const { status, json } = await request(method, path, { auth: false });
    assert.equal(status, 401, `${method} ${path}`);
    assert.deepEqual(json, { error: "unauthorized", reason: "You are not a server admin." });
  }
  for (const [method, path] of [
    ["GET", db],
    ["GET", `${db}/x`],
    ["PUT", `${db}/x`],
    ["POST", `${db}/_bulk_docs`],
    ["GET", `${db}/_changes`],
  ]) {
    const { status, json } = await request(method, path, { auth: false, ...(method === "GET" ? {} : { body: {} }) });
    assert.equal(status, 401, `${method} ${path}`);
    assert.deepEqual(json, { error: "unauthorized", reason: "You are not authorized to access this db." });
  }
});

test("a wrong password is refused even where none is needed", async () => {
  // Not the administrator's name: after a few failures CouchDB 3.4 locks a name out for minutes (403).
  const wrong = `Basic ${Buffer.from("check-nobody:not-this").toString("base64")}`;
  for (const path of ["/", "/_up", "/_all_dbs"]) {
    const { status, json } = await get(path, { auth: wrong });
    assert.equal(status, 401, path);
    assert.deepEqual(json, { error: "unauthorized", reason: "Name or password is incorrect." });
  }
});

test("a database is created once and deleted once", async (t) => {
  const db = await database(t);
  const again = await put(db);
  assert.equal(again.status, 412);
  assert.equal(again.json.error, "file_exists");
  assert.deepEqual((await del(db)).json, { ok: true });
  const gone = await del(db);
  assert.equal(gone.status, 404);
  assert.deepEqual(gone.json, { error: "not_found", reason: "Database does not exist." });
  assert.equal((await get(db)).status, 404);
  assert.equal((await request("HEAD", db)).status, 404);
});

test("of several creators at once exactly one succeeds", async (t) => {
  const db = "/check-creators";
  t.after(() => del(db));
  await del(db);
  const answers = await Promise.all(Array.from({ length: 8 }, () => put(db)));
  const statuses = answers.map(({ status }) => status).sort();
  assert.deepEqual(statuses, [201, ...Array(7).fill(412)]);
});

test("a slash in a name stays a slash, and makes another name than without", async (t) => {
  t.after(() => Promise.all([del("/check%2Faa%2Fbb-202611"), del("/checkaabb-202611")]));
  assert.equal((await put("/check%2Faa%2Fbb-202611")).status, 201);
  assert.equal((await put("/checkaabb-202611")).status, 201);
  assert.equal((await get("/check%2Faa%2Fbb-202611")).json.db_name, "check/aa/bb-202611");
  const names = (await get("/_all_dbs")).json;
  assert.ok(names.includes("check/aa/bb-202611") && names.includes("checkaabb-202611"));
  assert.match((await put("/check%2Faa%2Fbb-202611/d", {})).headers.location, /\/check%2Faa%2Fbb-202611\/d$/);
  const bare = await get("/check/aa/bb-202611");
  assert.equal(bare.status, 404);
  assert.equal(bare.json.reason, "Database does not exist.");
});

test("illegal names are refused", async () => {
  for (const name of ["Check", "1check", "check.a", "_check", "check%20a", "check+a", "%2Fcheck"]) {
    const { status, json } = await put(`/${name}`);
    assert.equal(status, 400, name);
    assert.equal(json.error, "illegal_database_name", name);
  }
  const long = await put(`/${"a".repeat(300)}`);
  assert.equal(long.status, 400);
  assert.equal(long.json.error, "database_name_too_long");
});

test("a plus in a path is a blank", async (t) => {
  const db = await database(t);
  assert.equal((await put(`${db}/a+b`, {})).json.id, "a b");
  assert.equal((await put(`${db}/a%2Bb`, {})).json.id, "a+b");
});

test("a database counts its documents", async (t) => {
  const db = await database(t);
  const { json: info } = await get(db);
  assert.equal(info.doc_count, 0);
  assert.equal(typeof info.update_seq, "string");
  const { rev } = (await put(`${db}/a`, {})).json;
  await put(`${db}/b`, {});
  await del(`${db}/a?rev=${rev}`);
  const { json: after } = await get(db);
  assert.equal(after.doc_count, 1);
  assert.equal(after.doc_del_count, 1);
  assert.ok(after.sizes);
});

test("the names of databases can be listed from one to another", async (t) => {
  const db = decodeURIComponent((await database(t)).slice(1));
  const inRange = encodeURIComponent(JSON.stringify(db));
  assert.deepEqual((await get(`/_all_dbs?startkey=${inRange}&endkey=${inRange}`)).json, [db]);
  const [known, unknown] = (await post("/_dbs_info", { keys: [db, "check-none"] })).json;
  assert.equal(known.info.db_name, db);
  assert.equal(unknown.error, "not_found");
});

test("security and the limit of revisions are kept", async (t) => {
  const db = await database(t);
  assert.deepEqual((await get(`${db}/_security`)).json, {
    members: { roles: ["_admin"] },
    admins: { roles: ["_admin"] },
  });
  const security = { admins: { names: ["kazoo"], roles: [] }, members: { names: ["kazoo"], roles: [] } };
  assert.deepEqual((await put(`${db}/_security`, security)).json, { ok: true });
  assert.deepEqual((await get(`${db}/_security`)).json, security);
  assert.equal((await get(`${db}/_revs_limit`)).json, 1000);
  assert.deepEqual((await put(`${db}/_revs_limit`, "500")).json, { ok: true });
  assert.equal((await get(`${db}/_revs_limit`)).json, 500);
  assert.equal((await put(`${db}/x`, {})).status, 201, "a server administrator may go on");
});

test("chores are answered", async (t) => {
  const db = await database(t);
  const json = { headers: { "content-type": "application/json" } };
  for (const [name, expected] of [
    ["_ensure_full_commit", 201],
    ["_compact", 202],
    ["_view_cleanup", 202],
  ]) {
    assert.equal((await post(`${db}/${name}`, "", json)).status, expected, name);
    if (name !== "_view_cleanup") assert.equal((await post(`${db}/${name}`, "")).status, 415, name);
  }
  assert.equal((await post(`${db}/_temp_view`, {})).status, 410);
  assert.equal((await get(`${db}/_nothing`)).status, 404);
  assert.equal((await request("PATCH", db)).status, 405);
});

test("answers are JSON and say so, whatever Accept says", async (t) => {
  const db = await database(t);
  for (const path of ["/", "/_all_dbs", db, `${db}/_all_docs`, `${db}/_changes`, `${db}/none`]) {
    const { headers } = await get(path, { headers: { accept: "text/html" } });
    assert.equal(headers["content-type"], "application/json", path);
  }
});

test("a request that makes no sense ends with its answer, and the server goes on", async (t) => {
  const db = await database(t);
  for (const [method, path, body] of [
    ["POST", `${db}/_bulk_docs`, '{"docs":[null]}'],
    ["POST", `${db}/_bulk_docs`, "null"],
    ["POST", `${db}/_bulk_get`, "[]"],
    ["POST", `${db}/_find`, "7"],
    ["POST", `${db}/_all_docs`, "[]"],
    ["PUT", `${db}/x`, "null"],
    ["PUT", `${db}/x`, '"text"'],
    ["GET", `${db}/_all_docs?keys=7`],
    ["GET", `${db}/x?open_revs=7`],
    ["GET", "/%E0%A4%A"],
  ]) {
    const { status } = await request(method, path, { body, headers: { "content-type": "application/json" } });
    assert.ok(status >= 400, `${method} ${path} ${body} was ${status}`);
  }
  assert.equal((await get("/_up")).status, 200);
});

test("a body that nobody wants is refused before it is sent", async () => {
  // The client asks first; a server that answers without "100 Continue" spares it the upload.
  const status = await new Promise((resolve, reject) => {
    const path = "/check-none/doc/a.mp3";
    const headers = { expect: "100-continue", "content-length": 1_000_000, "content-type": "audio/mpeg" };
    request("PUT", path, {
      headers,
      agent: false,
      body: (sent) => {
        sent.on("continue", () => reject(new Error("was told to go on")));
        sent.flushHeaders();
      },
    }).then((answer) => resolve(answer.status), reject);
  });
  assert.equal(status, 404);
});

test("the stand-in can be told from the real one, by its variant", async () => {
  const { name, variant } = (await get("/")).json.vendor;
  assert.equal(name, "The Apache Software Foundation");
  assert.match(variant ?? "", /^(kz-record-call couchdb stand-in)?$/);
});
