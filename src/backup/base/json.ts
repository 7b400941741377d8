import { z } from "zod";

/** Parses JSON. Returns undefined for invalid JSON; every schema refuses undefined. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What is wrong with a value, as one line. Messages have no line ends, so that none can be forged in them. */
export function faultsOf(error: z.ZodError): string {
  return z.prettifyError(error).replaceAll(/\s*\n\s*/g, " ");
}
