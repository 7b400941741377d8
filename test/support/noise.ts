import { createCipheriv } from "node:crypto";

/** Bytes that can't be compressed, always the same ones for a seed. */
export function noise(length: number, seed = 0): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32BE(seed);
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}
