/**
 * Copies one export to another of the same size, over several connections and with several requests in
 * flight. Zeroes are not transferred.
 *
 *     node dist/examples/copy-export.js SOURCE-URI TARGET-URI
 */
import { ALLOCATION, NbdClient } from "nbd-client-ts";

const [sourceUri = "", targetUri = ""] = process.argv.slice(2);
const PIECE = 256 * 1024;
const LANES = 8;

await using source = await NbdClient.connect(sourceUri, {
  connections: 4,
  metaContexts: ["base:allocation"],
});
await using target = await NbdClient.connect(targetUri, { connections: 4 });
if (target.export.size !== source.export.size) throw new Error("the exports differ in size");

/**
 * Pieces of the disk that begin and end at multiples of PIECE, which suits any server's block size and any
 * extents of the source. A piece is zero if all of it is.
 */
async function* pieces(): AsyncGenerator<{ offset: number; length: number; zero: boolean }> {
  let offset = 0;
  let zero = target.export.canWriteZeroes;
  for await (const batch of source.blockStatus()) {
    for (const extent of batch.contexts.get("base:allocation") ?? []) {
      const end = extent.offset + extent.length;
      const isZero = target.export.canWriteZeroes && (extent.flags & ALLOCATION.ZERO) !== 0;
      for (;;) {
        zero &&= isZero;
        const stop = Math.min(offset + PIECE, source.export.size);
        if (stop > end || stop === offset) break;
        yield { offset, length: stop - offset, zero };
        offset = stop;
        zero = target.export.canWriteZeroes;
        if (offset === end) break;
      }
    }
  }
}

// Lanes share one lazy iterator, and each has its own buffer: memory is bounded, and no lane waits for
// another.
const shared = pieces();
async function lane(): Promise<void> {
  const buffer = Buffer.alloc(PIECE);
  for (let next = await shared.next(); !next.done; next = await shared.next()) {
    const { offset, length, zero } = next.value;
    if (zero) await target.writeZeroes(offset, length);
    else {
      const bytes = buffer.subarray(0, length);
      await source.read(offset, bytes);
      await target.write(offset, bytes);
    }
  }
}
await Promise.all(Array.from({ length: LANES }, lane));
if (target.export.canFlush) await target.flush();
process.stdout.write(`${source.export.size} bytes copied in ${source.requests + target.requests} requests\n`);
