import type { Command } from "commander";
import { allOrNone } from "../../src/backup/base/in-parallel.js";
import { type ExportInfo, formatNbdUri, listExports, NbdClient, parseNbdUri } from "../../src/nbd/index.js";
import { connectOf, type NetworkOptions, withNetwork } from "../options.js";
import { human } from "../output.js";
import type { Run } from "../run.js";

interface InfoOptions extends NetworkOptions {
  readonly list?: true;
}

/** A server may list 65,536 names, and each costs a connection. */
const MOST_DESCRIBED = 1000;
const AT_ONCE = 4;

export function addInfo(program: Command, run: Run): void {
  const command = program
    .command("info")
    .description("an export (or with --list all of them): size, flags, block sizes, protocol, meta contexts")
    .argument("<uri>")
    .option("--list", "all exports that the server lists");
  withNetwork(command).action(
    run<InfoOptions, [uri: string]>(async ({ output, signal }, options, uri) => {
      const address = parseNbdUri(uri);
      const connect = await connectOf(options, signal);
      const names = options.list
        ? (await listExports(address, connect)).map(({ name }) => name)
        : [address.exportName];
      if (names.length > MOST_DESCRIBED) {
        output.warn(
          `the server lists ${names.length} exports, of which the first ${MOST_DESCRIBED} are described: name another one in the URI to see it`,
        );
      }
      const described = names.slice(0, MOST_DESCRIBED);
      const exports = await allOrNone(described, AT_ONCE, signal, async (exportName, either) => {
        const options = { ...connect, listContexts: true, signal: either };
        await using client = await NbdClient.connect({ ...address, exportName }, options);
        return client.export;
      });
      const json = {
        protocol: "newstyle-fixed",
        TLS: exports[0]?.tls ?? false,
        structured: exports[0] !== undefined && exports[0].protocol !== "simple",
        extended: exports[0]?.protocol === "extended",
        exports: exports.map((info) => asJson(info, formatNbdUri({ ...address, exportName: info.name }))),
      };
      output.result(json, exports.flatMap(asText));
    }),
  );
}

/** The field names of `nbdinfo --json`. */
function asJson(info: ExportInfo, uri: string): Record<string, unknown> {
  return {
    "export-name": info.name,
    ...(info.description === undefined ? {} : { description: info.description }),
    uri,
    contexts: info.availableContexts ?? [],
    is_rotational: info.rotational,
    is_read_only: info.readOnly,
    can_cache: info.canCache,
    can_df: info.canDf,
    can_fast_zero: info.canFastZero,
    can_flush: info.canFlush,
    can_fua: info.canFua,
    can_multi_conn: info.canMultiConn,
    can_trim: info.canTrim,
    can_zero: info.canWriteZeroes,
    ...(info.blockSize && {
      block_size_minimum: info.blockSize.minimum,
      block_size_preferred: info.blockSize.preferred,
      block_size_maximum: info.blockSize.maximum,
    }),
    "export-size": info.size,
    "export-size-str": human(info.size),
  };
}

function asText(info: ExportInfo): string[] {
  const can = Object.entries({
    "read-only": info.readOnly,
    "multi-conn": info.canMultiConn,
    df: info.canDf,
    flush: info.canFlush,
    fua: info.canFua,
    trim: info.canTrim,
    "write-zeroes": info.canWriteZeroes,
    "fast-zero": info.canFastZero,
    cache: info.canCache,
    rotational: info.rotational,
  });
  const block = info.blockSize;
  return [
    `export "${info.name}"${info.description ? ` (${info.description})` : ""}`,
    `  size: ${info.size} (${human(info.size)})`,
    `  protocol: ${info.protocol} replies, ${info.tls ? "TLS" : "no TLS"}`,
    `  flags: ${can.flatMap(([name, yes]) => (yes ? [name] : [])).join(", ") || "none"}`,
    `  block size: ${block ? `minimum ${block.minimum}, preferred ${block.preferred}, maximum ${block.maximum}` : "not told"}`,
    `  contexts: ${info.availableContexts?.join(", ") || "none"}`,
  ];
}
