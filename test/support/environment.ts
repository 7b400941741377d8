/**
 * Gives the process the variables that it had. `process.env = before` would not: an object in its place is no
 * environment, and what reads the real one (`os.homedir`, in any later test of this process) sees no change.
 */
export function restoreEnvironment(before: Readonly<NodeJS.ProcessEnv>): void {
  for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name];
  Object.assign(process.env, before);
}
