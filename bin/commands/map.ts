import { type Command, Option } from "commander";
import { PreconditionError } from "../../src/backup/errors.js";
import { ALLOCATION_CONTEXT, dirtyContext } from "../../src/backup/export-extents.js";
import { MetaContextError, NbdClient, type StatusExtent } from "../../src/nbd/index.js";
import { connectOf, type NetworkOptions, withNetwork } from "../options.js";
import { human } from "../output.js";
import { picture } from "../picture.js";
import type { Run } from "../run.js";

interface MapOptions extends NetworkOptions {
  readonly bitmap?: string;
  readonly context?: string;
}

export function addMap(program: Command, run: Run): void {
  const command = program
    .command("map")
    .description(
      "the extents of a meta context (base:allocation by default), totals, and where on the disk they lie",
    )
    .argument("<uri>")
    .addOption(new Option("--bitmap <name>", "the dirty bitmap of this name").conflicts("context"))
    .option("--context <name>", "any meta context, by its full name");
  withNetwork(command).action(
    run<MapOptions, [uri: string]>(async ({ output, signal }, options, uri) => {
      const context =
        options.bitmap === undefined ? (options.context ?? ALLOCATION_CONTEXT) : dirtyContext(options.bitmap);
      await using client = await connect(uri, context, await connectOf(options, signal));
      const extents: MapLine[] = [];
      for (const extent of await merged(client, context, signal)) extents.push(describe(extent, context));
      output.result(extents, asText(extents, client.export.size));
    }),
  );
}

/** One extent as `nbdinfo --map --json` prints it. */
interface MapLine {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
  readonly description: string;
}

async function connect(
  uri: string,
  context: string,
  options: Parameters<typeof NbdClient.connect>[1],
): Promise<NbdClient> {
  try {
    return await NbdClient.connect(uri, { ...options, metaContexts: [context] });
  } catch (cause) {
    if (!(cause instanceof MetaContextError)) throw cause;
    throw new PreconditionError(
      "E_NO_CONTEXT",
      `${cause.message}. List what the export has with "nbdpull info"`,
      { cause },
    );
  }
}

/** All extents of one context; equal neighbours of different replies are joined. */
async function merged(client: NbdClient, context: string, signal: AbortSignal): Promise<StatusExtent[]> {
  const extents: StatusExtent[] = [];
  for await (const batch of client.blockStatus({ signal })) {
    for (const extent of batch.contexts.get(context) ?? []) {
      const last = extents.at(-1);
      if (last?.flags === extent.flags)
        extents[extents.length - 1] = { ...last, length: last.length + extent.length };
      else extents.push(extent);
    }
  }
  return extents;
}

function describe({ offset, length, flags }: StatusExtent, context: string): MapLine {
  return { offset, length, type: flags, description: describeFlags(context, flags) };
}

/** The words of nbdinfo. */
function describeFlags(context: string, flags: number): string {
  if (context === ALLOCATION_CONTEXT) return ["data", "hole", "zero", "hole,zero"][flags & 3] ?? "";
  if (context.startsWith("qemu:dirty-bitmap:")) return (flags & 1) === 0 ? "clean" : "dirty";
  if (context === "qemu:allocation-depth") {
    return flags === 0 ? "unallocated" : flags === 1 ? "local" : `backing depth ${flags}`;
  }
  return "";
}

function asText(extents: readonly MapLine[], size: number): string {
  const lines = extents.map(({ offset, length, type, description }) =>
    [
      String(offset).padStart(14),
      String(length).padStart(14),
      String(type).padStart(4),
      ` ${description}`,
    ].join(" "),
  );
  const totals = new Map<string, { bytes: number; extents: number }>();
  for (const { length, description } of extents) {
    const total = totals.get(description) ?? { bytes: 0, extents: 0 };
    totals.set(description, { bytes: total.bytes + length, extents: total.extents + 1 });
  }
  for (const [description, total] of totals) {
    const percent = ((total.bytes / size) * 100).toFixed(1);
    lines.push(
      `${description || "(no name)"}: ${human(total.bytes)} (${percent}%) in ${total.extents} extents`,
    );
  }
  const marked = extents.filter(
    ({ description }) => description === "data" || description === "dirty" || description === "local",
  );
  lines.push(`[${picture(marked, size, 64)}]`);
  return lines.join("\n");
}
