/**
 * Lists what a dirty bitmap of QEMU marks, and how much of that reads as zeroes.
 *
 *     node dist/examples/map-bitmap.js URI BITMAP
 */
import { ALLOCATION, DIRTY, NbdClient } from "nbd-client-ts";

const [uri = "", bitmap = ""] = process.argv.slice(2);
const dirty = `qemu:dirty-bitmap:${bitmap}`;

// A mandatory context: connecting fails where the server hasn't got it.
await using client = await NbdClient.connect(uri, {
  metaContexts: [dirty],
  optionalContexts: ["base:allocation"],
});

let dirtyBytes = 0;
let zeroBytes = 0;
for await (const batch of client.blockStatus()) {
  // Both lists cover the batch, in order: one walk over the two.
  const allocation = batch.contexts.get("base:allocation") ?? [];
  let next = 0;
  for (const extent of batch.contexts.get(dirty) ?? []) {
    if ((extent.flags & DIRTY) === 0) continue;
    const end = extent.offset + extent.length;
    dirtyBytes += extent.length;
    process.stdout.write(`dirty ${extent.offset} +${extent.length}\n`);
    for (; next < allocation.length; next += 1) {
      const { offset = end, length = 0, flags = 0 } = allocation[next] ?? {};
      const common = Math.min(end, offset + length) - Math.max(extent.offset, offset);
      if (common > 0 && (flags & ALLOCATION.ZERO) !== 0) zeroBytes += common;
      // An extent that goes on behind this one is looked at again with the next.
      if (offset + length > end) break;
    }
  }
}
process.stdout.write(`${dirtyBytes} bytes dirty, ${zeroBytes} of them zeroes\n`);
