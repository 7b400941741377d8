/**
 * Options of every call of a program of this host but ssh, which may need AWS's variables for a proxy of its
 * own. Some of these programs read what a guest wrote, so the credentials of an object store are not in their
 * environment; and they say in English what went wrong.
 * @param more further variables
 */
export function toolProcess(more: Readonly<Record<string, string>> = {}) {
  const kept = Object.entries(process.env).filter(([name]) => !name.startsWith("AWS_"));
  return { env: { ...Object.fromEntries(kept), LC_ALL: "C", ...more }, extendEnv: false } as const;
}
