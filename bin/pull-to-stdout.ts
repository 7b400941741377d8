import { openExport } from "../src/backup/export/open-export.js";
import { type PullStreamResult, pullStream } from "../src/backup/take/pull-stream.js";
import type { NbdClient } from "../src/nbd/index.js";
import { InterruptedError } from "./exit-codes.js";
import { connectOf, rateLimitOf, windowOf } from "./option-values.js";
import type { CopyOptions, NetworkOptions } from "./options.js";
import { human, type Output } from "./output.js";
import type { Context } from "./run.js";
import { DiskOnStdout } from "./standard-output.js";

/** `nbdpull pull URI -`: a whole export, raw, on standard output. */
export async function pullToStdout(
  { output, signal }: Context,
  uri: string,
  options: CopyOptions & NetworkOptions,
): Promise<void> {
  const disk = new DiskOnStdout();
  await using client = await openExport(uri, undefined, await connectOf(options, signal));
  const result = await copy(client, disk, output, signal, options);
  const { connections } = client;
  output.result({ image: "-", format: "raw", mode: "full", ...result, connections }, [
    `standard output: full copy of ${human(result.virtualSize)}: ${human(result.readBytes)} read, the rest zeroes, in ${result.extents} extents in ${result.seconds.toFixed(2)} s`,
  ]);
}

async function copy(
  client: NbdClient,
  disk: DiskOnStdout,
  output: Output,
  signal: AbortSignal,
  options: CopyOptions & NetworkOptions,
): Promise<PullStreamResult> {
  const progress = await output.progress();
  try {
    const result = await pullStream({
      client,
      sink: disk,
      window: windowOf(options),
      rateLimit: rateLimitOf(options),
      signal,
      onProgress: ({ position, virtualSize, readBytes }) =>
        progress.update("standard output", position, virtualSize, readBytes),
    });
    if (options.fsync) await disk.sync();
    return result;
  } catch (error) {
    disk.abandon();
    const { reason } = signal;
    throw reason instanceof InterruptedError ? reason.leaving("the output is incomplete") : error;
  } finally {
    progress.stop();
  }
}
