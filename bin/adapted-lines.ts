import type { Adaptation } from "../src/backup/definition/fit-to-host.js";

/** A line for each thing that a definition has in the place of what this host has not. */
export function adaptedLines(name: string, adapted: readonly Adaptation[]): string[] {
  return adapted.map(({ wanted, now }) => `${name}: adapted to this host: ${now} instead of ${wanted}`);
}
