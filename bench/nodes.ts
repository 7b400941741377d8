/** The versions of Node that there are to measure with. */

import { readdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

export interface Node {
  readonly path: string;
  readonly version: string;
}

/** The one that runs the harness, and those that test/support/fetch-nodes.sh has fetched. */
export function nodesHere(): readonly Node[] {
  const cache = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "nbd-client-ts");
  const own: Node = { path: process.execPath, version: process.versions.node };
  const fetched = filesIn(cache).flatMap((name): Node[] => {
    const version = /^node-(\d+\.\d+\.\d+)$/.exec(name)?.[1];
    return version === undefined ? [] : [{ path: join(cache, name, "bin", "node"), version }];
  });
  return [own, ...fetched.filter(({ path, version }) => path !== own.path && version !== own.version)];
}

function filesIn(folder: string): readonly string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}
