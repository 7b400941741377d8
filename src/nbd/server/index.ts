/** The built-in read-only NBD server, and a disk in memory to serve. */
export { ClientFault, type ClientFaultCode, ServedError } from "./errors.js";
export type {
  BlockSize,
  DescribeExtents,
  ExportLookup,
  ExportSource,
  ServedExport,
  StatusExtent,
} from "./export.js";
export { MemoryDisk, type MemoryDiskOptions } from "./memory-disk.js";
export { type ListenAddress, NbdServer, type NbdServerEvent, type NbdServerOptions } from "./server.js";
export type { CertificateTls, PresharedKeyTls, ServerTls } from "./tls.js";
export type { ReplyMode } from "./transmission-frames.js";
