/**
 * Errors of the backup engine carry what a caller decides by: a stable `code`, and through the class the
 * exit code that the command line ends with. The message says what, where, and the next step.
 */
export class BackupError extends Error {
  override readonly name: string = "BackupError";
  readonly code: string;
  /** Structured facts for `--json`: disk, offset, path and so on. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: string,
    message: string,
    options: { cause?: unknown; details?: Record<string, unknown> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }
}

/** What is stored is not what was written, or does not match: exit code 3. */
export class DamageError extends BackupError {
  override readonly name = "DamageError";
}

/** The world isn't ready for this (no such bitmap, no parent, no job): exit code 4, with what to do. */
export class PreconditionError extends BackupError {
  override readonly name = "PreconditionError";
}

/** The caller asked for something that makes no sense: exit code 2. */
export class UsageError extends BackupError {
  override readonly name = "UsageError";
}
