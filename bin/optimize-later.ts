/** Bytes of bytecode that a function runs before V8 considers optimising it; by default 66 or 132 KiB. */
const INTERRUPT_BUDGET = 1_000_000;
/**
 * The version of V8 with the flag: that of Node 20. V8 11.8 (Node 21), 12.4 (Node 22) and 13.6 (Node 24) don't have it,
 * and complain on stderr. V8 can't be asked without that, `process.allowedNodeEnvironmentFlags` doesn't hold it either, and
 * `node --v8-options` takes as long as Node's start: a test asks that of each Node instead.
 */
export const V8_WITH_INTERRUPT_BUDGET = "11.3.";

/**
 * Makes V8 optimise later. A command runs for a second or two, a third of which V8's optimising compiler
 * takes if it starts as early as in a server (docs/performance.md). Long-running code is still optimised.
 */
export function optimizeLater(): void {
  if (!process.versions.v8.startsWith(V8_WITH_INTERRUPT_BUDGET)) return;
  // Not imported: loading it takes a thirtieth of the start of a Node that doesn't need it.
  process.getBuiltinModule("node:v8").setFlagsFromString(`--interrupt-budget=${INTERRUPT_BUDGET}`);
}
