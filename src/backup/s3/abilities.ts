import { hasCode } from "../base/errors.js";

/** What a store was found to do. */
export interface StoreAbilities {
  /** One of many who create an object with the same key wins, and the others are told. */
  readonly conditionalCreate: boolean;
  /** An object is replaced only if it is still the one that was read. */
  readonly conditionalReplace: boolean;
}

export function keepsAll({ conditionalCreate, conditionalReplace }: StoreAbilities): boolean {
  return conditionalCreate && conditionalReplace;
}

/** What both of them say. */
export function bothKeep(one: StoreAbilities, other: StoreAbilities): StoreAbilities {
  return {
    conditionalCreate: one.conditionalCreate && other.conditionalCreate,
    conditionalReplace: one.conditionalReplace && other.conditionalReplace,
  };
}

export const LACKS = Symbol("the store does not know the condition");

/** What a request with a condition returns, or `LACKS`. */
export async function unlessLacking<T>(request: () => Promise<T>): Promise<T | typeof LACKS> {
  try {
    return await request();
  } catch (error) {
    if (hasCode(error, "E_S3_LACKS")) return LACKS;
    throw error;
  }
}
