import { UsageError } from "../../src/backup/base/errors.js";
import { openExport } from "../../src/backup/export/open-export.js";
import { Outages } from "../../src/backup/export/outages.js";
import { refuseAddress } from "../../src/backup/host/local-path.js";
import { refuseTarget } from "../../src/backup/host/publish.js";
import type { ImageFormat } from "../../src/backup/image/image.js";
import { loadImageStore } from "../../src/backup/pull/open-store.js";
import { pullFile } from "../../src/backup/take/pull-file.js";
import {
  compressOf,
  connectOf,
  digestsOf,
  formatOf,
  rateLimitOf,
  reconnectOf,
  windowOf,
} from "../option-values.js";
import type { CopyOptions, NetworkOptions, ReconnectOptions } from "../options.js";
import { OutageNotes, outagesOf } from "../outage-notes.js";
import { counted, human } from "../output.js";
import type { Context } from "../run.js";

export interface PullOptions extends CopyOptions, NetworkOptions, ReconnectOptions {
  readonly bitmap?: string;
  readonly backing?: string;
  readonly backingFormat?: ImageFormat;
  readonly force?: true;
}

/** The name of standard output; a file of that name is ./- */
const STDOUT = "-";

/** Loads what the work will need for such an image. */
export async function loadForImage(options: PullOptions, imagePath: string): Promise<void> {
  if (imagePath === STDOUT) return;
  const format = formatOf(imagePath, options.format);
  await loadImageStore({ format, compress: options.compress, digests: digestsOf(options, undefined) });
}

export async function runPull(
  context: Context,
  options: PullOptions,
  uri: string,
  imagePath: string,
): Promise<void> {
  if (imagePath === STDOUT) {
    context.output.leaveStdout();
    refuseImageOptions(options);
    const { pullToStdout } = await import("../pull-to-stdout.js");
    return await pullToStdout(context, uri, options);
  }
  const { output, signal } = context;
  const format = formatOf(imagePath, options.format);
  const compress = compressOf(options, format);
  const { bitmap, backing } = options;
  await refuseAddress(imagePath, "image");
  await refuseTarget(imagePath, options.force ?? false);
  const connect = await connectOf(options, signal, reconnectOf(options));
  const progress = await output.progress();
  const notes = new OutageNotes(output, progress);
  const outages = new Outages((news) => notes.note(imagePath, news));
  await using client = await openExport(uri, bitmap, {
    ...outages.watch(connect, signal),
    widensLater: true,
  });
  try {
    const result = await pullFile({
      client,
      bitmap,
      imagePath,
      format,
      backing:
        backing === undefined
          ? undefined
          : { path: backing, format: formatOf(backing, options.backingFormat) },
      digests: digestsOf(options, undefined),
      compress,
      force: options.force ?? false,
      sync: options.fsync,
      window: windowOf(options),
      rateLimit: rateLimitOf(options),
      signal,
      onProgress: ({ position, virtualSize, readBytes }) =>
        progress.update(imagePath, position, virtualSize, readBytes),
    });
    const { connections } = client;
    const { clusterSize, digestsSha256, ...rest } = result;
    output.result({ image: imagePath, ...rest, connections, ...outagesOf(outages) }, [
      `${imagePath}: ${result.mode} copy of ${human(result.virtualSize)}: ${human(result.dataBytes)} data and ${human(result.zeroBytes)} zeroes in ${counted(result.extents, "extent")}, ${human(result.storedBytes)} stored in ${result.seconds.toFixed(2)} s`,
    ]);
  } finally {
    progress.stop();
  }
}

/** @throws {UsageError} an option that only an image file can have */
function refuseImageOptions(options: PullOptions): void {
  const given = {
    "--bitmap": options.bitmap,
    "--backing": options.backing,
    "--backing-format": options.backingFormat,
    "--compress": options.compress,
    "--digests": options.digests || undefined,
    "--force": options.force,
    "--format qcow2": options.format === "qcow2" ? true : undefined,
  };
  const wrong = Object.entries(given).flatMap(([flag, value]) => (value === undefined ? [] : [flag]));
  if (wrong.length === 0) return;
  const message = `standard output gets the whole disk, raw, without ${wrong.join(" and ")}: name a file instead of "-", or leave that out`;
  throw new UsageError("E_STDOUT", message, { details: { options: wrong } });
}
