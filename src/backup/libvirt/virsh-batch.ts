/** Several commands for one process of virsh, and which part of its output is whose. Pure. */

/** A command of virsh that changes nothing. */
export interface Question {
  readonly command: string;
  readonly args: readonly string[];
  /** What it is about, for messages. */
  readonly about: string;
}

/** What virsh would have printed for one command. */
export interface Said {
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * The commands, as virsh takes them in one argument. `mark` is printed between them, on both outputs:
 *
 *     dumpxml '--domain=web'; echo MARK; echo --err MARK; domid '--domain=web'
 */
export function formatBatch(questions: readonly Question[], mark: string): string {
  const commands = questions.map(({ command, args }) => [command, ...args.map(quoted)].join(" "));
  return commands.join(`; echo ${mark}; echo --err ${mark}; `);
}

/** @returns undefined where the marks are not all there: virsh ended before, or doesn't know them */
export function parseBatch({ stdout, stderr }: Said, mark: string, count: number): Said[] | undefined {
  const printed = stdout.split(mark);
  // What goes there comes as an error.
  const complained = stderr.split(`error: ${mark}`);
  if (printed.length !== count || complained.length !== count) return undefined;
  return printed.map((text, index) => ({
    // Without the last line's end, as execa gives it; whether a mark has one depends on the version of virsh.
    stdout: (index === 0 ? text : text.replace(/^\n/, "")).replace(/\n$/, ""),
    stderr: (complained[index] ?? "").trim(),
  }));
}

/** One that has failed says so: the exit code is the last one's only. */
export function hasFailed({ stderr }: Said): boolean {
  return /^error: /m.test(stderr);
}

/** virsh reads quotes as a shell does. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
