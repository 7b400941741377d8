/**
 * Writes a result file into the documentation.
 *
 *     npm run bench:publish -- RESULT.json [PAGE]         default: docs/performance.md
 *     npm run bench:publish -- --section chains RESULT.json
 *
 * A section of the page is for the results of a run of its own.
 */

import { join } from "node:path";
import { parseArgs } from "node:util";
import { PROJECT } from "./paths.js";
import { publish } from "./publication.js";
import { readResult } from "./result-file.js";

const {
  positionals: [file, page = join(PROJECT, "docs", "performance.md")],
  values: { section },
} = parseArgs({ allowPositionals: true, options: { section: { type: "string" } } });
if (file === undefined) {
  process.stderr.write("usage: npm run bench:publish -- [--section NAME] RESULT.json [PAGE]\n");
  process.exitCode = 2;
} else await publish(await readResult(file), page, section);
