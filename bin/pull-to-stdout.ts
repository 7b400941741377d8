import { openExport } from "../src/backup/export/open-export.js";
import { Outages } from "../src/backup/export/outages.js";
import { type PullStreamResult, pullStream } from "../src/backup/take/pull-stream.js";
import type { NbdClient } from "../src/nbd/index.js";
import { InterruptedError } from "./exit-codes.js";
import { connectOf, rateLimitOf, reconnectOf, windowOf } from "./option-values.js";
import type { CopyOptions, NetworkOptions, ReconnectOptions } from "./options.js";
import { OutageNotes, outagesOf } from "./outage-notes.js";
import { counted, human, type Progress } from "./output.js";
import type { Context } from "./run.js";
import { DiskOnStdout } from "./standard-output.js";

const NAME = "standard output";

/** `nbdpull pull URI -`: a whole export, raw, on standard output. */
export async function pullToStdout(
  { output, signal }: Context,
  uri: string,
  options: CopyOptions & NetworkOptions & ReconnectOptions,
): Promise<void> {
  const disk = new DiskOnStdout();
  const connect = await connectOf(options, signal, reconnectOf(options));
  const progress = await output.progress();
  const notes = new OutageNotes(output, progress);
  const outages = new Outages((news) => notes.note(NAME, news));
  await using client = await openExport(uri, undefined, {
    ...outages.watch(connect, signal),
    widensLater: true,
  });
  const result = await copy(client, disk, progress, signal, options);
  const { connections } = client;
  output.result({ image: "-", format: "raw", mode: "full", ...result, connections, ...outagesOf(outages) }, [
    `standard output: full copy of ${human(result.virtualSize)}: ${human(result.readBytes)} read, the rest zeroes, in ${counted(result.extents, "extent")} in ${result.seconds.toFixed(2)} s`,
  ]);
}

async function copy(
  client: NbdClient,
  disk: DiskOnStdout,
  progress: Progress,
  signal: AbortSignal,
  options: CopyOptions & NetworkOptions,
): Promise<PullStreamResult> {
  try {
    const result = await pullStream({
      client,
      sink: disk,
      window: windowOf(options),
      rateLimit: rateLimitOf(options),
      signal,
      onProgress: ({ position, virtualSize, readBytes }) =>
        progress.update(NAME, position, virtualSize, readBytes),
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
