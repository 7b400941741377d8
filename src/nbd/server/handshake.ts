/**
 * The handshake, in the order of the specification: greeting, client flags, then options until the client has
 * an export or disconnects.
 */
import { DEFAULT_MAX_PAYLOAD, INFO, OPTION, OPTION_ERROR, OPTION_REPLY } from "../wire/constants.js";
import type { ByteChannel } from "./byte-channel.js";
import { ClientFault, OptionRefusal } from "./errors.js";
import type { ExportSource, ServedExport } from "./export.js";
import {
  CLIENT_FLAGS_BYTES,
  decodeClientFlags,
  decodeExportName,
  decodeInfoQuery,
  decodeMetaQuery,
  decodeNothing,
  decodeOptionHeader,
  encodeBlockSizeInfo,
  encodeExportInfo,
  encodeExportNameReply,
  encodeGreeting,
  encodeMetaContext,
  encodeOptionError,
  encodeOptionReply,
  encodeServer,
  encodeTextInfo,
  OPTION_HEADER_BYTES,
} from "./handshake-frames.js";
import { blockSizeOf, type ChosenContext, type Session, transmissionFlags } from "./session.js";
import type { ReplyMode } from "./transmission-frames.js";

/** Room for a name and dozens of queries of maximum length. */
const MAX_OPTION_DATA = 256 * 1024;

interface HandshakeContext {
  readonly exports: ExportSource;
  /** If present, TLS is required before anything about exports is revealed. */
  readonly upgradeToTls?: () => Promise<ByteChannel>;
}

/**
 * @returns undefined if the client said goodbye; the connection is closed then
 * @throws {ClientFault}
 */
export async function negotiate(
  channel: ByteChannel,
  context: HandshakeContext,
): Promise<Session | undefined> {
  await channel.send([encodeGreeting()]);
  const { noZeroes } = decodeClientFlags(await channel.read(CLIENT_FLAGS_BYTES));

  if (context.upgradeToTls === undefined) return new OptionHaggling(channel, context, noZeroes).run();
  const upgraded = await awaitStartTls(channel, context.upgradeToTls);
  // State negotiated in plain text must be discarded. There is none but the flags, which are not sent again.
  return upgraded && new OptionHaggling(upgraded, context, noZeroes).run();
}

/** Option haggling while TLS is required: answers TLS_REQD to everything until STARTTLS. */
async function awaitStartTls(
  channel: ByteChannel,
  upgrade: () => Promise<ByteChannel>,
): Promise<ByteChannel | undefined> {
  for (;;) {
    const { option, length } = decodeOptionHeader(await channel.read(OPTION_HEADER_BYTES));
    await channel.skip(length);
    if (option === OPTION.EXPORT_NAME) {
      throw new ClientFault(
        "EXPORT_REFUSED",
        "the client asked for an export without TLS, which is required",
      );
    }
    if (option === OPTION.ABORT) {
      await channel.send([encodeOptionReply(option, OPTION_REPLY.ACK)]);
      await channel.end();
      return undefined;
    }
    if (option !== OPTION.STARTTLS) {
      await channel.send([encodeOptionError(option, OPTION_ERROR.TLS_REQD, "this server requires TLS")]);
    } else if (length > 0) {
      await channel.send([encodeOptionError(option, OPTION_ERROR.INVALID, "STARTTLS takes no data")]);
    } else {
      // Bytes sent before the ACK were not protected; an attacker may have injected them.
      if (channel.hasUnreadBytes) {
        throw new ClientFault("PLAINTEXT_BEFORE_TLS", "the client sent more plaintext after STARTTLS");
      }
      await channel.send([encodeOptionReply(option, OPTION_REPLY.ACK)]);
      return upgrade();
    }
  }
}

/** What the client has negotiated so far on one connection. */
class OptionHaggling {
  readonly #channel: ByteChannel;
  readonly #exports: ExportSource;
  readonly #tlsInUse: boolean;
  readonly #noZeroes: boolean;
  #mode: ReplyMode = "simple";
  /** Valid only for the export for which they were chosen. */
  #chosen: { readonly exportName: string; readonly contexts: readonly ChosenContext[] } | undefined;

  constructor(channel: ByteChannel, context: HandshakeContext, noZeroes: boolean) {
    this.#channel = channel;
    this.#exports = context.exports;
    this.#tlsInUse = context.upgradeToTls !== undefined;
    this.#noZeroes = noZeroes;
  }

  async run(): Promise<Session | undefined> {
    for (;;) {
      const { option, length } = decodeOptionHeader(await this.#channel.read(OPTION_HEADER_BYTES));
      if (option === OPTION.EXPORT_NAME) return this.#exportName(length);
      try {
        const data = await this.#readData(length);
        if (option === OPTION.GO) return await this.#go(data);
        await this.#channel.send(await this.#answer(option, data));
        if (option === OPTION.ABORT) {
          await this.#channel.end();
          return undefined;
        }
      } catch (error) {
        if (!(error instanceof OptionRefusal)) throw error;
        await this.#channel.send([encodeOptionError(option, error.reply, error.message)]);
      }
    }
  }

  async #readData(length: number): Promise<Buffer> {
    if (length <= MAX_OPTION_DATA) return this.#channel.read(length);
    await this.#channel.skip(length);
    throw new OptionRefusal(OPTION_ERROR.TOO_BIG, `an option may have ${MAX_OPTION_DATA} bytes of data here`);
  }

  /** Replies to an option after which haggling continues (or, after ABORT, ends without an export). */
  async #answer(option: number, data: Buffer): Promise<Buffer[]> {
    const ack = encodeOptionReply(option, OPTION_REPLY.ACK);
    switch (option) {
      case OPTION.ABORT:
        return [ack];
      case OPTION.LIST:
        decodeNothing(data);
        return [...this.#list(option), ack];
      case OPTION.STARTTLS:
        if (this.#tlsInUse) throw new OptionRefusal(OPTION_ERROR.INVALID, "TLS is in use already");
        throw new OptionRefusal(OPTION_ERROR.POLICY, "this server is not set up for TLS");
      case OPTION.INFO:
        return (await this.#info(option, data)).replies;
      case OPTION.STRUCTURED_REPLY:
        decodeNothing(data);
        this.#acceptStructuredReplies();
        return [ack];
      case OPTION.EXTENDED_HEADERS:
        decodeNothing(data);
        this.#acceptExtendedHeaders();
        return [ack];
      case OPTION.LIST_META_CONTEXT:
        return [...(await this.#listMetaContexts(option, data)), ack];
      case OPTION.SET_META_CONTEXT:
        return [...(await this.#setMetaContexts(option, data)), ack];
      default:
        throw new OptionRefusal(OPTION_ERROR.UNSUP, `option ${option} is not supported`);
    }
  }

  /** NBD_OPT_EXPORT_NAME: has no error reply, so hanging up is the only refusal. */
  async #exportName(length: number): Promise<Session> {
    if (this.#mode === "extended") {
      throw new ClientFault("EXPORT_REFUSED", "the client sent EXPORT_NAME after EXTENDED_HEADERS");
    }
    try {
      const exportName = decodeExportName(await this.#readData(length));
      const served = await this.#find(exportName);
      const flags = transmissionFlags(this.#mode);
      await this.#channel.send([encodeExportNameReply(served.size, flags, this.#noZeroes)]);
      return this.#enter(exportName, served);
    } catch (error) {
      if (!(error instanceof OptionRefusal)) throw error;
      throw new ClientFault("EXPORT_REFUSED", `EXPORT_NAME was refused: ${error.message}`, { cause: error });
    }
  }

  /** NBD_OPT_GO. */
  async #go(data: Buffer): Promise<Session> {
    const { exportName, served, replies } = await this.#info(OPTION.GO, data);
    await this.#channel.send(replies);
    return this.#enter(exportName, served);
  }

  /** Common part of INFO and GO; the replies end with ACK. */
  async #info(
    option: number,
    data: Buffer,
  ): Promise<{
    readonly exportName: string;
    readonly served: ServedExport;
    readonly replies: Buffer[];
  }> {
    const { exportName, infos } = decodeInfoQuery(data);
    const served = await this.#find(exportName);
    const sizes = blockSizeOf(served);
    const unusual = sizes.minimum > 1 || sizes.maximum < DEFAULT_MAX_PAYLOAD;
    if (unusual && !infos.has(INFO.BLOCK_SIZE)) {
      throw new OptionRefusal(OPTION_ERROR.BLOCK_SIZE_REQD, "this export's block sizes must be asked for");
    }
    const replies = [encodeExportInfo(option, served.size, transmissionFlags(this.#mode))];
    if (infos.has(INFO.NAME)) replies.push(encodeTextInfo(option, INFO.NAME, exportName));
    if (infos.has(INFO.DESCRIPTION) && served.description !== undefined) {
      replies.push(encodeTextInfo(option, INFO.DESCRIPTION, served.description));
    }
    if (infos.has(INFO.BLOCK_SIZE)) replies.push(encodeBlockSizeInfo(option, sizes));
    replies.push(encodeOptionReply(option, OPTION_REPLY.ACK));
    return { exportName, served, replies };
  }

  /** NBD_OPT_LIST. */
  #list(option: number): Buffer[] {
    if (typeof this.#exports === "function") {
      throw new OptionRefusal(OPTION_ERROR.POLICY, "the exports of this server can't be listed");
    }
    return Array.from(this.#exports, ([name, served]) => encodeServer(option, name, served.description));
  }

  /** NBD_OPT_STRUCTURED_REPLY. */
  #acceptStructuredReplies(): void {
    if (this.#mode === "extended") {
      throw new OptionRefusal(OPTION_ERROR.EXT_HEADER_REQD, "extended headers were negotiated already");
    }
    if (this.#mode === "structured") {
      throw new OptionRefusal(OPTION_ERROR.INVALID, "structured replies were negotiated already");
    }
    this.#mode = "structured";
  }

  /** NBD_OPT_EXTENDED_HEADERS: implies structured replies, and may follow them. */
  #acceptExtendedHeaders(): void {
    if (this.#mode === "extended") {
      throw new OptionRefusal(OPTION_ERROR.INVALID, "extended headers were negotiated already");
    }
    this.#mode = "extended";
  }

  /** NBD_OPT_LIST_META_CONTEXT: lists everything without a query; a query that ends in ":" is a prefix. */
  async #listMetaContexts(option: number, data: Buffer): Promise<Buffer[]> {
    this.#requireStructuredReplies();
    const { exportName, queries } = decodeMetaQuery(data);
    const offered = offeredContexts(await this.#find(exportName));
    const wanted = offered.filter(
      ({ name }) => queries.length === 0 || queries.some((query) => matchesQuery(name, query)),
    );
    return wanted.map(({ id, name }) => encodeMetaContext(option, id, name));
  }

  /** NBD_OPT_SET_META_CONTEXT: replaces an earlier selection, even if it fails. */
  async #setMetaContexts(option: number, data: Buffer): Promise<Buffer[]> {
    this.#chosen = undefined;
    this.#requireStructuredReplies();
    const { exportName, queries } = decodeMetaQuery(data);
    const offered = offeredContexts(await this.#find(exportName));
    const contexts = offered.filter(({ name }) => queries.includes(name));
    this.#chosen = { exportName, contexts };
    return contexts.map(({ id, name }) => encodeMetaContext(option, id, name));
  }

  #requireStructuredReplies(): void {
    if (this.#mode === "simple") {
      throw new OptionRefusal(OPTION_ERROR.INVALID, "negotiate structured replies or extended headers first");
    }
  }

  async #find(exportName: string): Promise<ServedExport> {
    const found = await (typeof this.#exports === "function"
      ? this.#exports(exportName)
      : this.#exports.get(exportName));
    if (found === undefined) {
      throw new OptionRefusal(OPTION_ERROR.UNKNOWN, `there is no export "${exportName}"`);
    }
    return found;
  }

  #enter(exportName: string, served: ServedExport): Session {
    const contexts = this.#chosen?.exportName === exportName ? this.#chosen.contexts : [];
    return { channel: this.#channel, mode: this.#mode, exportName, served, contexts };
  }
}

/** Ids are indices in the export's list, so they are the same on each connection. */
function offeredContexts(served: ServedExport): ChosenContext[] {
  return Array.from(served.contexts ?? [], ([name, describe], id) => ({ id, name, describe }));
}

function matchesQuery(name: string, query: string): boolean {
  return query === name || (query.endsWith(":") && name.startsWith(query));
}
