import { DamageError } from "../base/errors.js";
import { MOST_MANIFEST_BYTES } from "../storage/stored-folder.js";

/**
 * The text of a manifest that takes the place of another one, with fields that this program knows nothing of.
 * It is indented, unless that makes it longer than readers take: each level of deep fields is indented more.
 * @param point what the manifest says
 * @throws {DamageError} `E_MANIFEST`: no reader would take it, so the point must stay as it is
 */
export function manifestTextOf(point: object): string {
  return textOf(point, 2) ?? textOf(point) ?? cannotBeWritten(point);
}

/** @returns undefined if it can't be made, or is longer than readers take */
function textOf(point: object, indentation?: number): string | undefined {
  try {
    const text = `${JSON.stringify(point, null, indentation)}\n`;
    return Buffer.byteLength(text) <= MOST_MANIFEST_BYTES ? text : undefined;
  } catch (error) {
    // It is nested more deeply than the stack has room for, or longer than a string can be.
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

function cannotBeWritten(point: { readonly id?: unknown }): never {
  const message = `the manifest of point ${point.id} can't be changed: nobody could read it any more, since fields in it that this version does not know are too deep, or longer than a manifest may be (${MOST_MANIFEST_BYTES} bytes). The point stays as it is: use the nbdpull that has written it, or take those fields out of its point.json, and run this again`;
  throw new DamageError("E_MANIFEST", message, { details: { point: point.id } });
}
