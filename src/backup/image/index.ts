export type { Compression, CompressionMethod } from "./compress-cluster.js";
export * from "./image.js";
export { checkQcow2, type Qcow2Finding } from "./qcow2-check.js";
export { Qcow2CompressedWriter, type Qcow2CompressedWriterOptions } from "./qcow2-compressed-writer.js";
export type { Qcow2Header } from "./qcow2-header.js";
export { Qcow2Reader } from "./qcow2-reader.js";
export { type Backing, Qcow2Writer, type Qcow2WriterOptions } from "./qcow2-writer.js";
export { RawReader, type RawReaderOptions } from "./raw-reader.js";
export { RawWriter, type RawWriterOptions } from "./raw-writer.js";
