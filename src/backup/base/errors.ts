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

  /** The same error with another message and more facts; this one is its cause. */
  of(message: string, details: Record<string, unknown>): BackupError {
    return new BackupError(this.code, message, { cause: this, details: { ...this.details, ...details } });
  }
}

/** What is stored is not what was written, or does not match: exit code 3. */
export class DamageError extends BackupError {
  override readonly name = "DamageError";

  override of(message: string, details: Record<string, unknown>): DamageError {
    return new DamageError(this.code, message, { cause: this, details: { ...this.details, ...details } });
  }
}

/** The world isn't ready for this (no such bitmap, no parent, no job): exit code 4, with what to do. */
export class PreconditionError extends BackupError {
  override readonly name = "PreconditionError";

  override of(message: string, details: Record<string, unknown>): PreconditionError {
    return new PreconditionError(this.code, message, {
      cause: this,
      details: { ...this.details, ...details },
    });
  }
}

/** The caller asked for something that makes no sense: exit code 2. */
export class UsageError extends BackupError {
  override readonly name = "UsageError";

  override of(message: string, details: Record<string, unknown>): UsageError {
    return new UsageError(this.code, message, { cause: this, details: { ...this.details, ...details } });
  }
}

/** The text of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Whether this is an error with this code: one of ours, or the system's. */
export function hasCode(error: unknown, code: string): error is NodeJS.ErrnoException {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code;
}
