/**
 * Writes results into the documentation, and makes its pages anew of all that is published there.
 *
 *     npm run bench:publish -- [--page PAGE] [SECTION=RESULT.json[,RESULT.json...]...]
 *
 * Several results of a section are of runs one after the other; of a workload in two of them the later counts. They
 * replace all that is published of the section.
 */

import { join } from "node:path";
import { parseArgs } from "node:util";
import { printableLines } from "../src/backup/base/printable.js";
import { combined } from "./page.js";
import { PROJECT } from "./paths.js";
import { madeOfResults, type Pages, publish, writePages } from "./publication.js";
import { readResult } from "./result-file.js";
import { isSection, SECTIONS, type Section } from "./sections.js";

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { page: { type: "string" } },
});
const pages: Pages =
  values.page === undefined
    ? { page: join(PROJECT, "docs", "performance.md"), readme: join(PROJECT, "README.md") }
    : { page: values.page };
try {
  // What is published is replaced only after all that was named could be read, put together and shown.
  const given = positionals.map(sectionOf);
  const twice = given.find(([section], at) => given.findIndex(([other]) => other === section) !== at);
  if (twice !== undefined)
    throw new Error(`the section ${twice[0]} was given twice: name its files with a comma between`);
  const results = await Promise.all(
    given.map(async ([section, files]) => [section, await Promise.all(files.map(readResult))] as const),
  );
  for (const [, ofSection] of results) combined(ofSection);
  await madeOfResults(pages);
  for (const [section, ofSection] of results) {
    const left = await publish(section, ofSection, pages);
    for (const one of left) process.stderr.write(printableLines(`not published, in ${section}: ${one}\n`));
  }
  await writePages(pages);
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`publish: ${printableLines(message)}\n`);
  process.exitCode = 1;
}

/** @throws where it is not SECTION=FILE[,FILE...] */
function sectionOf(argument: string): readonly [Section, readonly string[]] {
  const [, section = "", files = ""] = /^([^=]+)=(.+)$/.exec(argument) ?? [];
  if (!isSection(section))
    throw new Error(`usage: SECTION=RESULT.json[,...], where SECTION is one of ${SECTIONS.join(", ")}`);
  return [section, files.split(",")];
}
