/** How `prune` and `verify` ended, in a metrics file. */
import { resolve } from "node:path";
import { exitCodeOf } from "./exit-codes.js";
import { updateOfJob } from "./metrics.js";
import { MetricsFile } from "./metrics-file.js";
import type { Context } from "./run.js";

/**
 * Does the work, and records when it ended and how. What was done doesn't count as failed because its metrics could
 * not be written.
 * @throws {UsageError} `E_METRICS`: they can't be written at all, and nothing was begun
 */
export async function recordedJob(
  job: "prune" | "verify",
  { output, signal }: Context,
  { metrics }: { readonly metrics?: string },
  repository: string,
  work: () => Promise<void>,
): Promise<void> {
  if (metrics === undefined) return await work();
  const file = await MetricsFile.at(metrics);
  const record = async (code: number): Promise<void> => {
    try {
      await file.update(updateOfJob(job, resolve(repository), code, Date.now()));
    } catch (error) {
      output.warn(`no metrics were written: ${error instanceof Error ? error.message : String(error)}`);
    }
  };
  try {
    await work();
  } catch (error) {
    await record(exitCodeOf(signal.aborted ? signal.reason : error));
    throw error;
  }
  await record(Number(process.exitCode ?? 0));
}
