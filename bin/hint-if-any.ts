import type { Called } from "./hints.js";

/** What the user may have meant. If that can't be found out or loaded, there is none: it hides no error. */
export async function hintIfAny(error: unknown, called: Called): Promise<string | undefined> {
  return await import("./hints.js").then((hints) => hints.hintFor(error, called)).catch(() => undefined);
}

/** ` (Did you mean WORD?)`, or nothing. Never fails. */
export async function meantIfAny(word: string, known: readonly string[]): Promise<string> {
  return await import("./hints.js").then((hints) => hints.didYouMean(word, known)).catch(() => "");
}
