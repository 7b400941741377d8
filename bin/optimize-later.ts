import { setFlagsFromString } from "node:v8";

/** Bytes of bytecode that a function runs before V8 considers optimising it; by default 66 or 132 KiB. */
const INTERRUPT_BUDGET = 1_000_000;
/**
 * The version of V8 with the flag: that of Node 20. Measured: V8 11.8 (Node 21), 12.4 (Node 22) and 13.6 (Node 24)
 * don't have it, and print a complaint on stderr. V8 can't be asked without that.
 */
const WITH_FLAG = "11.3.";

/**
 * Makes V8 optimise later. A command runs for a second or two, a third of which V8's optimising compiler
 * takes if it starts as early as in a server (docs/performance.md). Long-running code is still optimised.
 */
export function optimizeLater(): void {
  if (!process.versions.v8.startsWith(WITH_FLAG)) return;
  setFlagsFromString(`--interrupt-budget=${INTERRUPT_BUDGET}`);
}
