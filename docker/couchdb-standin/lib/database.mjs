/**
 * One database: its documents in memory, and a log on disk from which they come back after a restart.
 *
 * Every write is one line of the log, handed to the system before it is answered: a killed process loses nothing. Deciding and
 * writing happen without a pause between them, so of any number of writers of one revision exactly one succeeds.
 */
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { EventEmitter } from "node:events";
import path from "node:path";

import { AttachmentFolder } from "./attachments.mjs";
import { conflict, functionClause, missingStub, noDatabase } from "./errors.mjs";
import { generation, nextRev, RevisionTree } from "./revisions.mjs";

const DEFAULT_SECURITY = { members: { roles: ["_admin"] }, admins: { roles: ["_admin"] } };

/**
 * An edit is what a client wants a document to become.
 * @typedef {object} Edit
 * @property {string} id
 * @property {string[]} revs       the revision it is based on and that one's ancestors; for replicated edits its own name first
 * @property {boolean} deleted
 * @property {object} body
 * @property {object[]} attachments  stubs (`{name, stub: true, revpos}`) and attachments that were received
 */
export class Database extends EventEmitter {
  constructor(name, folder) {
    super();
    this.setMaxListeners(0);
    this.name = name;
    this.folder = folder;
    this.attachments = new AttachmentFolder(path.join(folder, "attachments"));
    this.startTime = String(Math.floor(Date.now() / 1000));
    this.closed = false;
    this.seq = 0;
    /** @type {Map<string, RevisionTree>} */
    this.documents = new Map();
    this.locals = new Map();
    /** Every change in order; only the last one of a document still counts (`tree.seq` names it). */
    this.changes = [];
    this.security = DEFAULT_SECURITY;
    this.revsLimit = 1000;
    /** Indexes of views, filled by views.mjs. */
    this.indexes = new Map();
    this.sortedIds = null;
    this.counts = { living: 0, deleted: 0 };
  }

  static create(name, folder) {
    mkdirSync(path.join(folder, "attachments"), { recursive: true });
    const database = new Database(name, folder);
    database.#open();
    database.#append({ op: "create", name, startTime: database.startTime });
    return database;
  }

  /** Reads the log; null when there is none worth reading. */
  static load(folder) {
    const file = path.join(folder, "log");
    if (!existsSync(file)) return null;
    let database = null;
    let offset = 0;
    const bytes = readFileSync(file);
    while (offset < bytes.length) {
      const end = bytes.indexOf(10, offset);
      if (end < 0) break; // a line that was cut when the machine stopped
      const record = JSON.parse(bytes.toString("utf8", offset, end));
      if (record.op === "create") {
        database = new Database(record.name, folder);
        database.startTime = record.startTime;
      } else {
        database.#apply(record, { offset, length: end - offset });
      }
      offset = end + 1;
    }
    database?.#open(offset);
    return database;
  }

  #open(length = 0) {
    this.log = openSync(path.join(this.folder, "log"), "a+");
    ftruncateSync(this.log, length);
    this.logLength = length;
  }

  close() {
    this.closed = true;
    closeSync(this.log);
    this.emit("change");
    this.removeAllListeners();
  }

  #append(record) {
    if (this.closed) throw noDatabase();
    const line = Buffer.from(JSON.stringify(record) + "\n");
    for (let done = 0; done < line.length;) done += writeSync(this.log, line, done);
    const at = { offset: this.logLength, length: line.length - 1 };
    this.logLength += line.length;
    return at;
  }

  #commit(record) {
    const at = this.#append(record);
    this.#apply(record, at);
    if (record.op === "document") this.emit("change");
  }

  #apply(record, at) {
    switch (record.op) {
      case "document":
        return this.#applyDocument(record, at);
      case "local":
        if (record.document === null) this.locals.delete(record.id);
        else this.locals.set(record.id, record.document);
        return;
      case "purge":
        this.#uncount(this.documents.get(record.id));
        this.documents.delete(record.id);
        this.indexes.clear();
        this.sortedIds = null;
        return;
      case "set":
        this[record.key] = record.value;
        return;
      default:
        throw new Error(`unknown record in the log: ${record.op}`);
    }
  }

  #applyDocument({ id, path: names, deleted, body, attachments }, at) {
    let tree = this.documents.get(id);
    if (!tree) {
      tree = new RevisionTree(id);
      this.documents.set(id, tree);
      this.sortedIds = null;
    }
    this.#uncount(tree);
    if (!tree.add(names, { deleted, body, attachments, at }))
      throw new Error(`revision ${names[0]} of ${id} is twice in the log`);
    if (!tree.isLeaf(names[0])) tree.get(names[0]).body = null;
    this.counts[tree.winner.deleted ? "deleted" : "living"] += 1;
    tree.seq = this.seq += 1;
    this.changes.push({ seq: tree.seq, id });
    if (this.changes.length > 1000 && this.changes.length > 2 * this.documents.size) {
      this.changes = this.changes.filter((change) => this.isCurrent(change));
    }
  }

  #uncount(tree) {
    if (tree?.winner) this.counts[tree.winner.deleted ? "deleted" : "living"] -= 1;
  }

  // --- reading -------------------------------------------------------------------------------------------------------

  /** Whether this change is still the last one of its document. */
  isCurrent({ id, seq }) {
    return this.documents.get(id)?.seq === seq;
  }

  /** Ids of living documents in CouchDB's order, which is that of the bytes. */
  ids() {
    this.sortedIds ??= [...this.documents.keys()].sort(compareBytes);
    return this.sortedIds.filter((id) => !this.documents.get(id).winner.deleted);
  }

  /** A revision's own fields; old ones are read from the log. */
  body(revision) {
    if (revision.body !== null) return revision.body;
    const bytes = Buffer.alloc(revision.at.length);
    readSync(this.log, bytes, 0, bytes.length, revision.at.offset);
    return JSON.parse(bytes.toString("utf8")).body;
  }

  // --- writing -------------------------------------------------------------------------------------------------------

  /** Where an edit would go: its parent and its attachments. Throws what stands against it. */
  #plan(edit) {
    const tree = this.documents.get(edit.id);
    const base = edit.revs[0] ?? null;
    let parent = base;
    if (tree && base === null) {
      if (!tree.winner.deleted) throw conflict();
      parent = tree.winner.rev;
    } else if (tree && !(tree.get(base) && tree.isLeaf(base))) {
      throw conflict();
    }
    const previous = base === null ? undefined : tree?.get(base);
    return { parent, attachments: this.#resolve(edit, previous, base === null ? 1 : generation(base) + 1) };
  }

  /** Stubs become what the previous revision has under that name; what is new gets its `revpos`. */
  #resolve({ id, attachments }, previous, revpos) {
    return attachments.map((attachment) => {
      if (!attachment.stub) return { ...attachment, revpos };
      const kept = previous?.attachments.find(({ name }) => name === attachment.name);
      if (!kept || (attachment.revpos !== undefined && attachment.revpos !== kept.revpos))
        throw missingStub(id, attachment.name);
      return kept;
    });
  }

  /** Refuses a bulk request as a whole where a stub leads nowhere; conflicts are for its rows. */
  checkStubs(edit) {
    try {
      this.#plan(edit);
    } catch (error) {
      if (error.status !== 409) throw error;
    }
  }

  /**
   * Writes an edit made by a client, which must be based on a leaf.
   * @param {Edit} edit
   * @returns {string} the new revision
   */
  write(edit) {
    const { parent, attachments } = this.#plan(edit);
    const rev = nextRev(parent, edit.deleted, edit.body, attachments);
    const tree = this.documents.get(edit.id);
    if (tree?.get(rev)) throw conflict();
    const ancestors = parent === null ? [] : tree ? tree.history(parent) : edit.revs;
    this.#commit({
      op: "document",
      id: edit.id,
      path: [rev, ...ancestors].slice(0, this.revsLimit),
      deleted: edit.deleted,
      body: edit.body,
      attachments,
    });
    return rev;
  }

  /** Writes a revision made elsewhere (`new_edits: false`): never a conflict, at worst a losing leaf. */
  replicate(edit) {
    const tree = this.documents.get(edit.id);
    if (tree?.get(edit.revs[0])) return;
    const previous = edit.revs
      .slice(1)
      .map((rev) => tree?.get(rev))
      .find((revision) => revision !== undefined);
    const attachments = this.#resolve(edit, previous, generation(edit.revs[0]));
    this.#commit({ op: "document", id: edit.id, path: edit.revs, deleted: edit.deleted, body: edit.body, attachments });
  }

  /** Local documents have no history: the number in the revision counts, nothing is compared. */
  writeLocal(id, { revs, deleted, body }) {
    const based = revs[0] === undefined ? 0 : Number(revs[0].slice(2));
    if (!Number.isInteger(based)) throw functionClause();
    const rev = deleted ? "0-0" : `0-${based + 1}`;
    this.#commit({ op: "local", id, document: deleted ? null : { rev, body } });
    return rev;
  }

  /** Forgets documents of which all leaves are named. Returns what was forgotten. */
  purge(id, revs) {
    const tree = this.documents.get(id);
    const leaves = tree ? [...tree.leafNames] : [];
    if (!tree || !leaves.every((rev) => revs.includes(rev))) return [];
    this.#commit({ op: "purge", id });
    return leaves;
  }

  set(key, value) {
    this.#commit({ op: "set", key, value });
  }
}

export function compareBytes(a, b) {
  return a === b ? 0 : Buffer.compare(Buffer.from(a), Buffer.from(b));
}
