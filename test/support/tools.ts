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
