/** For the stand-in alone: what was answered is still there after the process was killed. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import os from "node:os";
import path from "node:path";
import { test } from "node:test";

const SERVER = new URL("../server.mjs", import.meta.url).pathname;

async function freePort() {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  return port;
}

function start(port, folder) {
  const env = {
    ...process.env,
    PORT: port,
    BIND: "127.0.0.1",
    DATA_DIR: folder,
    COUCHDB_USER: "admin",
    COUCHDB_PASSWORD: "secret",
  };
  const child = spawn(process.execPath, [SERVER], { env, stdio: ["ignore", "pipe", "inherit"] });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", () => reject(new Error("it ended")));
    child.stdout.on("data", (text) => String(text).includes("couchdb stand-in has started") && resolve(child));
  });
}

test("a killed server loses nothing it has answered", async (t) => {
  const folder = mkdtempSync(path.join(os.tmpdir(), "couchdb-standin-"));
  const port = await freePort();
  let child = await start(port, folder);
  t.after(() => {
    child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });
  const ask = async (method, at, body, type = "application/json") => {
    const authorization = `Basic ${Buffer.from("admin:secret").toString("base64")}`;
    const answer = await fetch(`http://127.0.0.1:${port}${at}`, {
      method,
      body,
      headers: { authorization, "content-type": type },
    });
    return { status: answer.status, text: await answer.text() };
  };
  await ask("PUT", "/a%2Fb");
  await ask("PUT", "/gone");
  await ask("DELETE", "/gone");
  const one = JSON.parse((await ask("PUT", "/a%2Fb/doc/x.mp3", "hello", "audio/mpeg")).text);
  await ask("PUT", "/a%2Fb/doc", JSON.stringify({ _rev: one.rev, n: 2, _attachments: { "x.mp3": { stub: true } } }));
  await ask("PUT", "/a%2Fb/_local/l", '{"n":1}');
  await ask("PUT", "/a%2Fb/_security", '{"admins":{"names":["k"]}}');
  const paths = [
    "/_all_dbs",
    "/a%2Fb/doc?revs=true",
    `/a%2Fb/doc?rev=${one.rev}`,
    "/a%2Fb/doc/x.mp3",
    "/a%2Fb/_local/l",
    "/a%2Fb/_security",
    "/a%2Fb/_changes",
  ];
  const before = await Promise.all(paths.map((at) => ask("GET", at)));

  child.kill("SIGKILL");
  await once(child, "exit");
  // A line that was cut in the middle of a write must not be in the way.
  const [name] = readdirSync(folder).filter((entry) => !entry.startsWith("removed-"));
  appendFileSync(path.join(folder, name, "log"), '{"op":"document","id":"cut","pa');
  child = await start(port, folder);
  assert.deepEqual(await Promise.all(paths.map((at) => ask("GET", at))), before);
  assert.equal((await ask("PUT", "/a%2Fb/cut", "{}")).status, 201);

  child.kill("SIGTERM");
  await once(child, "exit");
  child = await start(port, folder);
  assert.equal((await ask("GET", "/a%2Fb/cut")).status, 200);
});
