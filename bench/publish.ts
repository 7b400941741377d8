/**
 * Writes results into the documentation, and makes its pages anew of all that is published there.
 *
 *     npm run bench:publish -- [--page PAGE] [SECTION=RESULT.json[,RESULT.json...]...]
 *
 * Several results of a section are of runs one after the other; of a workload in two of them the later counts.
 */

import { join } from "node:path";
import { parseArgs } from "node:util";
import { printableLines } from "../src/backup/base/printable.js";
import { PROJECT } from "./paths.js";
import { type Pages, publish, writePages } from "./publication.js";
import { readResult } from "./result-file.js";
import { isSection, SECTIONS } from "./sections.js";

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { page: { type: "string" } },
});
const pages: Pages =
  values.page === undefined
    ? { page: join(PROJECT, "docs", "performance.md"), readme: join(PROJECT, "README.md") }
    : { page: values.page };
try {
  for (const positional of positionals) {
    const [, section = "", files = ""] = /^([^=]+)=(.+)$/.exec(positional) ?? [];
    if (!isSection(section))
      throw new Error(`usage: SECTION=RESULT.json[,...], where SECTION is one of ${SECTIONS.join(", ")}`);
    const left = await publish(section, await Promise.all(files.split(",").map(readResult)), pages);
    for (const one of left) process.stderr.write(printableLines(`not published, in ${section}: ${one}\n`));
  }
  await writePages(pages);
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`publish: ${printableLines(message)}\n`);
  process.exitCode = 1;
}
