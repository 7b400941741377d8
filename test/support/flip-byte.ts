import { open } from "node:fs/promises";

/** Changes a byte of a file. A second time, it is as it was. */
export async function flipByte(path: string, at: number): Promise<void> {
  await using file = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  await file.write(Buffer.from([~(byte[0] ?? 0) & 0xff]), 0, 1, at);
}
