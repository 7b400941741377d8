/** Collects the pieces of a read, and checks that they are exactly what was requested. */

import { createServer, connect as dial } from "node:net";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import type { PieceSink, Stretch } from "../../src/nbd/index.js";

export interface TakenPiece {
  readonly kind: "data" | "zeroes";
  readonly offset: number;
  readonly length: number;
}

export class PieceCollector implements PieceSink {
  readonly taken: TakenPiece[] = [];
  readonly bytes: Buffer;
  /** How often each byte came. */
  readonly counts: Uint8Array;
  readonly #onPiece: (piece: TakenPiece) => void;

  /** @param onPiece may throw */
  constructor(size: number, onPiece: (piece: TakenPiece) => void = () => {}) {
    this.bytes = Buffer.alloc(size, 0xee);
    this.counts = new Uint8Array(size);
    this.#onPiece = onPiece;
  }

  data(offset: number, bytes: Uint8Array): void {
    this.#take({ kind: "data", offset, length: bytes.length });
    this.bytes.set(bytes, offset);
  }

  zeroes(offset: number, length: number): void {
    this.#take({ kind: "zeroes", offset, length });
    this.bytes.fill(0, offset, offset + length);
  }

  /** Reports a byte that came too rarely or too often; undefined if there is none. */
  fault(...stretches: readonly Stretch[]): string | undefined {
    const expected = new Uint8Array(this.counts.length);
    for (const { offset, length } of stretches) expected.fill(1, offset, offset + length);
    for (const [at, count] of this.counts.entries()) {
      if (count !== expected[at]) return `byte ${at} came ${count} times instead of ${expected[at]}`;
    }
    return undefined;
  }

  #take(piece: TakenPiece): void {
    if (piece.length <= 0) throw new RangeError("a piece without bytes");
    this.taken.push(piece);
    for (let at = piece.offset; at < piece.offset + piece.length; at += 1) {
      this.counts[at] = (this.counts[at] ?? 0) + 1;
    }
    this.#onPiece(piece);
  }
}

/**
 * A socket in `folder` that forwards to `target`, and splits the server's bytes into segments of the given
 * sizes.
 */
export async function choppedRelay(
  folder: string,
  target: string,
  sizes: readonly number[],
): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = join(folder, `relay-${Math.random()}.sock`);
  const sockets = new Set<{ destroy(): unknown }>();
  const server = createServer({ noDelay: true }, (client) => {
    const upstream = dial(target);
    sockets.add(client).add(upstream);
    client.on("error", () => upstream.destroy());
    upstream.on("error", () => client.destroy());
    client.pipe(upstream);
    const pass = async () => {
      let count = 0;
      for await (const bytes of upstream as AsyncIterable<Buffer>) {
        for (let at = 0; at < bytes.length; ) {
          const size = sizes[count++ % sizes.length] ?? 1;
          client.write(bytes.subarray(at, at + size));
          at += size;
          await turn();
        }
      }
      client.end();
    };
    pass().catch(() => client.destroy());
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
