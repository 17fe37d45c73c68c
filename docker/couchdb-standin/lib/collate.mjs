/**
 * CouchDB's order of JSON values: null, false, true, numbers, strings (by ICU), arrays, objects.
 */
const collator = new Intl.Collator("en");

function rank(value) {
  if (value === null || value === undefined) return 0;
  if (value === false) return 1;
  if (value === true) return 2;
  if (typeof value === "number") return 3;
  if (typeof value === "string") return 4;
  return Array.isArray(value) ? 5 : 6;
}

export function collate(a, b) {
  if (a === b) return 0;
  const kind = rank(a);
  const difference = kind - rank(b);
  if (difference !== 0) return difference;
  switch (kind) {
    case 3:
      return a - b;
    case 4:
      return collator.compare(a, b);
    case 5:
      return collateSequence(a, b);
    case 6:
      return collateSequence(Object.entries(a), Object.entries(b));
    default:
      return 0;
  }
}

/** Element by element; what is a beginning of the other comes first. */
function collateSequence(a, b) {
  for (let index = 0; index < Math.min(a.length, b.length); index += 1) {
    const difference = collate(a[index], b[index]);
    if (difference !== 0) return difference;
  }
  return a.length - b.length;
}
