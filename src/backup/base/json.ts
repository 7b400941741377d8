import { z } from "zod";
import { oneLine } from "./one-line.js";

/** Characters of a list of faults, which is as long as who wrote the file wants it to be. */
const MOST = 4000;

/** Parses JSON. Returns undefined for invalid JSON; every schema refuses undefined. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * What is wrong with a value, as one line. Messages have no line ends, so that none can be forged in them.
 */
export function faultsOf(error: z.ZodError): string {
  return oneLine(z.prettifyError(error).slice(0, MOST), " ");
}
