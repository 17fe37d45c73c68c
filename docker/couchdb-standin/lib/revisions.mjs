/**
 * Revisions of one document: their names, and the tree they form.
 *
 * A revision is `GENERATION-HASH`. Of the leaves of the tree one is the winner, the same on every server: a living one before a
 * deleted one, then the higher generation, then the higher hash.
 */
import { createHash } from "node:crypto";

import { badRequest } from "./errors.mjs";

export function parseRev(text) {
  const match = typeof text === "string" ? /^(\d+)-(.*)$/s.exec(text) : null;
  if (!match) throw badRequest("Invalid rev format");
  return `${Number(match[1])}-${match[2]}`;
}

export const generation = (rev) => Number(rev.slice(0, rev.indexOf("-")));
export const hashOf = (rev) => rev.slice(rev.indexOf("-") + 1);

/** A function of the content and its history alone, so that the same edit made twice has the same name. */
export function nextRev(parent, deleted, body, attachments) {
  const listed = attachments.map(({ name, type, digest }) => [name, type, digest]);
  const hash = createHash("md5")
    .update(JSON.stringify([parent, deleted, body, listed]))
    .digest("hex");
  return `${(parent === null ? 0 : generation(parent)) + 1}-${hash}`;
}

const hashBytes = (rev) =>
  /^[0-9a-f]{32}$/.test(hashOf(rev)) ? Buffer.from(hashOf(rev), "hex") : Buffer.from(hashOf(rev));

/** Better first. */
function byRank(a, b) {
  return (
    a.deleted - b.deleted || generation(b.rev) - generation(a.rev) || Buffer.compare(hashBytes(b.rev), hashBytes(a.rev))
  );
}

/**
 * @typedef {object} Revision
 * @property {string} rev
 * @property {string|null} parent
 * @property {boolean} known    false: only its name is known, from the history of a later one
 * @property {boolean} deleted
 * @property {object|null} body the document's own fields; null when it must be read from the log
 * @property {object[]} attachments
 * @property {{offset: number, length: number}} at where in the log it is
 */
export class RevisionTree {
  constructor(id) {
    this.id = id;
    this.seq = 0;
    /** @type {Map<string, Revision>} */
    this.revisions = new Map();
    this.leafNames = new Set();
    /** @type {Revision} */
    this.winner = null;
  }

  get(rev) {
    const found = this.revisions.get(rev);
    return found?.known ? found : undefined;
  }

  isLeaf(rev) {
    return this.leafNames.has(rev);
  }

  /** Leaves, best first. */
  leaves() {
    return [...this.leafNames].map((rev) => this.revisions.get(rev)).sort(byRank);
  }

  /** The names of the losing leaves: the living ones, or the deleted ones. */
  conflicts({ deleted = false } = {}) {
    return this.leaves()
      .slice(1)
      .filter((leaf) => leaf.deleted === deleted)
      .map(({ rev }) => rev);
  }

  /** Names from this revision to its oldest known ancestor. */
  history(rev) {
    const names = [];
    for (let at = rev; at !== null; at = this.revisions.get(at).parent) names.push(at);
    return names;
  }

  /** Adds the first of `path`, whose ancestors are the rest (newest first). False when it was there already. */
  add(path, content) {
    if (this.get(path[0])) return false;
    let parent = null;
    for (const rev of [...path].reverse()) {
      let revision = this.revisions.get(rev);
      if (!revision) {
        revision = { rev, parent, known: false, deleted: false, body: null, attachments: [], at: null };
        this.revisions.set(rev, revision);
        this.leafNames.add(rev);
      }
      revision.parent ??= parent;
      if (revision.parent !== null) this.#retire(revision.parent);
      parent = rev;
    }
    Object.assign(this.revisions.get(path[0]), content, { known: true });
    this.winner = this.leaves()[0];
    return true;
  }

  /** An inner revision is rarely asked for: its content stays in the log only. */
  #retire(rev) {
    this.leafNames.delete(rev);
    this.revisions.get(rev).body = null;
  }
}
