/**
 * Reads a range of an export and shows it as hexadecimal digits.
 *
 *     node dist/examples/read-range.js URI OFFSET LENGTH
 */
import { NbdClient } from "nbd-client-ts";

const [uri = "", offset = "0", length = "64"] = process.argv.slice(2);

await using client = await NbdClient.connect(uri);
// The buffer belongs to the client until the promise settles; then all of it is what the export holds.
const bytes = Buffer.alloc(Number(length));
await client.read(Number(offset), bytes);
process.stdout.write(`${bytes.toString("hex")}\n`);
