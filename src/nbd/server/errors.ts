/**
 * The errors of the server: an `OptionRefusal` ends one option, a `ServedError` one request, a `ClientFault`
 * the connection.
 */
import type { ERRNO } from "../wire/constants.js";

/**
 * Why a connection ended before its client said goodbye:
 *
 *   BAD_MAGIC           a frame does not start with its magic number: the stream is out of step
 *   BAD_CLIENT_FLAGS    the client answered the greeting with flags that were not offered
 *   BAD_PAYLOAD         a request announces more payload than any client may send
 *   EXPORT_REFUSED      NBD_OPT_EXPORT_NAME could not be granted, and has no error reply
 *   HANDSHAKE_TIMEOUT   no export was chosen in time
 *   STALLED             the client took hardly any of its replies while others waited for room
 *   IDLE                the client was idle for too long
 *   MADE_ROOM           the client was idle, and there was no other place for a new one
 *   PLAINTEXT_BEFORE_TLS  bytes followed NBD_OPT_STARTTLS instead of a TLS handshake
 *   TLS_FAILED          the TLS handshake failed
 *   DISCONNECTED        the client went away without NBD_CMD_DISC or NBD_OPT_ABORT
 *   SERVER_CLOSED       `close()` was called
 */
export type ClientFaultCode =
  | "BAD_MAGIC"
  | "BAD_CLIENT_FLAGS"
  | "BAD_PAYLOAD"
  | "EXPORT_REFUSED"
  | "HANDSHAKE_TIMEOUT"
  | "STALLED"
  | "IDLE"
  | "MADE_ROOM"
  | "PLAINTEXT_BEFORE_TLS"
  | "TLS_FAILED"
  | "DISCONNECTED"
  | "SERVER_CLOSED";

/** Ends the connection. */
export class ClientFault extends Error {
  override readonly name = "ClientFault";
  readonly code: ClientFaultCode;

  constructor(code: ClientFaultCode, message: string, options?: { readonly cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** Answers one option with an error reply of type `reply`, which includes the message. */
export class OptionRefusal extends Error {
  override readonly name = "OptionRefusal";
  /** One of `OPTION_ERROR`. */
  readonly reply: number;

  constructor(reply: number, message: string) {
    super(message);
    this.reply = reply;
  }
}

/**
 * Answers one request with an error. An export throws it from `read` or from a context to choose the error
 * number and the text that the client receives; any other exception becomes a plain EIO.
 */
export class ServedError extends Error {
  override readonly name = "ServedError";
  readonly code: keyof typeof ERRNO;

  constructor(code: keyof typeof ERRNO, message: string, options?: { readonly cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}
