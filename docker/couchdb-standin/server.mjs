/**
 * The way in: reads the settings from the environment, opens the data folder, listens.
 *
 * COUCHDB_USER, COUCHDB_PASSWORD  the administrator, as the official image has them; both are needed
 * PORT                            default 5984; 0 takes a free one
 * BIND                            default 0.0.0.0
 * DATA_DIR                        default ./data; what is in it is served again after a restart
 * LOG_REQUESTS                    any value: one line a request on stdout
 */
import http from "node:http";

import { Credentials } from "./lib/auth.mjs";
import { Exchange } from "./lib/exchange.mjs";
import { route } from "./lib/routes.mjs";
import { Store } from "./lib/store.mjs";

const { COUCHDB_USER, COUCHDB_PASSWORD, LOG_REQUESTS } = process.env;
const port = Number(process.env.PORT ?? 5984);
const bind = process.env.BIND ?? "0.0.0.0";

if (!COUCHDB_USER || !COUCHDB_PASSWORD) {
  console.error("set COUCHDB_USER and COUCHDB_PASSWORD: CouchDB 3 does not run without an administrator");
  process.exit(64);
}

const server = {
  store: Store.open(process.env.DATA_DIR ?? "./data"),
  credentials: new Credentials(COUCHDB_USER, COUCHDB_PASSWORD),
};

/** Whatever goes wrong in one request ends that request, never the process. */
async function answer(request, response) {
  const started = performance.now();
  const exchange = new Exchange(request, response);
  try {
    exchange.parse();
    await route(server, exchange);
  } catch (error) {
    await exchange.fail(error);
  }
  if (LOG_REQUESTS) {
    console.log(
      `${request.method} ${request.url} ${response.statusCode} ${(performance.now() - started).toFixed(1)} ms`,
    );
  }
}

const listener = http.createServer({ maxHeaderSize: 256 * 1024, requestTimeout: 0, keepAliveTimeout: 120_000 });
listener.on("request", answer);
// The client is told to go on only when something reads its body: an upload that is refused is never sent.
listener.on("checkContinue", answer);

process.on("uncaughtException", (error) => console.error("uncaught:", error));
process.on("unhandledRejection", (error) => console.error("unhandled:", error));
// Every write is handed to the system before it is answered, so there is nothing to save.
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));

listener.on("error", (error) => {
  console.error(`cannot listen on ${bind}:${port}: ${error.message}`);
  process.exit(1);
});
listener.listen(port, bind, 1024, () => {
  console.log(`couchdb stand-in has started on http://${bind}:${listener.address().port}`);
});
