/**
 * Reads 64 KiB at each of many places of a served point, one after the other, in random order, and prints the
 * median time of a read in ms: `random-reads.js COUNT ROUNDS SERVE_ARGUMENT...`. Each round reads the same
 * places; the last one counts.
 */

import { NbdClient, parseNbdUri } from "../../src/nbd/index.js";
import { READ_BYTES, shuffled } from "../random-places.js";
import { servePoint } from "../served.js";
import { median } from "../statistics.js";

const [count = "", rounds = "", ...args] = process.argv.slice(2);
await using served = await servePoint(args);
await using client = await NbdClient.connect(parseNbdUri(served.uri), { metaContexts: ["base:allocation"] });

const places: number[] = [];
for await (const { offset, contexts } of client.blockStatus()) {
  let end = offset;
  for (const { length, flags } of contexts.get("base:allocation") ?? []) {
    const first = Math.ceil(end / READ_BYTES) * READ_BYTES;
    end += length;
    for (let at = first; flags === 0 && at + READ_BYTES <= end; at += READ_BYTES) places.push(at);
  }
}
const chosen = shuffled(places, 1).slice(0, Number(count));
const target = Buffer.alloc(READ_BYTES);
let times: number[] = [];
for (let round = 1; round <= Number(rounds); round += 1) {
  times = [];
  for (const at of shuffled(chosen, round)) {
    const began = performance.now();
    await client.read(at, target);
    times.push(performance.now() - began);
  }
}
process.stdout.write(`${median(times).toFixed(3)}\n`);
