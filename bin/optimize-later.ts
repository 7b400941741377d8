import * as module from "node:module";

/** Leaves the young generation as large as it is: 8 MiB instead of 32. Most of what dies there dies soon. */
const SMALL_YOUNG_GENERATION = "--semi-space-growth-factor=1";
/**
 * Marks what is alive only when memory must be collected. To do it bit by bit beforehand, as for programs that
 * mustn't pause, takes 2 to 7 % of the processor time of a command whose heap is small.
 */
const MARK_AT_ONCE = "--no-incremental-marking";
/**
 * The flags that make each version of V8 optimise later, by how the version begins: Node 20, 22 and 24. V8
 * complains on stderr of a flag that it doesn't have, `process.allowedNodeEnvironmentFlags` doesn't hold
 * them, and `node --v8-options` takes as long as Node's start: a test asks that of each Node instead.
 */
const FLAGS: Readonly<Record<string, readonly string[]>> = {
  // Bytes of bytecode that a function runs before it is considered; by default 66 or 132 KiB.
  "11.3.": ["--interrupt-budget=1000000", MARK_AT_ONCE],
  "12.4.": ["--efficiency-mode", SMALL_YOUNG_GENERATION, MARK_AT_ONCE],
  "13.6.": ["--efficiency-mode", SMALL_YOUNG_GENERATION, MARK_AT_ONCE],
};

/**
 * Has the old generation collected when it has grown by a fifth: zlib's objects, one for each compressed
 * cluster, get there although they are used once. V8 of Node 24 would let 12 MiB of them wait.
 */
const COLLECT_SOON = "--heap-growing-percent=20";
const FLAGS_OF_RESTORES: typeof FLAGS = { "13.6.": [COLLECT_SOON] };

/** The flags for a restore, beside {@link flagsToOptimizeLater}. */
export function flagsToCollectSoon(v8: string): readonly string[] {
  return flagsOf(FLAGS_OF_RESTORES, v8);
}

/** Makes V8 keep less of what is no longer used, for commands that decompress. */
export function collectSoon(): void {
  setFlags(flagsToCollectSoon(process.versions.v8));
}

/** None for a version that has not been tried. */
export function flagsToOptimizeLater(v8: string): readonly string[] {
  return flagsOf(FLAGS, v8);
}

function flagsOf(flags: typeof FLAGS, v8: string): readonly string[] {
  return Object.entries(flags).find(([beginning]) => v8.startsWith(beginning))?.[1] ?? [];
}

/**
 * Makes V8 optimise later. A command runs for a second or two, a third of which V8's optimising compiler
 * takes if it starts as early as in a server (docs/performance-history.md). Code that runs for long is still
 * optimised, so that `serve` and `mount`, which run for days, lose nothing but their first seconds.
 *
 * To be called when what the command needs is loaded: with other flags, V8 doesn't take the compiled code
 * that Node brings along of its own modules, nor what we have kept of ours.
 */
export function optimizeLater(): void {
  const flags = flagsToOptimizeLater(process.versions.v8);
  if (flags.length === 0) return;
  // Node loads what is behind this when it is first used, which every command does.
  performance.now();
  if ("flushCompileCache" in module) (module.flushCompileCache as () => void)();
  setFlags(flags);
}

function setFlags(flags: readonly string[]): void {
  if (flags.length === 0) return;
  // Not imported: loading it takes a thirtieth of the start of a Node that doesn't need it.
  const { setFlagsFromString } = process.getBuiltinModule("node:v8");
  for (const flag of flags) setFlagsFromString(flag);
}
