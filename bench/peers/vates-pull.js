/**
 * Copies a whole disk with @vates/nbd-client: `vates-pull.js HOST PORT OUTPUT`. The library has no block
 * status, so the map comes from nbdinfo, as in the library's getMap. 16 reads of 1 MiB are in flight, and
 * each is written at its place.
 */

import { open } from "node:fs/promises";
import { NbdTcpClient } from "@vates/nbd-client";

const BLOCK_BYTES = 1024 * 1024;
const IN_FLIGHT = 16;

const [address, port, output] = process.argv.slice(2);
const client = new NbdTcpClient({ address, port: Number(port), exportname: "" });
await client.connect();
const size = Number(client.exportSize);
const file = await open(output, "w");
await file.truncate(size);

/** Every block that has data, once. It reads whole blocks, by their index. */
function* blocks(map) {
  let next = 0;
  for (const { offset, length, type } of map) {
    // Bit 0 is a hole.
    if ((type & 1) !== 0) continue;
    const end = Math.ceil((offset + length) / BLOCK_BYTES);
    for (next = Math.max(next, Math.floor(offset / BLOCK_BYTES)); next < end; next += 1) yield next;
  }
}

const shared = blocks(await client.getMap());
async function lane() {
  for (const index of shared) {
    const data = await client.readBlock(index, BLOCK_BYTES);
    await file.write(data, 0, data.length, index * BLOCK_BYTES);
  }
}
await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
await file.close();
await client.disconnect();
