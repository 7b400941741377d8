import type { StoreAbilities } from "../storage/stored-folder.js";

const ADVICE = "let only one host write to this repository; prune and repair replace no images there";

/**
 * What is unsafe at a store, for a warning; undefined: nothing.
 * @param found what it does
 * @param recorded what the marker says of it, if it does
 */
export function unsafeStore(found: StoreAbilities, recorded?: StoreAbilities): string | undefined {
  const keeps = ({ conditionalCreate, conditionalReplace }: StoreAbilities): boolean =>
    conditionalCreate && conditionalReplace;
  if (keeps(found)) return undefined;
  const conditions = "conditions (If-None-Match, If-Match)";
  return recorded && keeps(recorded)
    ? `the store took notice of ${conditions} when this repository was made, and takes none now (was it copied there, or were versions switched on in the bucket?): ${ADVICE}`
    : `the store takes no notice of ${conditions}: ${ADVICE}`;
}
