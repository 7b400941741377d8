/** Parses JSON. Returns undefined for invalid JSON; every schema refuses undefined. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
