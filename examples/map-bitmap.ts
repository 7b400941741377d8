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
  for (const extent of batch.contexts.get(dirty) ?? []) {
    if ((extent.flags & DIRTY) === 0) continue;
    dirtyBytes += extent.length;
    process.stdout.write(`dirty ${extent.offset} +${extent.length}\n`);
    for (const allocation of batch.contexts.get("base:allocation") ?? []) {
      const start = Math.max(extent.offset, allocation.offset);
      const end = Math.min(extent.offset + extent.length, allocation.offset + allocation.length);
      if (end > start && (allocation.flags & ALLOCATION.ZERO) !== 0) zeroBytes += end - start;
    }
  }
}
process.stdout.write(`${dirtyBytes} bytes dirty, ${zeroBytes} of them zeroes\n`);
