/** The versions of Node that `fetch-nodes.sh` fetched. */

import { existsSync, readFileSync } from "node:fs";
import { arch, homedir } from "node:os";
import { join } from "node:path";
import { describeUnless } from "./tools.js";

const CACHE = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "nbd-client-ts");

/** Of this machine's architecture, oldest first. */
export const NODE_VERSIONS: readonly string[] = readFileSync(
  join(import.meta.dirname, "node-versions.txt"),
  "utf8",
)
  .split("\n")
  .map((line) => line.split(" "))
  .flatMap(([name, version = ""]) => (name === `node-linux-${arch()}` ? [version] : []));

/** The full path of a version's program. */
export function nodeOf(version: string): string {
  return join(CACHE, `node-${version}`, "bin", "node");
}

/** `describe` for each version; one that isn't there is skipped by name, or fails with `CI=true`. */
export function describeEachNode(title: string, body: (node: string, version: string) => void): void {
  for (const version of NODE_VERSIONS) {
    const node = nodeOf(version);
    const obstacle = existsSync(node) ? undefined : "not fetched: run test/support/fetch-nodes.sh";
    describeUnless(obstacle, `${title} with Node ${version}`, () => body(node, version));
  }
}
