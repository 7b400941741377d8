import { setFlagsFromString } from "node:v8";

/** Of bytecode that a function runs before V8 looks at whether to optimise it; by itself V8 does so at 66 or 132 KiB. */
const INTERRUPT_BUDGET = 1_000_000;
/** The last major version of V8 that has the flag: Node 20 has 11, Node 22 has 12. Later ones have a quicker compiler in between. */
const LAST_WITH_FLAG = 12;

/**
 * Has V8 optimise later. A command runs for a second or two, of which V8's optimising compiler takes a third where it
 * sets in as soon as it would in a server (docs/performance.md). What runs for minutes is optimised all the same.
 */
export function optimizeLater(): void {
  const major = Number.parseInt(process.versions.v8, 10);
  if (major <= LAST_WITH_FLAG) setFlagsFromString(`--interrupt-budget=${INTERRUPT_BUDGET}`);
}
