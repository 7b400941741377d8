/**
 * Shows two result files side by side.
 *
 *     npm run bench:compare -- BEFORE.json AFTER.json
 */

import { parseArgs } from "node:util";
import { printableLines } from "../src/backup/base/printable.js";
import { comparisonReport, differences } from "./comparison.js";
import { readResult } from "./result-file.js";

const [before, after] = parseArgs({ allowPositionals: true }).positionals;
if (before === undefined || after === undefined) {
  process.stderr.write("usage: npm run bench:compare -- BEFORE.json AFTER.json\n");
  process.exitCode = 2;
} else {
  const results = [await readResult(before), await readResult(after)] as const;
  for (const difference of differences(...results))
    process.stdout.write(`Not alike: ${printableLines(difference)}\n`);
  for (const metric of ["wall", "cpu"] as const) {
    process.stdout.write(`\n${printableLines(comparisonReport(...results, metric))}`);
  }
}
