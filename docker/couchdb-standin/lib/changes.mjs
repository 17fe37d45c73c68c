/**
 * The changes feed: normal, longpoll, continuous and eventsource.
 *
 * Sequences are opaque to clients, as CouchDB's are: a number, a dash, and something nobody may rely on. The order is that of
 * writing, which CouchDB with several shards does not promise.
 */
import { once } from "node:events";

import { toJson } from "./edits.mjs";
import { badRequest, notFound } from "./errors.mjs";
import { matcher } from "./selector.mjs";

const FEEDS = ["normal", "continuous", "live", "longpoll", "eventsource"];
const DEFAULT_TIMEOUT_MS = 60_000;

export const sequence = (number) => `${number}-standin`;

function parseSince(text, database) {
  if (text === "now") return database.seq;
  if (text === "" || text === "0" || text === "null") return 0;
  const match = /^"?(\d+)-.+$/.exec(text);
  if (!match) throw badRequest("Malformed sequence supplied in 'since' parameter.");
  return Number(match[1]);
}

function parseFilter(exchange, database, body) {
  const name = exchange.query.get("filter");
  switch (name) {
    case null:
      return () => true;
    case "_doc_ids": {
      const ids = new Set(body?.doc_ids ?? exchange.jsonParameter("doc_ids"));
      return (tree) => ids.has(tree.id);
    }
    case "_design":
      return (tree) => tree.id.startsWith("_design/");
    case "_selector": {
      if (body?.selector === undefined) throw badRequest("Selector must be specified in POST payload");
      const matches = matcher(body.selector);
      return (tree) => matches(toJson(database, tree, tree.winner));
    }
    default:
      // Filters of design documents are not there; CouchDB says the same of one that does not exist.
      throw notFound("missing");
  }
}

export async function answerChanges(exchange, database) {
  let body;
  if (exchange.method === "POST") {
    exchange.requireJson();
    body = await exchange.json();
  }
  const { query } = exchange;
  const feed = query.get("feed") ?? "normal";
  if (!FEEDS.includes(feed)) {
    throw badRequest("Supported `feed` types: normal, continuous, live, longpoll, eventsource");
  }
  const filter = parseFilter(exchange, database, body);
  const limit = exchange.number("limit", Infinity);
  const descending = exchange.flag("descending");
  let position = parseSince(exchange.header("last-event-id") ?? query.get("since") ?? "0", database);
  const timeout = exchange.number("timeout", DEFAULT_TIMEOUT_MS);
  const heartbeat = query.get("heartbeat") === "true" ? DEFAULT_TIMEOUT_MS : exchange.number("heartbeat", 0);
  const options = { conflicts: exchange.flag("conflicts") };

  const row = (change) => {
    const tree = database.documents.get(change.id);
    const revs = query.get("style") === "all_docs" ? tree.leaves() : [tree.winner];
    const made = { seq: sequence(change.seq), id: change.id, changes: revs.map(({ rev }) => ({ rev })) };
    if (tree.winner.deleted) made.deleted = true;
    if (exchange.flag("include_docs")) made.doc = toJson(database, tree, tree.winner, options);
    return made;
  };
  let left = limit;
  /** What came since `position`, which moves on. */
  const take = () => {
    const current = database.changes.filter((change) => change.seq > position && database.isCurrent(change));
    if (descending) current.reverse();
    const rows = [];
    let pending = current.length;
    for (const change of current) {
      if (left <= 0) return { rows, pending };
      pending -= 1;
      position = descending ? position : change.seq;
      if (!filter(database.documents.get(change.id))) continue;
      rows.push(row(change));
      left -= 1;
    }
    position = descending ? position : database.seq;
    return { rows, pending };
  };
  const last = (pending, rows = []) => ({
    last_seq: descending && rows.length > 0 ? rows.at(-1).seq : sequence(position),
    pending,
  });
  const closing = (pending, rows) => `\n],\n${JSON.stringify(last(pending, rows)).slice(1, -1)}}\n\n`;

  if (feed === "normal") {
    const { rows, pending } = take();
    exchange.sendRows(
      '{"results":[\n',
      rows.map((value) => JSON.stringify(value)),
      closing(pending, rows),
    );
    return;
  }

  const { response } = exchange;
  response.writeHead(200, {
    "Cache-Control": "must-revalidate",
    "Content-Type": feed === "eventsource" ? "text/event-stream" : "application/json",
  });
  if (exchange.method === "HEAD") {
    response.end();
    return;
  }
  response.flushHeaders();
  const waiter = new Waiter(response, database, timeout, heartbeat);
  try {
    if (feed === "longpoll") {
      response.write('{"results":[\n');
      let { rows, pending } = take();
      while (rows.length === 0 && left > 0 && (await waiter.change())) ({ rows, pending } = take());
      response.end(rows.map((value) => JSON.stringify(value)).join(",\r\n") + closing(pending, rows));
      return;
    }
    const write =
      feed === "eventsource"
        ? (value) => response.write(`data: ${JSON.stringify(value)}\nid: ${JSON.stringify(value.seq)}\n\n`)
        : (value) => response.write(`${JSON.stringify(value)}\n`);
    let pending;
    do {
      let rows;
      ({ rows, pending } = take());
      rows.forEach(write);
      if (rows.length === 0 && feed !== "eventsource") response.write("\n");
    } while (left > 0 && (await waiter.change()));
    response.end(feed === "eventsource" ? "\n" : `${JSON.stringify(last(pending))}\n\n`);
  } finally {
    waiter.stop();
  }
}

/** Waits for the next change; ends with the client, the database, or, without a heartbeat, the time-out. */
class Waiter {
  constructor(response, database, timeout, heartbeat) {
    this.response = response;
    this.database = database;
    this.timeout = timeout;
    this.heartbeat = heartbeat;
    this.gone = new AbortController();
    response.on("close", () => this.gone.abort());
    if (heartbeat > 0) this.beat = setInterval(() => response.write("\n"), heartbeat);
  }

  /** @returns {Promise<boolean>} false when there is nothing to wait for any more */
  async change() {
    if (this.database.closed || this.gone.signal.aborted) return false;
    const ends = new AbortController();
    const end = () => ends.abort();
    this.gone.signal.addEventListener("abort", end);
    const timer = this.heartbeat > 0 ? undefined : setTimeout(end, this.timeout);
    try {
      await once(this.database, "change", { signal: ends.signal });
      return !this.database.closed;
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
      this.gone.signal.removeEventListener("abort", end);
    }
  }

  stop() {
    clearInterval(this.beat);
  }
}
