import { Command, CommanderError } from "commander";
import { exitCodeOf } from "./exit-codes.js";
import { fillInDefaults, withTalk } from "./options.js";
import { errorLine, reportCrashes, surviveClosedPipes } from "./output.js";
import { type Run, run } from "./run.js";
import { endIfAbandoned } from "./standard-output.js";
import { printJson, printLines, printText } from "./terminal.js";
import { version } from "./version.js";

reportCrashes();

const EXIT_CODES = `
Exit codes: 0 done; 1 failed, nothing was committed; 2 usage; 3 data is damaged or does not match;
4 the preconditions are not met; 5 with --strict: done, with warnings; 129, 130, 143 ended by a signal.`;

/** An error of commander may quote an argument, which a script may have taken from anywhere. */
function printUsageError(text: string): void {
  const [message = "", ...more] = text.trimEnd().split(/\n(?=\(Did you mean [^\n]*\)$)/);
  printLines(process.stderr, [errorLine("E_USAGE", message.replace(/^error: /, "")), ...more]);
}

const program = new Command("nbdpull")
  .configureOutput({
    writeOut: (text) => printText(process.stdout, text),
    writeErr: (text) => printText(process.stderr, text),
    outputError: printUsageError,
  })
  .description(
    "Pull-mode backups over NBD: full and incremental images of running virtual machines, and any point back.",
  )
  .version(version())
  .addHelpText("after", EXIT_CODES)
  .showHelpAfterError("(nbdpull COMMAND --help tells more)")
  .exitOverride();

/** In the order of the help text. */
const COMMANDS: Readonly<Record<string, () => Promise<(program: Command, run: Run) => void>>> = {
  pull: async () => (await import("./usage/pull.js")).addPull,
  map: async () => (await import("./usage/map.js")).addMap,
  info: async () => (await import("./usage/info.js")).addInfo,
  init: async () => (await import("./usage/init.js")).addInit,
  backup: async () => (await import("./usage/backup.js")).addBackup,
  attach: async () => (await import("./usage/attach.js")).addAttach,
  import: async () => (await import("./usage/import.js")).addImport,
  points: async () => (await import("./usage/points.js")).addPoints,
  restore: async () => (await import("./usage/restore.js")).addRestore,
  verify: async () => (await import("./usage/verify.js")).addVerify,
  repair: async () => (await import("./usage/repair.js")).addRepair,
  copy: async () => (await import("./usage/copy.js")).addCopy,
  prune: async () => (await import("./usage/prune.js")).addPrune,
  serve: async () => (await import("./usage/serve.js")).addServe,
  doctor: async () => (await import("./usage/doctor.js")).addDoctor,
  demo: async () => (await import("./usage/demo.js")).addDemo,
};
// Loading every command takes longer than many an incremental backup, so only the given one is loaded.
// Anything else (help, a misspelled command) loads all of them.
const called = process.argv[2] ?? "";
const needsAll = !Object.hasOwn(COMMANDS, called) && !["--version", "-V"].includes(called);
for (const [name, load] of Object.entries(COMMANDS)) {
  if (name === called || needsAll) (await load())(program, run);
}
for (const command of program.commands) withTalk(command).exitOverride();

surviveClosedPipes();
// All work is finished. Exiting now spares Node from tearing down its heap, which took a tenth of a small
// pull.
process.once("beforeExit", () => process.exit());
try {
  await program.parseAsync(fillInDefaults(process.argv));
} catch (error) {
  // Commander has already printed the error; with --json, it must appear on stdout as well.
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = exitCodeOf(error);
  if (error.exitCode !== 0 && process.argv.includes("--json")) {
    const isDiskOnStdout = called === "pull" && process.argv.includes("-");
    const stream = isDiskOnStdout ? process.stderr : process.stdout;
    printJson(stream, { error: { code: "E_USAGE", message: error.message } });
  }
}
endIfAbandoned();
