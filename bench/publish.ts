/**
 * Writes a result file into the documentation.
 *
 *     npm run bench:publish -- RESULT.json [PAGE]         default: docs/performance.md
 */

import { join } from "node:path";
import { parseArgs } from "node:util";
import { PROJECT } from "./paths.js";
import { publish } from "./publication.js";
import { readResult } from "./result-file.js";

const [file, page = join(PROJECT, "docs", "performance.md")] = parseArgs({
  allowPositionals: true,
}).positionals;
if (file === undefined) {
  process.stderr.write("usage: npm run bench:publish -- RESULT.json [PAGE]\n");
  process.exitCode = 2;
} else await publish(await readResult(file), page);
