import { allOrNone } from "../../src/backup/base/in-parallel.js";
import {
  type ConnectOptions,
  type ExportInfo,
  formatNbdUri,
  listExports,
  type NbdAddress,
  NbdClient,
  NbdError,
  parseNbdUri,
} from "../../src/nbd/index.js";
import { EXIT } from "../exit-codes.js";
import { connectOf } from "../option-values.js";
import type { NetworkOptions } from "../options.js";
import { human, type Output } from "../output.js";
import type { Context } from "../run.js";

interface InfoOptions extends NetworkOptions {
  readonly list?: true;
}

/** A server may list 65,536 names, and each costs a connection. */
const MOST_DESCRIBED = 1000;
const AT_ONCE = 4;
/** Characters of the contexts of all exports together: each export may have 16 MiB of them. */
const MOST_CONTEXT_CHARACTERS = 16 * 1024 * 1024;

export async function runInfo({ output, signal }: Context, options: InfoOptions, uri: string): Promise<void> {
  const address = parseNbdUri(uri);
  const connect = { ...(await connectOf(options, signal)), listContexts: true };
  const found = options.list
    ? await describeAll(address, connect, output)
    : { exports: [await describe(address, connect)], errors: [] };
  const [first] = found.exports;
  const json = {
    protocol: first?.handshake ?? "newstyle-fixed",
    TLS: first?.tls ?? false,
    structured: first !== undefined && first.protocol !== "simple",
    extended: first?.protocol === "extended",
    exports: found.exports.map((info) => asJson(info, formatNbdUri({ ...address, exportName: info.name }))),
    ...(found.errors.length === 0 ? {} : { errors: found.errors }),
  };
  output.result(json, found.exports.flatMap(asText));
  if (found.errors.length > 0) process.exitCode = EXIT.precondition;
}

async function describe(address: NbdAddress, connect: ConnectOptions): Promise<ExportInfo> {
  await using client = await NbdClient.connect(address, connect);
  return client.export;
}

interface Described {
  readonly exports: readonly ExportInfo[];
  /** Those that the server lists and doesn't open, in JSON. */
  readonly errors: readonly Record<string, unknown>[];
}

/** Describes what the server lists. What it doesn't open is named on stderr, and hides nothing else. */
async function describeAll(address: NbdAddress, connect: ConnectOptions, output: Output): Promise<Described> {
  const listed = await listExports(address, connect);
  if (listed.length > MOST_DESCRIBED) {
    output.warn(
      `the server lists ${listed.length} exports, of which the first ${MOST_DESCRIBED} are described: name another one in the URI to see it`,
    );
  }
  let room = MOST_CONTEXT_CHARACTERS;
  const outcomes = await allOrNone(
    listed.slice(0, MOST_DESCRIBED),
    AT_ONCE,
    connect.signal,
    async ({ name, description }, signal) => {
      try {
        const told = await describe({ ...address, exportName: name }, { ...connect, signal });
        room -= (told.availableContexts ?? []).reduce((sum, { length }) => sum + length, 0);
        const info = room >= 0 ? told : { ...told, availableContexts: [] };
        // Some servers tell the description in the list alone.
        return { info: description === undefined ? info : { description, ...info } };
      } catch (error) {
        if (signal.aborted || isServerGone(error)) throw error;
        return { name, error };
      }
    },
  );
  if (room < 0) output.warn("the server has more contexts than make sense: some exports are without theirs");
  const exports = outcomes.flatMap(({ info }) => info ?? []);
  const errors = outcomes.flatMap(({ info, name, error }) =>
    info ? [] : [{ "export-name": name, ...output.fault(`export "${name}"`, error) }],
  );
  return { exports, errors };
}

/** Then no other export can be opened either. */
function isServerGone(error: unknown): boolean {
  return error instanceof NbdError && error.code === "NBD_CONNECT_FAILED";
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
