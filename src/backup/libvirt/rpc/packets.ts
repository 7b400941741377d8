/**
 * The packets of libvirt's protocol (src/rpc/virnetprotocol.x). All numbers are big-endian and have 4 bytes:
 *
 *     length | program | version | procedure | type | serial | status | payload: XDR ...
 *     '--- the length counts all of it, itself too ----------------------------------'
 *
 * Pure: bytes in, packets out.
 */

import { UnreadableError } from "./xdr.js";

/** `unsigned prog`: whose procedures are meant. */
export const PROGRAM = { remote: 0x20008086, qemu: 0x20008087, keepalive: 0x6b656570 } as const;

/** `virNetMessageType`. A stream comes only to who asked for one, and so do file descriptors. */
export const TYPE = { call: 0, reply: 1, message: 2, stream: 3 } as const;

/** `virNetMessageStatus`. */
export const STATUS = { ok: 0, error: 1, continue: 2 } as const;

export interface Packet {
  readonly program: number;
  readonly procedure: number;
  readonly type: number;
  /** A reply and a stream have the serial of their call; a message has 0. */
  readonly serial: number;
  readonly status: number;
  readonly payload: Buffer;
}

const LENGTH_BYTES = 4;
const HEADER_BYTES = 28;
/** All programs have this one only. */
const VERSION = 1;
/** `VIR_NET_MESSAGE_MAX`, with the length. */
export const MAX_PACKET = 32 * 1024 * 1024 + LENGTH_BYTES;

export function encodePacket(packet: Packet): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + packet.payload.length);
  const { program, procedure, type, serial, status } = packet;
  for (const [index, value] of [bytes.length, program, VERSION, procedure, type, serial, status].entries()) {
    bytes.writeUInt32BE(value, index * 4);
  }
  bytes.set(packet.payload, HEADER_BYTES);
  return bytes;
}

/** Divides a stream of bytes into packets, wherever the bytes were split. */
export class PacketSplitter {
  /** Its first `#length` bytes are what has come of a packet that is not complete. */
  #held: Buffer = Buffer.alloc(0);
  #length = 0;

  /**
   * @returns the packets that are complete with these bytes
   * @throws {UnreadableError} a length or a version that can't be; the splitter must not be used again
   */
  push(bytes: Buffer): Packet[] {
    this.#append(bytes);
    const packets: Packet[] = [];
    let at = 0;
    while (this.#length - at >= LENGTH_BYTES) {
      const length = this.#held.readUInt32BE(at);
      if (length < HEADER_BYTES || length > MAX_PACKET) {
        throw new UnreadableError(`a packet of ${length} bytes`);
      }
      if (this.#length - at < length) break;
      packets.push(decode(this.#held.subarray(at, at + length)));
      at += length;
    }
    if (at > 0) {
      // Without room behind it: what is appended goes elsewhere, and the packets keep their bytes.
      this.#held = this.#held.subarray(at, this.#length);
      this.#length -= at;
    }
    return packets;
  }

  /** The room doubles, so that a packet that comes byte by byte costs neither a buffer a byte nor a copy. */
  #append(bytes: Buffer): void {
    const length = this.#length + bytes.length;
    if (this.#length === 0) this.#held = bytes;
    else {
      if (length > this.#held.length) {
        const larger = Buffer.allocUnsafe(Math.max(length, 2 * this.#held.length));
        this.#held.copy(larger, 0, 0, this.#length);
        this.#held = larger;
      }
      this.#held.set(bytes, this.#length);
    }
    this.#length = length;
  }
}

function decode(bytes: Buffer): Packet {
  const at = (index: number): number => bytes.readUInt32BE(index * 4);
  if (at(2) !== VERSION) throw new UnreadableError(`version ${at(2)} of program 0x${at(1).toString(16)}`);
  return {
    program: at(1),
    procedure: at(3),
    type: at(4),
    serial: at(5),
    status: at(6),
    payload: bytes.subarray(HEADER_BYTES),
  };
}
