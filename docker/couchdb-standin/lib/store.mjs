/**
 * All databases: one folder each under the data folder.
 */
import { mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { rm } from "node:fs/promises";
import { randomUUID } from "node:crypto";
import path from "node:path";

import { CouchError, noDatabase } from "./errors.mjs";
import { compareBytes, Database } from "./database.mjs";

const LEGAL = /^[a-z][a-z0-9_$()+/-]*$/;
const SYSTEM = new Set(["_users", "_replicator", "_global_changes"]);
const MAX_NAME_LENGTH = 238;
const REMOVED = "removed-";

export class Store {
  constructor(folder) {
    this.folder = folder;
    /** @type {Map<string, Database>} */
    this.databases = new Map();
  }

  static open(folder) {
    const store = new Store(folder);
    mkdirSync(folder, { recursive: true });
    for (const entry of readdirSync(folder)) {
      const database = entry.startsWith(REMOVED) ? null : Database.load(path.join(folder, entry));
      if (database) store.databases.set(database.name, database);
      else rmSync(path.join(folder, entry), { recursive: true, force: true });
    }
    return store;
  }

  has(name) {
    return this.databases.has(name);
  }

  get(name) {
    const database = this.databases.get(name);
    if (!database) throw noDatabase();
    return database;
  }

  names() {
    return [...this.databases.keys()].sort(compareBytes);
  }

  create(name) {
    if (!LEGAL.test(name) && !SYSTEM.has(name)) {
      throw new CouchError(
        400,
        "illegal_database_name",
        `Name: '${name}'. Only lowercase characters (a-z), digits (0-9), and any of the characters _, $, (, ), +, -, and / ` +
          "are allowed. Must begin with a letter.",
      );
    }
    if (name.length > MAX_NAME_LENGTH) {
      throw new CouchError(400, "database_name_too_long", `At least one path segment of \`${name}\` is too long.`);
    }
    if (this.has(name)) {
      throw new CouchError(412, "file_exists", "The database could not be created, the file already exists.");
    }
    this.databases.set(name, Database.create(name, path.join(this.folder, randomUUID())));
  }

  delete(name) {
    const database = this.get(name);
    this.databases.delete(name);
    database.close();
    const removed = path.join(this.folder, `${REMOVED}${randomUUID()}`);
    renameSync(database.folder, removed);
    rm(removed, { recursive: true, force: true }).catch(() => {});
  }
}
