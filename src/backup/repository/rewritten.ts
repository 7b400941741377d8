import { isDeepStrictEqual } from "node:util";

/**
 * What a JSON value becomes that is changed as `before` is to `after`. `before` is the value as this program
 * knows it; what it knows nothing of, such as fields of a newer version, stays. Elements of a list are the
 * same ones if they have the same `name` or `file`, or else the same place.
 */
export function rewritten(value: unknown, before: unknown, after: unknown): unknown {
  if (isDeepStrictEqual(before, after)) return value;
  if (Array.isArray(value) && Array.isArray(before) && Array.isArray(after)) {
    return after.map((element, i) => {
      const at = placeOf(element, i, before);
      return at in before ? rewritten(value[at], before[at], element) : element;
    });
  }
  if (!isRecord(value) || !isRecord(before) || !isRecord(after)) return after;
  const changed: Record<string, unknown> = { ...value };
  for (const key of new Set([...Object.keys(before), ...Object.keys(after)])) {
    if (after[key] === undefined) delete changed[key];
    else changed[key] = rewritten(value[key], before[key], after[key]);
  }
  return changed;
}

function placeOf(element: unknown, place: number, among: readonly unknown[]): number {
  if (!isRecord(element)) return place;
  for (const key of ["name", "file"]) {
    if (typeof element[key] !== "string") continue;
    return among.findIndex((each) => isRecord(each) && each[key] === element[key]);
  }
  return place;
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
