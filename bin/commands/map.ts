import { PreconditionError } from "../../src/backup/base/errors.js";
import { ALLOCATION_CONTEXT, dirtyContext } from "../../src/backup/export/export-extents.js";
import { MetaContextError, NbdClient } from "../../src/nbd/index.js";
import { JsonForm, JsonTotalsForm, TextForm, TextTotalsForm } from "../map-forms.js";
import { type MapForm, MapPrinter } from "../map-printer.js";
import { connectOf } from "../option-values.js";
import type { NetworkOptions, TalkOptions } from "../options.js";
import type { Output } from "../output.js";
import type { Context } from "../run.js";

interface MapOptions extends NetworkOptions {
  readonly bitmap?: string;
  readonly context?: string;
  readonly totals?: true;
}

export async function runMap({ output, signal }: Context, options: MapOptions, uri: string): Promise<void> {
  const context =
    options.bitmap === undefined ? (options.context ?? ALLOCATION_CONTEXT) : dirtyContext(options.bitmap);
  await using client = await connect(uri, context, await connectOf(options, signal));
  await printMap(client, formOf(context, client.export.size, options), context, output, signal);
}

function formOf(context: string, size: number, { json, totals }: MapOptions & TalkOptions): MapForm {
  if (totals) return json ? new JsonTotalsForm(context, size) : new TextTotalsForm(context, size);
  return json ? new JsonForm(context) : new TextForm(context, size);
}

/** Extents are printed as they arrive, so their number costs no memory. */
const ANY_NUMBER = 2 ** 53 - 1;

async function connect(
  uri: string,
  context: string,
  options: Parameters<typeof NbdClient.connect>[1],
): Promise<NbdClient> {
  try {
    return await NbdClient.connect(uri, { maxExtents: ANY_NUMBER, ...options, metaContexts: [context] });
  } catch (cause) {
    if (!(cause instanceof MetaContextError)) throw cause;
    throw new PreconditionError(
      "E_NO_CONTEXT",
      `${cause.message}. List what the export has with "nbdpull info"`,
      { cause },
    );
  }
}

/** Prints the extents as they arrive; a disk may have more of them than fit in memory. */
async function printMap(
  client: NbdClient,
  form: MapForm,
  context: string,
  output: Output,
  signal: AbortSignal,
): Promise<void> {
  const stream = output.stream();
  const printer = new MapPrinter(form, stream);
  for await (const batch of client.blockStatus({ signal })) {
    const runs = batch.runs.get(context);
    if (runs !== undefined) printer.add(runs);
    await stream.drain();
    if (stream.gone) return;
  }
  printer.end();
  await stream.end();
}
