/** The result of the handshake, for the transmission phase. */
import { DEFAULT_MAX_PAYLOAD, TRANSMISSION } from "../wire/constants.js";
import type { ByteChannel } from "./byte-channel.js";
import type { BlockSize, DescribeExtents, ServedExport } from "./export.js";
import type { ReplyMode } from "./transmission-frames.js";

/** A meta context that the client selected; `id` identifies it in replies. */
export interface ChosenContext {
  readonly id: number;
  readonly name: string;
  readonly describe: DescribeExtents;
}

/** One connection that serves one export. */
export interface Session {
  readonly channel: ByteChannel;
  readonly mode: ReplyMode;
  readonly exportName: string;
  readonly served: ServedExport;
  readonly contexts: readonly ChosenContext[];
}

const DEFAULT_BLOCK_SIZE: BlockSize = { minimum: 1, preferred: 4096, maximum: DEFAULT_MAX_PAYLOAD };

export function blockSizeOf(served: ServedExport): BlockSize {
  return served.blockSize ?? DEFAULT_BLOCK_SIZE;
}

/** An export never changes, so any number of connections sees the same content. */
export function transmissionFlags(mode: ReplyMode): number {
  const always = TRANSMISSION.HAS_FLAGS | TRANSMISSION.READ_ONLY | TRANSMISSION.CAN_MULTI_CONN;
  return mode === "simple" ? always : always | TRANSMISSION.SEND_DF;
}
