/**
 * Writes an export to a raw file, without a buffer for each request.
 *
 *     node dist/examples/save-export.js URI FILE
 */
import { openSync, writeSync } from "node:fs";
import { NbdClient } from "nbd-client-ts";

const [uri = "", path = ""] = process.argv.slice(2);
const PIECE = 1024 * 1024;

await using client = await NbdClient.connect(uri);
const { size } = client.export;
const file = openSync(path, "wx");
const zeroes = Buffer.alloc(64 * 1024);
for (let offset = 0; offset < size; offset += PIECE) {
  await client.readPieces([{ offset, length: Math.min(PIECE, size - offset) }], {
    // The piece is the client's again when this returns.
    data: (at, bytes) => void writeSync(file, bytes, 0, bytes.length, at),
    zeroes: (at, length) => {
      for (let done = 0; done < length; done += zeroes.length) {
        writeSync(file, zeroes, 0, Math.min(zeroes.length, length - done), at + done);
      }
    },
  });
}
