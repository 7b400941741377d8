import { Command, CommanderError, Help } from "commander";
import { BackupError } from "../src/backup/base/errors.js";
import { EXIT, exitCodeOf } from "./exit-codes.js";
import { defineHint, fillInDefaults, withTalk } from "./options.js";
import { errorLine, Output, reportCrashes, surviveClosedPipes } from "./output.js";
import { type Run, run } from "./run.js";
import { applySettings } from "./settings.js";
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
  const define = message.includes("too many arguments") ? defineHint(process.argv, process.argv) : "";
  const hints = define === "" ? more : [...more, define];
  printLines(process.stderr, [errorLine("E_USAGE", message.replace(/^error: /, "")), ...hints]);
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
  run: async () => (await import("./usage/run.js")).addRun,
  attach: async () => (await import("./usage/attach.js")).addAttach,
  import: async () => (await import("./usage/import.js")).addImport,
  points: async () => (await import("./usage/points.js")).addPoints,
  report: async () => (await import("./usage/report.js")).addReport,
  stats: async () => (await import("./usage/stats.js")).addStats,
  diff: async () => (await import("./usage/diff.js")).addDiff,
  restore: async () => (await import("./usage/restore.js")).addRestore,
  verify: async () => (await import("./usage/verify.js")).addVerify,
  repair: async () => (await import("./usage/repair.js")).addRepair,
  copy: async () => (await import("./usage/copy.js")).addCopy,
  prune: async () => (await import("./usage/prune.js")).addPrune,
  serve: async () => (await import("./usage/serve.js")).addServe,
  mount: async () => (await import("./usage/mount.js")).addMount,
  unmount: async () => (await import("./usage/unmount.js")).addUnmount,
  rehearse: async () => (await import("./usage/rehearse.js")).addRehearse,
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
for (const command of program.commands) {
  withTalk(command)
    .exitOverride()
    .configureHelp({
      optionDescription: (option) =>
        `${new Help().optionDescription(option)}${option.mandatory ? " (required)" : ""}`,
    });
}
program.hook("preSubcommand", async (_, command) => {
  const isHelp = process.argv.some((word) => word === "--help" || word === "-h");
  if (!isHelp) await applySettings(command, process.argv, process.env);
});

surviveClosedPipes();
// All work is finished. Exiting now spares Node from tearing down its heap, which took a tenth of a small
// pull.
let isDone = false;
process.once("beforeExit", () => {
  if (!isDone) {
    // Nothing is under way any more, so nothing can end what still waits: that must not look like success.
    process.exitCode = EXIT.failed;
    const why = "the work ended without a result, a mistake of this program: report it, and run it again";
    printLines(process.stderr, [errorLine("E_UNFINISHED", why)]);
  }
  process.exit();
});
try {
  await program.parseAsync(fillInDefaults(process.argv));
} catch (error) {
  if (!(error instanceof CommanderError || error instanceof BackupError)) throw error;
  process.exitCode = exitCodeOf(error);
  const isDiskOnStdout = called === "pull" && process.argv.includes("-");
  if (error instanceof BackupError) {
    const has = (flag: string): boolean => process.argv.includes(flag);
    const output = new Output({ json: has("--json"), quiet: has("--quiet"), verbose: has("--verbose") });
    if (isDiskOnStdout) output.leaveStdout();
    output.failure(error);
    // Of commander's errors the text is printed already; with --json, they must appear on stdout as well.
  } else if (error.exitCode !== 0 && process.argv.includes("--json")) {
    const stream = isDiskOnStdout ? process.stderr : process.stdout;
    printJson(stream, { version: 1, error: { code: "E_USAGE", message: error.message } });
  }
}
isDone = true;
endIfAbandoned();
