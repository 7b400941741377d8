/** How `prune` and `verify` ended, in a metrics file. */

import { EXIT, exitCodeOf, worstOf } from "./exit-codes.js";
import { updateOfJob } from "./metrics.js";
import { MetricsFile } from "./metrics-file.js";
import { placeOf } from "./place-of.js";
import type { Context } from "./run.js";

/**
 * Does the work, and records when it ended and how. What was done doesn't count as failed because its metrics
 * could not be written.
 * @param metrics the file; undefined: nothing is recorded, as the work is not about the whole repository
 * @param work resolves with the exit code of what it knows of the repository, where that may be a worse one
 * @throws {UsageError} `E_METRICS`: they can't be written at all, and nothing was begun
 */
export async function recordedJob(
  job: "prune" | "verify",
  { output, signal }: Context,
  { metrics, strict }: { readonly metrics?: string | undefined; readonly strict?: true | undefined },
  repository: string,
  work: () => Promise<number | undefined>,
): Promise<void> {
  if (metrics === undefined) {
    await work();
    return;
  }
  const before = output.warnings.length;
  const file = await MetricsFile.at(metrics);
  const record = async (code: number): Promise<void> => {
    try {
      await file.update(updateOfJob(job, placeOf(repository), code, Date.now()));
    } catch (error) {
      output.warn(`no metrics were written: ${error instanceof Error ? error.message : String(error)}`);
    }
  };
  let known: number | undefined;
  try {
    known = await work();
  } catch (error) {
    await record(exitCodeOf(signal.aborted ? signal.reason : error));
    throw error;
  }
  const code = strict && output.warnings.length > before ? EXIT.warnings : EXIT.done;
  await record(worstOf([Number(process.exitCode ?? code), known ?? EXIT.done]));
}
