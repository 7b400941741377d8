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
for (let offset = 0; offset < size; offset += PIECE) {
  const { bytesRead } = await file.read(bytes, 0, PIECE, offset);
  await client.write(offset, bytes.subarray(0, bytesRead));
}
if (client.export.canFlush) await client.flush();

for (let offset = 0; offset < size; offset += PIECE) {
  const { bytesRead } = await file.read(bytes, 0, PIECE, offset);
  await client.read(offset, back.subarray(0, bytesRead));
  if (bytes.compare(back, 0, bytesRead, 0, bytesRead) !== 0) {
    throw new Error(`the MiB at ${offset} reads back differently`);
  }
}
process.stdout.write(`${size} bytes written and read back\n`);
