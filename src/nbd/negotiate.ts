/**
 * The handshake, in the order of the section "Fixed newstyle negotiation" of the specification. It does no
 * I/O: it is a generator that yields what to send, how much to receive and when to start TLS, and gets the
 * received bytes back.
 */

import { MetaContextError, OptionError, ProtocolError, quote, TlsError } from "./errors.js";
import { decodeText } from "./wire/bytes.js";
import { HANDSHAKE, INFO, OPTION, OPTION_ERROR, OPTION_REPLY } from "./wire/constants.js";
import {
  type BlockSize,
  decodeExport,
  decodeGreeting,
  decodeInfo,
  decodeMetaContext,
  decodeOptionReply,
  decodeServer,
  EXPORT_NAME_REPLY,
  encodeClientFlags,
  encodeExportName,
  encodeGo,
  encodeMetaQueries,
  encodeOption,
  GREETING_LENGTH,
  type ListedExport,
  OPTION_IS_ERROR,
  OPTION_REPLY_LENGTH,
  optionErrorName,
  optionName,
} from "./wire/options.js";
import type { Protocol } from "./wire/requests.js";

/** The next step of the handshake. Only `receive` returns bytes: exactly `length` of them. */
type Step =
  | { readonly kind: "send"; readonly bytes: Uint8Array }
  | { readonly kind: "receive"; readonly length: number; readonly awaiting: string }
  | { readonly kind: "startTls" };

export type Negotiation<T> = Generator<Step, T, Uint8Array>;

interface Wish {
  readonly exportName: string;
  readonly tls: boolean;
  /** The negotiation fails if the server lacks one of these. */
  readonly metaContexts: readonly string[];
  /** Used if the server has them. */
  readonly optionalContexts: readonly string[];
  /** Whether to ask which contexts the server has. */
  readonly listContexts: boolean;
}

/** The handshake that server and client agreed on; without "fixed", EXPORT_NAME is the only option. */
export type Handshake = "newstyle" | "newstyle-fixed";

export interface Negotiated {
  /** The canonical name if the server sent one, else the requested name. */
  readonly name: string;
  readonly description: string | undefined;
  readonly size: number;
  readonly flags: number;
  readonly blockSize: BlockSize | undefined;
  readonly handshake: Handshake;
  readonly protocol: Protocol;
  readonly tls: boolean;
  /** Names of the granted contexts, by the ids used in replies. */
  readonly contexts: ReadonlyMap<number, string>;
  readonly availableContexts: readonly string[] | undefined;
}

const FIXED: Handshake = "newstyle-fixed";
/** Most replies to one option, and most bytes of their payload: a server that sends more may never stop. */
const MAX_REPLIES = 65_536;
const MAX_REPLY_BYTES = 16 * 1024 * 1024;

/** From the greeting to an export that is ready for requests. */
export function* negotiate(wish: Wish): Negotiation<Negotiated> {
  const handshake = yield* greet();
  if ((handshake & HANDSHAKE.FIXED_NEWSTYLE) === 0) return yield* withoutOptions(wish, handshake);
  if (wish.tls) yield* startTls();
  const protocol = yield* chooseProtocol();
  const availableContexts = wish.listContexts ? yield* listContexts(wish, protocol) : undefined;
  const contexts = yield* setContexts(wish, protocol);
  const granted = { handshake: FIXED, protocol, tls: wish.tls, contexts, availableContexts };
  const { refusal, type, selected } = yield* select(OPTION.GO, wish);
  if (refusal !== undefined && type !== OPTION_ERROR.UNSUP) throw refusal;
  return { ...(selected ?? (yield* exportName(wish, handshake, protocol))), ...granted };
}

/** From the greeting to the list of the server's exports. The caller ends the session after that. */
export function* negotiateList(wish: Pick<Wish, "tls">): Negotiation<readonly ListedExport[]> {
  const handshake = yield* greet();
  if ((handshake & HANDSHAKE.FIXED_NEWSTYLE) === 0) {
    throw new ProtocolError("the server speaks a handshake that is too old to list its exports");
  }
  if (wish.tls) yield* startTls();
  const answer = yield* ask(OPTION.LIST, undefined, OPTION_REPLY.SERVER);
  if (answer.refusal !== undefined) throw answer.refusal;
  return answer.items.map(decodeServer);
}

/**
 * From the greeting to the server's description of an export, without opening it. The caller may end the
 * session after that.
 */
export function* negotiateInfo(wish: Wish): Negotiation<Negotiated> {
  const handshake = yield* greet();
  if ((handshake & HANDSHAKE.FIXED_NEWSTYLE) === 0) {
    throw new ProtocolError(
      "the server speaks a handshake that is too old to ask for an export without opening it",
    );
  }
  if (wish.tls) yield* startTls();
  const protocol = yield* chooseProtocol();
  const availableContexts = wish.listContexts ? yield* listContexts(wish, protocol) : undefined;
  const contexts = yield* setContexts(wish, protocol);
  const { refusal, selected } = yield* select(OPTION.INFO, wish);
  if (selected === undefined) throw refusal;
  return { ...selected, handshake: FIXED, protocol, tls: wish.tls, contexts, availableContexts };
}

/** NBD_OPT_ABORT, the goodbye during negotiation. Not every server acknowledges it: no reply is awaited. */
export const FAREWELL: Uint8Array = encodeOption(OPTION.ABORT);

function* greet(): Negotiation<number> {
  const flags = decodeGreeting(yield* receive(GREETING_LENGTH, "the greeting"));
  // Only flags that the server offered: QEMU hangs up on an unknown flag.
  const known = flags & (HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES);
  yield send(encodeClientFlags(known));
  return known;
}

function* startTls(): Negotiation<void> {
  const { refusal } = yield* ask(OPTION.STARTTLS);
  if (refusal !== undefined) {
    throw new TlsError("NBD_TLS_REFUSED", `TLS is required, but not available: ${refusal.message}`, {
      cause: refusal,
    });
  }
  yield { kind: "startTls" };
}

/** Selects extended headers if the server has them, else structured replies, else simple ones. */
function* chooseProtocol(): Negotiation<Protocol> {
  if (yield* agree(OPTION.EXTENDED_HEADERS)) return "extended";
  if (yield* agree(OPTION.STRUCTURED_REPLY)) return "structured";
  return "simple";
}

/** Whether the server accepts an option that isn't mandatory. */
function* agree(option: number): Negotiation<boolean> {
  const { refusal, type } = yield* ask(option);
  if (refusal === undefined) return true;
  if (type === OPTION_ERROR.TLS_REQD || type === OPTION_ERROR.SHUTDOWN) throw refusal;
  return false;
}

function* listContexts(wish: Wish, protocol: Protocol): Negotiation<readonly string[]> {
  if (protocol === "simple") return [];
  const query = encodeMetaQueries(wish.exportName, []);
  const { refusal, type, items } = yield* ask(OPTION.LIST_META_CONTEXT, query, OPTION_REPLY.META_CONTEXT);
  if (type === OPTION_ERROR.UNSUP) return [];
  if (refusal !== undefined) throw refusal;
  return items.map((item) => decodeMetaContext(item).name);
}

function* setContexts(wish: Wish, protocol: Protocol): Negotiation<ReadonlyMap<number, string>> {
  const wanted = [...new Set([...wish.metaContexts, ...wish.optionalContexts])];
  if (wanted.length === 0) return new Map();
  if (protocol === "simple") {
    requireContexts(wish.metaContexts, [], "the server has no structured replies and so no meta contexts");
    return new Map();
  }
  let answer = yield* ask(
    OPTION.SET_META_CONTEXT,
    encodeMetaQueries(wish.exportName, wanted),
    OPTION_REPLY.META_CONTEXT,
  );
  if (answer.type === OPTION_ERROR.TOO_BIG && wish.metaContexts.length < wanted.length) {
    answer = yield* ask(
      OPTION.SET_META_CONTEXT,
      encodeMetaQueries(wish.exportName, wish.metaContexts),
      OPTION_REPLY.META_CONTEXT,
    );
  }
  const { refusal, type, items } = answer;
  if (refusal !== undefined && type !== OPTION_ERROR.UNSUP) throw refusal;
  const granted = new Map<number, string>();
  // Contexts sent before a refusal are not granted.
  for (const { id, name } of refusal === undefined ? items.map(decodeMetaContext) : []) {
    if (!wanted.includes(name)) {
      throw new ProtocolError(`the server sent the meta context ${quote(name)}, which was not asked for`);
    }
    if (granted.has(id) || [...granted.values()].includes(name)) {
      throw new ProtocolError(`the server sent the meta context ${quote(name)}, or its id, twice`);
    }
    granted.set(id, name);
  }
  requireContexts(
    wish.metaContexts,
    [...granted.values()],
    `the server doesn't have them for export ${quote(wish.exportName)}`,
  );
  return granted;
}

function requireContexts(mandatory: readonly string[], granted: readonly string[], reason: string): void {
  const missing = mandatory.filter((name) => !granted.includes(name));
  if (missing.length === 0) return;
  throw new MetaContextError(
    `meta contexts ${missing.map(quote).join(", ")} are not available: ${reason}`,
    missing,
  );
}

type Selected = Pick<Negotiated, "name" | "description" | "size" | "flags" | "blockSize">;

/**
 * Selects the export by GO or INFO. The client always requests block sizes, so it has to respect them.
 * @returns without `selected` if the server refused
 */
function* select(
  option: number,
  wish: Wish,
): Negotiation<Omit<Answer, "items"> & { readonly selected: Selected | undefined }> {
  const data = encodeGo(wish.exportName, [INFO.BLOCK_SIZE, INFO.NAME, INFO.DESCRIPTION]);
  const { refusal, type, items } = yield* ask(option, data, OPTION_REPLY.INFO);
  if (refusal !== undefined) return { refusal, type, selected: undefined };
  let found: { size: number; flags: number } | undefined;
  let name = wish.exportName;
  let description: string | undefined;
  let blockSize: BlockSize | undefined;
  for (const fact of items.map(decodeInfo)) {
    switch (fact.kind) {
      case "export":
        found = fact;
        break;
      case "name":
        name = fact.name;
        break;
      case "description":
        description = fact.description;
        break;
      case "blockSize":
        blockSize = fact.blockSize;
        break;
      case "unknown":
        break;
      default:
        fact satisfies never;
    }
  }
  if (found === undefined) {
    throw new ProtocolError(`the server sent its consent to ${optionName(option)} without the export's size`);
  }
  const { size, flags } = found;
  return { refusal, type, selected: { name, description, size, flags, blockSize } };
}

/** Opens an export on a server without GO. A server that doesn't have the export can only hang up. */
function* exportName(wish: Wish, handshake: number, protocol: Protocol): Negotiation<Selected> {
  if (protocol === "extended") {
    throw new ProtocolError("the server sent its consent to extended headers, but doesn't know GO");
  }
  yield send(encodeOption(OPTION.EXPORT_NAME, encodeExportName(wish.exportName)));
  const awaiting = `export ${quote(wish.exportName)} (this server hangs up where it doesn't exist)`;
  const found = decodeExport(yield* receive(EXPORT_NAME_REPLY.LENGTH, awaiting));
  if ((handshake & HANDSHAKE.NO_ZEROES) === 0) yield* receive(EXPORT_NAME_REPLY.ZEROES, awaiting);
  return { name: wish.exportName, description: undefined, ...found, blockSize: undefined };
}

/** With a server that isn't "fixed", only EXPORT_NAME is safe. */
function* withoutOptions(wish: Wish, handshake: number): Negotiation<Negotiated> {
  const reason = "the server speaks a handshake that is too old for it";
  if (wish.tls) throw new TlsError("NBD_TLS_REFUSED", `TLS is required, but not available: ${reason}`);
  requireContexts(wish.metaContexts, [], reason);
  const selected = yield* exportName(wish, handshake, "simple");
  const availableContexts = wish.listContexts ? [] : undefined;
  const plain = { handshake: "newstyle", protocol: "simple", tls: false, contexts: new Map() } as const;
  return { ...selected, ...plain, availableContexts };
}

interface Answer {
  /** Payloads of all replies but the last. */
  readonly items: readonly Uint8Array[];
  /** Type of the last reply: ACK or an error. */
  readonly type: number;
  readonly refusal: OptionError | undefined;
}

/** Sends an option and receives all replies to it. All but the last must be of type `itemType`. */
function* ask(option: number, data?: Uint8Array, itemType?: number): Negotiation<Answer> {
  yield send(encodeOption(option, data));
  const items: Uint8Array[] = [];
  let bytes = 0;
  while (items.length < MAX_REPLIES && bytes < MAX_REPLY_BYTES) {
    const awaiting = `the reply to ${optionName(option)}`;
    const header = decodeOptionReply(yield* receive(OPTION_REPLY_LENGTH, awaiting), option);
    const payload = header.length > 0 ? yield* receive(header.length, awaiting) : new Uint8Array(0);
    bytes += payload.length;
    if ((header.type & OPTION_IS_ERROR) !== 0) {
      return { items, type: header.type, refusal: refusalOf(option, header.type, payload) };
    }
    if (header.type === OPTION_REPLY.ACK) return { items, type: header.type, refusal: undefined };
    if (header.type !== itemType) {
      throw new ProtocolError(`the server sent a reply of type ${header.type} to ${optionName(option)}`);
    }
    items.push(payload);
  }
  throw new ProtocolError(`the server sent replies to ${optionName(option)} without end`);
}

/** Advice for a refusal. */
const ADVICE: ReadonlyMap<number, string> = new Map([
  [OPTION_ERROR.POLICY, "; its configuration forbids it"],
  [OPTION_ERROR.INVALID, "; it takes the request for malformed, which is one of the two's mistake"],
  [OPTION_ERROR.PLATFORM, "; it can't do it where it runs"],
  [OPTION_ERROR.TLS_REQD, "; it wants TLS: use a nbds:// URI"],
  [OPTION_ERROR.UNKNOWN, "; list its exports to see their names"],
  [OPTION_ERROR.SHUTDOWN, "; it is about to end: try again once it runs anew"],
  [OPTION_ERROR.BLOCK_SIZE_REQD, "; it wants its block sizes to be asked for, which they were"],
  [OPTION_ERROR.TOO_BIG, "; ask for fewer meta contexts, or shorter names"],
  [OPTION_ERROR.EXT_HEADER_REQD, "; it wants extended headers, but did not agree to them"],
]);

function refusalOf(option: number, type: number, payload: Uint8Array): OptionError {
  const serverText = decodeText(payload);
  const facts = { option: optionName(option), reply: optionErrorName(type), serverText };
  const text = serverText === "" ? "" : `: ${quote(serverText)}`;
  const message = `the server refused ${facts.option} with ${facts.reply}${text}${ADVICE.get(type) ?? ""}`;
  switch (type) {
    case OPTION_ERROR.TLS_REQD:
      return new OptionError("NBD_TLS_REQUIRED", message, facts);
    case OPTION_ERROR.UNKNOWN:
      return new OptionError("NBD_EXPORT_UNKNOWN", message, facts);
    default:
      return new OptionError("NBD_OPTION_REFUSED", message, facts);
  }
}

function send(bytes: Uint8Array): Step {
  return { kind: "send", bytes };
}

function* receive(length: number, awaiting: string): Negotiation<Uint8Array> {
  return yield { kind: "receive", length, awaiting };
}
