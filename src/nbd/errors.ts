/**
 * The class of an error says how far the failure reaches. A {@link ProtocolError} or {@link ConnectionError}
 * ends the connection, a {@link RequestError} fails one request, and an {@link OptionError},
 * {@link MetaContextError} or {@link TlsError} ends the negotiation. Three codes of ConnectionError fail only
 * one call: NBD_ABORTED, NBD_MAP_TIMEOUT and NBD_WRITES_IN_DOUBT. The message says what failed, where, on
 * whose side, and the next step if there is one.
 */

/**
 * Every `code`; stable across releases.
 *
 * | code | meaning |
 * |---|---|
 * | NBD_PROTOCOL | the server broke the protocol |
 * | NBD_NOT_NBD | what answered isn't a newstyle NBD server |
 * | NBD_NUMBER_TOO_LARGE | a 64-bit number beyond 2^53 - 1, which this client doesn't handle |
 * | NBD_OPTION_REFUSED | the server refused a mandatory option |
 * | NBD_EXPORT_UNKNOWN | the server has no export of that name |
 * | NBD_TLS_REQUIRED | the server requires TLS |
 * | NBD_META_CONTEXT_MISSING | a mandatory meta context wasn't granted |
 * | NBD_REQUEST_FAILED | the server answered a request with an error: see `errno` |
 * | NBD_OUT_OF_RANGE | the caller asked for bytes outside the export |
 * | NBD_UNALIGNED | a write, trim or zeroing isn't a multiple of the export's minimum block size |
 * | NBD_READ_ONLY | the caller wants to write to a read-only export |
 * | NBD_NOT_OFFERED | the export doesn't offer this command or flag |
 * | NBD_CONNECT_FAILED | refused, no such host, no such socket |
 * | NBD_CONNECT_TIMEOUT | connecting and negotiating took longer than `connectTimeoutMs` |
 * | NBD_CLOSED_BY_SERVER | the server hung up |
 * | NBD_CONNECTION_LOST | the network or the operating system ended the connection |
 * | NBD_WRITES_IN_DOUBT | writes were acknowledged over a connection that was lost before they were flushed |
 * | NBD_IDLE_TIMEOUT | no byte came for `idleTimeoutMs` while requests were outstanding |
 * | NBD_REQUEST_TIMEOUT | a request had no complete reply after `requestTimeoutMs` |
 * | NBD_TOO_SLOW | the server fell a minute behind `minRate` while requests were outstanding |
 * | NBD_MAP_TIMEOUT | block status alone was waited for longer than `mapTimeoutMs` |
 * | NBD_TOO_MANY_EXTENTS | the server described more than `maxExtents` extents of a context |
 * | NBD_CLOSED | used after `close` |
 * | NBD_ABORTED | the caller's AbortSignal fired; `cause` is its reason |
 * | NBD_EXPORT_CHANGED | over another connection the export has a different size, flags or contexts |
 * | NBD_URI_INVALID | not an NBD URI |
 * | NBD_URI_UNSUPPORTED | a valid URI that asks for an unsupported feature |
 * | NBD_TLS_REFUSED | TLS was requested and the server refused; the client never falls back to plain text |
 * | NBD_TLS_FAILED | the TLS handshake or a certificate check failed |
 * | NBD_TLS_INJECTION | plain text arrived between the server's consent to TLS and the handshake |
 * | NBD_TLS_CONFIG | certificates or keys are missing, unreadable or contradictory |
 * | NBD_ARGUMENT | a value in the options makes no sense |
 */
export type NbdErrorCode =
  | "NBD_PROTOCOL"
  | "NBD_NOT_NBD"
  | "NBD_NUMBER_TOO_LARGE"
  | "NBD_OPTION_REFUSED"
  | "NBD_EXPORT_UNKNOWN"
  | "NBD_TLS_REQUIRED"
  | "NBD_META_CONTEXT_MISSING"
  | "NBD_REQUEST_FAILED"
  | "NBD_OUT_OF_RANGE"
  | "NBD_UNALIGNED"
  | "NBD_READ_ONLY"
  | "NBD_NOT_OFFERED"
  | "NBD_CONNECT_FAILED"
  | "NBD_CONNECT_TIMEOUT"
  | "NBD_CLOSED_BY_SERVER"
  | "NBD_CONNECTION_LOST"
  | "NBD_WRITES_IN_DOUBT"
  | "NBD_IDLE_TIMEOUT"
  | "NBD_REQUEST_TIMEOUT"
  | "NBD_TOO_SLOW"
  | "NBD_MAP_TIMEOUT"
  | "NBD_TOO_MANY_EXTENTS"
  | "NBD_CLOSED"
  | "NBD_ABORTED"
  | "NBD_EXPORT_CHANGED"
  | "NBD_URI_INVALID"
  | "NBD_URI_UNSUPPORTED"
  | "NBD_TLS_REFUSED"
  | "NBD_TLS_FAILED"
  | "NBD_TLS_INJECTION"
  | "NBD_TLS_CONFIG"
  | "NBD_ARGUMENT";

export interface ErrorContext {
  readonly cause?: unknown;
}

/** The base of all errors that this client throws. */
export class NbdError extends Error {
  override readonly name: string = "NbdError";
  readonly code: NbdErrorCode;

  constructor(code: NbdErrorCode, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.code = code;
  }
}

/**
 * The server sent something that the protocol forbids or that this client can't handle. Nothing that it sends
 * afterwards can be trusted, so the connection ends.
 */
export class ProtocolError extends NbdError {
  override readonly name = "ProtocolError";

  constructor(
    message: string,
    code: "NBD_PROTOCOL" | "NBD_NOT_NBD" | "NBD_NUMBER_TOO_LARGE" = "NBD_PROTOCOL",
  ) {
    super(code, message);
  }
}

/** The server refused an option during negotiation. */
export class OptionError extends NbdError {
  override readonly name = "OptionError";
  /** The option without its `NBD_OPT_` prefix, such as `GO`. */
  readonly option: string;
  /** The error without its `NBD_REP_ERR_` prefix, such as `POLICY`. */
  readonly reply: string;
  /** The server's message about it; may be empty. */
  readonly serverText: string;

  constructor(
    code: "NBD_OPTION_REFUSED" | "NBD_EXPORT_UNKNOWN" | "NBD_TLS_REQUIRED",
    message: string,
    facts: { readonly option: string; readonly reply: string; readonly serverText: string },
  ) {
    super(code, message);
    this.option = facts.option;
    this.reply = facts.reply;
    this.serverText = facts.serverText;
  }
}

/**
 * The server did not grant a mandatory meta context, so an operation that needs it (such as an incremental
 * backup) can't proceed.
 */
export class MetaContextError extends NbdError {
  override readonly name = "MetaContextError";
  readonly missing: readonly string[];

  constructor(message: string, missing: readonly string[]) {
    super("NBD_META_CONTEXT_MISSING", message);
    this.missing = missing;
  }
}

/** The request that a {@link RequestError} is about. */
export interface RequestFacts {
  /** The command in lower case, such as `read`. */
  readonly command: string;
  readonly offset: number;
  readonly length: number;
  /** The name of the error, such as `EIO`; a number unknown to the protocol counts as `EINVAL`. */
  readonly errno: string;
  /** The server's message about it; may be empty. */
  readonly serverText: string;
}

/** The first is the server's answer, the last is about many answers. The rest are found before sending. */
export type RequestErrorCode =
  | "NBD_REQUEST_FAILED"
  | "NBD_OUT_OF_RANGE"
  | "NBD_UNALIGNED"
  | "NBD_READ_ONLY"
  | "NBD_NOT_OFFERED"
  | "NBD_TOO_MANY_EXTENTS";

/** One request failed; the connection remains usable. */
export class RequestError extends NbdError implements RequestFacts {
  override readonly name = "RequestError";
  readonly command: string;
  readonly offset: number;
  readonly length: number;
  readonly errno: string;
  readonly serverText: string;

  constructor(code: RequestErrorCode, message: string, facts: RequestFacts) {
    super(code, message);
    this.command = facts.command;
    this.offset = facts.offset;
    this.length = facts.length;
    this.errno = facts.errno;
    this.serverText = facts.serverText;
  }
}

/** The connection could not be opened, or has ended. */
export class ConnectionError extends NbdError {
  override readonly name = "ConnectionError";
}

const unsent = new WeakSet<Error>();

/**
 * Makes a separate error object for a request that was not sent before its connection ended; see
 * {@link wasNeverSent}. Requests that were sent fail with `reason` itself.
 */
export function neverSent(reason: NbdError): NbdError {
  if (!(reason instanceof ConnectionError)) return reason;
  const { code, message, cause } = reason;
  const error = new ConnectionError(code, message, { cause });
  unsent.add(error);
  return error;
}

/** Whether a failed request certainly had no effect on the server. */
export function wasNeverSent(error: unknown): boolean {
  return error instanceof ConnectionError && unsent.has(error);
}

/** The text is not the URI of an NBD server. */
export class UriError extends NbdError {
  override readonly name = "UriError";

  constructor(code: "NBD_URI_INVALID" | "NBD_URI_UNSUPPORTED", message: string) {
    super(code, message);
  }
}

/** TLS could not be established. There is no fallback to plain text. */
export class TlsError extends NbdError {
  override readonly name = "TlsError";
  /**
   * Whether the server just hung up, during the handshake or right after it. The server may refuse this
   * client that way, but one that is restarting does the same: trying again may help.
   */
  readonly hangUp: boolean;

  constructor(
    code: NbdErrorCode,
    message: string,
    context: ErrorContext & { readonly hangUp?: boolean } = {},
  ) {
    super(code, message, context);
    this.hangUp = context.hangUp ?? false;
  }
}

const CONTROL = /[\p{Cc}\p{Cf}\u2028\u2029]/gu;

/** A peer's text in quotes, with control characters escaped, since it may be shown on a terminal. */
export function quote(text: string): string {
  const clean = text.replace(CONTROL, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`);
  return `"${clean}"`;
}
