import { CommanderError } from "commander";
import { BackupError } from "../src/backup/base/errors.js";
import { EXIT, exitCodeOf } from "./exit-codes.js";
import { defineHint, fillInDefaults } from "./options.js";
import { errorLine, Output, reportCrashes, surviveClosedPipes } from "./output.js";
import { loadProgram } from "./program.js";
import { run } from "./run.js";
import { applySettings } from "./settings.js";
import { endIfAbandoned } from "./standard-output.js";
import { printJson, printLines, printText } from "./terminal.js";

reportCrashes();

/** What commander says of an error, without its own prefix, and what the user may have meant: a line each. */
function usageErrorOf(text: string): { readonly message: string; readonly hints: readonly string[] } {
  const [message = "", ...meant] = text.trimEnd().split(/\n(?=\(Did you mean [^\n]*\)$)/);
  const define = message.includes("too many arguments") ? defineHint(process.argv, process.argv) : "";
  return { message: message.replace(/^error: /, ""), hints: define === "" ? meant : [...meant, define] };
}

/** An error of commander may quote an argument, which a script may have taken from anywhere. */
function printUsageError(text: string): void {
  const { message, hints } = usageErrorOf(text);
  printLines(process.stderr, [errorLine("E_USAGE", message), ...hints]);
}

const called = process.argv[2] ?? "";
const program = await loadProgram(called, run);
for (const command of [program, ...program.commands]) {
  command.exitOverride().configureOutput({
    writeOut: (text) => printText(process.stdout, text),
    writeErr: (text) => printText(process.stderr, text),
    outputError: printUsageError,
  });
}
program.hook("preSubcommand", async (_, command) => {
  const isHelp = process.argv.some((word) => word === "--help" || word === "-h");
  // Completion is asked for when a shell begins, where nobody wants to hear of settings.
  if (!isHelp && command.name() !== "completion") await applySettings(command, process.argv, process.env);
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
    const { message, hints } = usageErrorOf(error.message);
    const hint = hints.length > 0 ? { hint: hints.join(" ") } : {};
    printJson(stream, { version: 1, error: { code: "E_USAGE", message, ...hint } });
  }
}
isDone = true;
endIfAbandoned();
