import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { describe, it } from "vitest";

/** Daemons are in sbin, which is not in the PATH of an ordinary user. */
const SBIN = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/** The full path of a program; undefined if it isn't installed. */
export function findTool(name: string): string | undefined {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), ...SBIN];
  return folders.map((folder) => join(folder, name)).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * `describe` for tests with real programs: if one of `tools` isn't installed, the tests are skipped by name,
 * or fail if `CI=true` promises that everything is installed.
 */
export function describeWith(tools: readonly string[], title: string, body: () => void): void {
  const missing = tools.filter((tool) => findTool(tool) === undefined);
  describeUnless(missing.length === 0 ? undefined : `not installed: ${missing.join(", ")}`, title, body);
}

/** What some machines don't let a test do, whoever runs it and whatever is installed. */
type Ability = "root" | "mount" | "loop" | "mknod";

/** With `CI=true` a test is skipped only for what `NBDPULL_CANNOT=loop,mount` says the machine can't do. */
function mayLack(ability: Ability): boolean {
  const named = (process.env["NBDPULL_CANNOT"] ?? "").split(",").map((each) => each.trim());
  return process.env["CI"] !== "true" || named.includes(ability);
}

/** Whether to skip a test that needs root, for `skipIf`. */
export const SKIP_WITHOUT_ROOT = process.getuid?.() !== 0 && mayLack("root");

/** Skips the test that runs, or fails it with `CI=true` unless the machine is known to be unable. */
export function skipUnable(context: { skip(note: string): never }, ability: Ability, why: string): never {
  if (mayLack(ability)) context.skip(why);
  throw new Error(`${why}. If this machine can't do it: NBDPULL_CANNOT=${ability}`);
}

/**
 * `describe`; with an obstacle, a skip that names it, or with `CI=true` a failure unless the machine is
 * unable.
 */
export function describeIfAble(
  ability: Ability,
  obstacle: string | undefined,
  title: string,
  body: () => void,
): void {
  if (obstacle !== undefined && mayLack(ability)) describe.skip(`${title} (${obstacle})`, body);
  else
    describeUnless(obstacle && `${obstacle}; if this machine can't: NBDPULL_CANNOT=${ability}`, title, body);
}

/** `describe`; with an `obstacle`, a skip that names it, or a failure with `CI=true`. */
export function describeUnless(obstacle: string | undefined, title: string, body: () => void): void {
  if (obstacle === undefined) {
    describe(title, body);
  } else if (process.env["CI"] === "true") {
    describe(title, () => {
      it("has the programs that it needs", () => {
        throw new Error(obstacle);
      });
    });
  } else {
    describe.skip(`${title} (${obstacle})`, body);
  }
}
