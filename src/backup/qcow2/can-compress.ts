import { UsageError } from "../base/errors.js";

export type CompressionMethod = "deflate" | "zstd";

/** Whether this version of Node has the method. Loads zlib, which takes 2 ms, only to find that out. */
export function canCompress(method: CompressionMethod): boolean {
  return method !== "zstd" || "createZstdCompress" in process.getBuiltinModule("node:zlib");
}

/** @throws {UsageError} this version of Node lacks the method */
export function assertCompression(method: CompressionMethod): void {
  if (canCompress(method)) return;
  const message = `compressing with zstd needs Node 22.15 or newer, this is ${process.versions.node}: use deflate, or a newer Node`;
  throw new UsageError("E_NO_ZSTD", message);
}
