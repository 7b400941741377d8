import * as module from "node:module";

/**
 * The flag that makes each version of V8 optimise later, by how the version begins: Node 20, 22 and 24. V8
 * complains on stderr of a flag that it doesn't have, `process.allowedNodeEnvironmentFlags` doesn't hold
 * them, and `node --v8-options` takes as long as Node's start: a test asks that of each Node instead.
 */
const FLAGS: Readonly<Record<string, string>> = {
  // Bytes of bytecode that a function runs before it is considered; by default 66 or 132 KiB.
  "11.3.": "--interrupt-budget=1000000",
  "12.4.": "--efficiency-mode",
  "13.6.": "--efficiency-mode",
};

/** Undefined for a version that has not been tried. */
export function flagToOptimizeLater(v8: string): string | undefined {
  return Object.entries(FLAGS).find(([beginning]) => v8.startsWith(beginning))?.[1];
}

/**
 * Makes V8 optimise later. A command runs for a second or two, a third of which V8's optimising compiler
 * takes if it starts as early as in a server (docs/performance.md). Long-running code is still optimised.
 *
 * To be called when what the command needs is loaded: with other flags, V8 doesn't take the compiled code
 * that Node brings along of its own modules, nor what we have kept of ours.
 */
export function optimizeLater(): void {
  const flag = flagToOptimizeLater(process.versions.v8);
  if (flag === undefined) return;
  if ("flushCompileCache" in module) (module.flushCompileCache as () => void)();
  // Not imported: loading it takes a thirtieth of the start of a Node that doesn't need it.
  process.getBuiltinModule("node:v8").setFlagsFromString(flag);
}
