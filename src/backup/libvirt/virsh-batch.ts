/** Joins several commands for one virsh process and divides its output among them. Pure functions. */

/** A command of virsh that changes nothing. */
export interface Question {
  readonly command: string;
  readonly args: readonly string[];
  /** The command's subject, for messages. */
  readonly about: string;
}

/** What virsh would have printed for one command. */
export interface Said {
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Joins commands into one argument for virsh, which prints `mark` between them on both outputs:
 *
 *     dumpxml '--domain=web'; echo MARK; echo --err MARK; domid '--domain=web'
 */
export function formatBatch(questions: readonly Question[], mark: string): string {
  const commands = questions.map(({ command, args }) => [command, ...args.map(quoted)].join(" "));
  return commands.join(`; echo ${mark}; echo --err ${mark}; `);
}

/** @returns undefined if marks are missing: virsh ended before, or doesn't support them */
export function parseBatch({ stdout, stderr }: Said, mark: string, count: number): Said[] | undefined {
  const printed = stdout.split(mark);
  // virsh prints the text of `echo --err` as an error.
  const complained = stderr.split(`error: ${mark}`);
  if (printed.length !== count || complained.length !== count) return undefined;
  return printed.map((text, index) => ({
    // Without the final line break, as execa returns output. Whether a mark has one depends on the version of
    // virsh.
    stdout: (index === 0 ? text : text.replace(/^\n/, "")).replace(/\n$/, ""),
    stderr: (complained[index] ?? "").trim(),
  }));
}

/** Whether the command failed, according to its messages: the exit code is only that of the last command. */
export function hasFailed({ stderr }: Said): boolean {
  return /^error: /m.test(stderr);
}

/** virsh reads quotes as a shell does. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
