import { keepsAll, type StoreAbilities } from "../storage/stored-folder.js";

const ONE_HOST = "let only one host write to this repository";

/**
 * What is unsafe at a store, for a warning; undefined: nothing.
 * @param found what it does
 * @param recorded what the marker says of it, if it does
 */
export function unsafeStore(found: StoreAbilities, recorded?: StoreAbilities): string | undefined {
  if (keepsAll(found)) return undefined;
  const ignored = [
    ...(found.conditionalCreate ? [] : ["If-None-Match"]),
    ...(found.conditionalReplace ? [] : ["If-Match"]),
  ];
  const conditions = `conditions (${ignored.join(", ")})`;
  const advice = found.conditionalReplace
    ? ONE_HOST
    : `${ONE_HOST}; prune and repair replace no images there`;
  return recorded && keepsAll(recorded)
    ? `the store took notice of ${conditions} when this repository was made, and takes none now (was it copied there, or were versions switched on in the bucket?): ${advice}`
    : `the store takes no notice of ${conditions}: ${advice}`;
}

/** What was told to whoever has given a signal: a night opens a repository for each domain. */
const TOLD = new WeakMap<AbortSignal, Set<string>>();

/**
 * Tells each warning of a repository once, however often that is opened with the same signal.
 * @param id of the repository
 */
export function toldOnce(
  id: string,
  tell: ((warning: string) => void) | undefined,
  signal: AbortSignal | undefined,
): (warning: string) => void {
  const told = (signal && TOLD.get(signal)) ?? new Set();
  if (signal) TOLD.set(signal, told);
  return (warning) => {
    const what = `${id} ${warning}`;
    if (!tell || told.has(what)) return;
    told.add(what);
    tell(warning);
  };
}
