/**
 * What every other room of src/backup uses. Read this file first: it has the classes of errors. Then read
 * `extent.ts` (clean, zero and data) and `damage.ts` (how damage is reported). The other files are helpers:
 * `progress.ts`, `in-parallel.ts`, `zeroes.ts`, `shell-word.ts` and `json.ts`.
 *
 * This room imports no other room. Nothing here reads or writes files or uses the network.
 */

/**
 * An error of the backup engine. Its `code` is stable. Its class decides the exit code of the command
 * (bin/exit-codes.ts); for this class itself that is 1. The message says what failed, where, and what to do
 * next.
 */
export class BackupError extends Error {
  override readonly name: string = "BackupError";
  readonly code: string;
  /** Facts for `--json`, such as the disk, the offset or the path. */
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

  /** An error of the same class and code with another message and more details; its cause is this error. */
  of(message: string, details: Record<string, unknown>): BackupError {
    return new BackupError(this.code, message, { cause: this, details: { ...this.details, ...details } });
  }
}

/** Stored data is damaged, missing, or doesn't fit together: exit code 3. */
export class DamageError extends BackupError {
  override readonly name = "DamageError";

  override of(message: string, details: Record<string, unknown>): DamageError {
    return new DamageError(this.code, message, { cause: this, details: { ...this.details, ...details } });
  }
}

/** A precondition isn't met, such as a bitmap, a parent or a job that must exist: exit code 4. */
export class PreconditionError extends BackupError {
  override readonly name = "PreconditionError";

  override of(message: string, details: Record<string, unknown>): PreconditionError {
    return new PreconditionError(this.code, message, {
      cause: this,
      details: { ...this.details, ...details },
    });
  }
}

/** The caller's options are invalid or contradict each other: exit code 2. */
export class UsageError extends BackupError {
  override readonly name = "UsageError";

  override of(message: string, details: Record<string, unknown>): UsageError {
    return new UsageError(this.code, message, { cause: this, details: { ...this.details, ...details } });
  }
}

/** The message of a thrown value of any type. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Whether `error` is an `Error` with this code: one of ours or the system's. */
export function hasCode(error: unknown, code: string): error is NodeJS.ErrnoException {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code;
}

/**
 * An error of the same code with another message and more details; its cause is `error`. One of ours keeps
 * its class too.
 */
export function explained(error: unknown, message: string, details: Record<string, unknown>): BackupError {
  if (error instanceof BackupError) return error.of(message, details);
  const { code } = error as { readonly code?: unknown };
  const known = typeof code === "string" ? code : "E_FAILED";
  return new BackupError(known, message, { cause: error, details });
}
