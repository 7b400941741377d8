/**
 * Reads all data of an export with the library and discards it: `read-all.js URI`. Four requests of 1 MiB in
 * flight.
 */

import { NbdClient } from "../../src/nbd/index.js";

const REQUEST_BYTES = 1024 * 1024;
const IN_FLIGHT = 4;
/** Set where nothing has been allocated. */
const HOLE = 1;

const CONTEXT = "base:allocation";

const [uri = ""] = process.argv.slice(2);
await using client = await NbdClient.connect(uri, { metaContexts: [CONTEXT] });

async function* requests(): AsyncGenerator<{ offset: number; length: number }> {
  for await (const { contexts } of client.blockStatus()) {
    for (const { offset, length, flags } of contexts.get(CONTEXT) ?? []) {
      if ((flags & HOLE) !== 0) continue;
      for (let done = 0; done < length; done += REQUEST_BYTES) {
        yield { offset: offset + done, length: Math.min(REQUEST_BYTES, length - done) };
      }
    }
  }
}

const shared = requests();
async function lane(): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(REQUEST_BYTES);
  for (let next = await shared.next(); !next.done; next = await shared.next()) {
    await client.read(next.value.offset, buffer.subarray(0, next.value.length));
  }
}
await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
