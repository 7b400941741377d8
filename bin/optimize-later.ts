import { setFlagsFromString } from "node:v8";

/** Bytes of bytecode that a function runs before V8 considers optimising it; by default 66 or 132 KiB. */
const INTERRUPT_BUDGET = 1_000_000;
/**
 * The last major version of V8 with the flag: Node 20 has 11, Node 22 has 12. Later versions have a faster
 * compiler in between.
 */
const LAST_WITH_FLAG = 12;

/**
 * Makes V8 optimise later. A command runs for a second or two, a third of which V8's optimising compiler
 * takes if it starts as early as in a server (docs/performance.md). Long-running code is still optimised.
 */
export function optimizeLater(): void {
  const major = Number.parseInt(process.versions.v8, 10);
  if (major <= LAST_WITH_FLAG) setFlagsFromString(`--interrupt-budget=${INTERRUPT_BUDGET}`);
}
