/**
 * Who may do what: one administrator, who may do everything, and the rest of the world, who may see that the server is up.
 */
import { badRequest, noDatabase, unauthorized } from "./errors.mjs";

const OPEN = new Set(["_up", "_session", "_uuids"]);

export class Credentials {
  constructor(user, password) {
    this.user = user;
    this.password = password;
  }

  /** The user's name, or null for nobody. Wrong credentials are refused everywhere, also where none are needed. */
  identify(exchange) {
    const header = exchange.header("authorization");
    if (!header || !/^basic /i.test(header)) return null;
    const encoded = header.slice(6).trim();
    if (!/^[A-Za-z0-9+/]*={0,2}$/.test(encoded)) throw badRequest("Authorization header has invalid base64 value");
    const text = Buffer.from(encoded, "base64").toString("utf8");
    const colon = text.indexOf(":");
    if (text.slice(0, colon) !== this.user || text.slice(colon + 1) !== this.password) {
      throw unauthorized("Name or password is incorrect.");
    }
    return this.user;
  }
}

/** Refuses what nobody in particular may not do, in CouchDB's order: a database that is missing is 404 before it is 401. */
export function authorize(exchange, store) {
  const [first, ...rest] = exchange.segments;
  if (exchange.user !== null || first === undefined || (OPEN.has(first) && rest.length === 0)) return;
  const administrative = first.startsWith("_") || (rest.length === 0 && ["PUT", "DELETE"].includes(exchange.method));
  if (administrative) throw unauthorized("You are not a server admin.");
  if (!store.has(first)) throw noDatabase();
  throw unauthorized("You are not authorized to access this db.");
}
