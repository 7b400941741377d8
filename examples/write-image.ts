/**
 * Writes a raw image file to an export, and reads it back.
 *
 *     node dist/examples/write-image.js FILE URI
 */
import { open } from "node:fs/promises";
import { NbdClient } from "nbd-client-ts";

const [path = "", uri = ""] = process.argv.slice(2);
const PIECE = 1024 * 1024;

await using client = await NbdClient.connect(uri);
await using file = await open(path, "r");
const { size } = await file.stat();
if (size > client.export.size)
  throw new Error(`the image has ${size} bytes, the export ${client.export.size}`);

const bytes = Buffer.alloc(PIECE);
const back = Buffer.alloc(PIECE);
// The length of a write must be a multiple of the server's block size, so zeroes fill the last block.
const unit = client.export.blockSize?.minimum ?? 512;

/** Fills `bytes` from the file; bytes behind its end are zeroes. */
async function load(offset: number): Promise<Buffer> {
  bytes.fill(0);
  let filled = 0;
  while (filled < PIECE) {
    const { bytesRead } = await file.read(bytes, filled, PIECE - filled, offset + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return bytes.subarray(0, Math.min(Math.ceil(filled / unit) * unit, client.export.size - offset));
}

for (let offset = 0; offset < size; offset += PIECE) await client.write(offset, await load(offset));
if (client.export.canFlush) await client.flush();

for (let offset = 0; offset < size; offset += PIECE) {
  const expected = await load(offset);
  await client.read(offset, back.subarray(0, expected.length));
  if (!expected.equals(back.subarray(0, expected.length))) {
    throw new Error(`the MiB at ${offset} reads back differently`);
  }
}
process.stdout.write(`${size} bytes written and read back\n`);
