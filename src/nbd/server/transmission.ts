/** The transmission phase: receives requests, and sends each reply as soon as it is ready, in any order. */
import { ALLOCATION, COMMAND, COMMAND_FLAG, DEFAULT_MAX_PAYLOAD, ERRNO } from "../wire/constants.js";
import { extentsForReply } from "./block-status.js";
import type { Client } from "./clients.js";
import { ClientFault, ServedError } from "./errors.js";
import type { ReplyRoom } from "./reply-room.js";
import { blockSizeOf, type Session } from "./session.js";
import {
  type ChunkHead,
  decodeRequest,
  encodeBlockStatus,
  encodeDataHead,
  encodeDone,
  encodeErrorChunk,
  encodeHole,
  encodeSimpleReply,
  type Request,
  requestBytes,
} from "./transmission-frames.js";
import { Window } from "./window.js";

const MAX_REQUESTS_IN_FLIGHT = 16;
const MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024;

/** 64 KiB per context in a structured reply; a client has to ask again for the rest. */
const MAX_EXTENTS_IN_REPLY = 8192;

/**
 * Serves one export until the client sends NBD_CMD_DISC, and then answers the requests still in flight.
 *
 * @param client is told of each request
 * @param room memory for replies, shared with other connections
 * @param onRequestFailed called for each error that an export threw (not for mistakes of the client)
 * @throws {ClientFault}
 */
export async function serveRequests(
  session: Session,
  client: Client,
  room: ReplyRoom,
  onRequestFailed: (error: unknown) => void,
): Promise<void> {
  const { channel, mode, served } = session;
  const { maximum } = blockSizeOf(served);
  const window = new Window(MAX_REQUESTS_IN_FLIGHT, MAX_BYTES_IN_FLIGHT);
  try {
    for (;;) {
      const request = decodeRequest(await channel.read(requestBytes(mode)), mode);
      if (request.type === COMMAND.DISC) break;
      await skipPayload(session, request);
      // A request that will be refused takes up no room.
      const bytes = request.type === COMMAND.READ && request.length <= maximum ? request.length : 0;
      await window.enter(bytes);
      client.requestBegun();
      await room.enter(bytes, channel).catch((error: unknown) => {
        window.leave(bytes);
        throw error;
      });
      void answer(session, request, onRequestFailed)
        .then((reply) => room.send(channel, reply))
        // The next read of this loop reports the error.
        .catch((error: unknown) => channel.destroy(error))
        .finally(() => {
          client.requestAnswered();
          window.leave(bytes);
          room.leave(bytes);
        });
    }
  } catch (error) {
    // The replies aren't needed, so the reads for them should stop.
    channel.destroy(error);
    throw error;
  } finally {
    await window.drained();
  }
  await channel.end();
}

/** Skips the payload of a request, which this server never needs. */
async function skipPayload({ channel, mode }: Session, request: Request): Promise<void> {
  const announced = mode === "extended" && (request.flags & COMMAND_FLAG.PAYLOAD_LEN) !== 0;
  if (request.type !== COMMAND.WRITE && !announced) return;
  if (request.length > DEFAULT_MAX_PAYLOAD) {
    throw new ClientFault("BAD_PAYLOAD", `the client announced ${request.length} bytes of payload`);
  }
  await channel.skip(request.length);
}

/** The complete reply, success or error, ready to be sent. */
async function answer(
  session: Session,
  request: Request,
  onRequestFailed: (error: unknown) => void,
): Promise<Uint8Array[]> {
  try {
    switch (request.type) {
      case COMMAND.READ:
        return await readReply(session, request);
      case COMMAND.BLOCK_STATUS:
        return blockStatusReply(session, request);
      case COMMAND.WRITE:
      case COMMAND.TRIM:
      case COMMAND.WRITE_ZEROES:
        throw new RefusedRequest("EPERM", "this export is read-only");
      default:
        throw new RefusedRequest("EINVAL", `command ${request.type} is not supported`);
    }
  } catch (error) {
    // A read that stopped because the client disconnected has not failed.
    const worthTelling = !(error instanceof RefusedRequest) && !session.channel.signal.aborted;
    if (worthTelling) onRequestFailed(error);
    return [errorReply(session, request, error)];
  }
}

/** A mistake of the client. */
class RefusedRequest extends ServedError {}

function errorReply({ mode }: Session, request: Request, error: unknown): Uint8Array {
  // Messages of other errors may not be meant for the client.
  const { code, message } =
    error instanceof ServedError ? error : { code: "EIO" as const, message: "the export failed" };
  if (mode === "simple") return encodeSimpleReply(request, ERRNO[code]);
  return encodeErrorChunk({ mode, request, done: true }, ERRNO[code], message);
}

/**
 * NBD_CMD_READ. A read is assembled before its first byte is sent, so an error can still be reported.
 *
 *     simple                 header, data
 *     structured, with DF    one DATA chunk
 *     structured             |  DATA  |  HOLE  |  DATA, done  |  along base:allocation
 */
async function readReply(session: Session, request: Request): Promise<Uint8Array[]> {
  const { channel, mode, served } = session;
  const { offset, length } = request;
  checkFlags(request, mode === "simple" ? 0 : COMMAND_FLAG.DF);
  checkRange(session, request);
  const { maximum } = blockSizeOf(served);
  if (length > maximum) throw new RefusedRequest("EINVAL", `a read may have ${maximum} bytes, not ${length}`);

  const fetch = async (from: number, bytes: number): Promise<Uint8Array> => {
    // The client may have disconnected while the request waited for room.
    channel.signal.throwIfAborted();
    const data = await served.read(from, bytes, channel.signal);
    // A byte too many or too few would put the whole connection out of step.
    if (data.length !== bytes) throw new Error(`the export returned ${data.length} of ${bytes} bytes`);
    return data;
  };

  if (mode === "simple") {
    const header = encodeSimpleReply(request, 0);
    return length === 0 ? [header] : [header, await fetch(offset, length)];
  }
  if (length === 0) return [encodeDone({ mode, request, done: true })];

  const pieces =
    (request.flags & COMMAND_FLAG.DF) === 0
      ? contentPieces(session, offset, length)
      : [{ offset, length, zero: false }];
  const parts: Uint8Array[] = [];
  for (const piece of pieces) {
    const done = piece.offset + piece.length === offset + length;
    const head: ChunkHead = { mode, request, done };
    if (piece.zero) parts.push(encodeHole(head, piece.offset, piece.length));
    else {
      const data = await fetch(piece.offset, piece.length);
      parts.push(encodeDataHead(head, piece.offset, data.length), data);
    }
  }
  return parts;
}

interface ContentPiece {
  readonly offset: number;
  readonly length: number;
  readonly zero: boolean;
}

/**
 * Splits a range into stretches of zeroes and of other content; what `base:allocation` doesn't cover is
 * content.
 */
function contentPieces({ served }: Session, offset: number, length: number): ContentPiece[] {
  const describe = served.contexts?.get("base:allocation") ?? (() => []);
  const pieces: ContentPiece[] = [];
  let at = offset;
  for (const extent of extentsForReply(describe, offset, length, MAX_EXTENTS_IN_REPLY)) {
    pieces.push({ offset: at, length: extent.length, zero: (extent.flags & ALLOCATION.ZERO) !== 0 });
    at += extent.length;
  }
  const left = offset + length - at;
  if (left > 0) pieces.push({ offset: at, length: left, zero: false });
  return pieces;
}

/** NBD_CMD_BLOCK_STATUS: one chunk per selected context. */
function blockStatusReply(session: Session, request: Request): Uint8Array[] {
  const { mode, contexts } = session;
  const { offset, length } = request;
  if (mode === "simple" || contexts.length === 0) {
    throw new RefusedRequest("EINVAL", "no meta context was negotiated");
  }
  checkFlags(request, COMMAND_FLAG.REQ_ONE);
  checkRange(session, request);
  if (length === 0) throw new RefusedRequest("EINVAL", "block status of 0 bytes");

  const limit = (request.flags & COMMAND_FLAG.REQ_ONE) === 0 ? MAX_EXTENTS_IN_REPLY : 1;
  return contexts.map(({ id, name, describe }, index) => {
    const extents = extentsForReply(describe, offset, length, limit);
    if (extents.length === 0) throw new Error(`context ${name} does not describe offset ${offset}`);
    return encodeBlockStatus({ mode, request, done: index === contexts.length - 1 }, id, extents);
  });
}

function checkFlags(request: Request, allowed: number): void {
  const unknown = request.flags & ~allowed;
  if (unknown !== 0) {
    throw new RefusedRequest("EINVAL", `command flags 0x${unknown.toString(16)} are not allowed here`);
  }
}

function checkRange({ served }: Session, { offset, length }: Request): void {
  if (offset + length > served.size) {
    throw new RefusedRequest("EINVAL", `the request goes past the end of the export at ${served.size}`);
  }
  const { minimum } = blockSizeOf(served);
  if (offset % minimum !== 0 || length % minimum !== 0) {
    throw new RefusedRequest("EINVAL", `offset and length must be multiples of ${minimum}`);
  }
}
