#!/usr/bin/env node
import { Command, CommanderError } from "commander";
import { addAttach } from "./commands/attach.js";
import { addDemo } from "./commands/demo.js";
import { addInfo } from "./commands/info.js";
import { addMap } from "./commands/map.js";
import { addPoints } from "./commands/points.js";
import { addPull } from "./commands/pull.js";
import { addRestore } from "./commands/restore.js";
import { addVerify } from "./commands/verify.js";
import { exitCodeOf } from "./exit-codes.js";
import { fillInDigests, withTalk } from "./options.js";
import { surviveClosedPipes } from "./output.js";
import { run } from "./run.js";
import { version } from "./version.js";

const EXIT_CODES = `
Exit codes: 0 done; 1 failed, nothing was committed; 2 usage; 3 data is damaged or does not match;
4 the preconditions are not met; 5 with --strict: done, with warnings; 129, 130, 143 ended by a signal.`;

const program = new Command("nbdpull")
  .description(
    "Pull-mode backups over NBD: full and incremental images of running virtual machines, and any point back.",
  )
  .version(version())
  .addHelpText("after", EXIT_CODES)
  .showHelpAfterError("(nbdpull COMMAND --help tells more)")
  .exitOverride();

for (const add of [addPull, addMap, addInfo, addAttach, addPoints, addRestore, addVerify, addDemo])
  add(program, run);
for (const command of program.commands) withTalk(command).exitOverride();

surviveClosedPipes();
try {
  await program.parseAsync(fillInDigests(process.argv));
} catch (error) {
  // Commander has said what is wrong already; with --json it has to be said on stdout as well.
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = exitCodeOf(error);
  if (error.exitCode !== 0 && process.argv.includes("--json")) {
    process.stdout.write(
      `${JSON.stringify({ error: { code: "E_USAGE", message: error.message } }, null, 2)}\n`,
    );
  }
}
