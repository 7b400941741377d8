/** nbd-client-ts: a client for the NBD protocol. This module exports the public API. */

export { anySignal } from "./abort.js";
export type { StatusBatch, StatusExtent, StatusRuns } from "./block-status.js";
export type { RequestOptions, WriteOptions, ZeroOptions } from "./changes.js";
export { NbdClient, type StatusOptions } from "./client.js";
export {
  ConnectionError,
  type ErrorContext,
  MetaContextError,
  NbdError,
  type NbdErrorCode,
  OptionError,
  ProtocolError,
  RequestError,
  type RequestErrorCode,
  type RequestFacts,
  TlsError,
  UriError,
} from "./errors.js";
export type { PieceSink, Stretch } from "./exchange.js";
export type { ExportInfo } from "./export-info.js";
export type { Handshake } from "./negotiate.js";
export { type DescribeOptions, describeExport, listExports } from "./queries.js";
export {
  type BlockSize as ServedBlockSize,
  type CertificateTls,
  ClientFault,
  type ClientFaultCode,
  type DescribeExtents,
  type ExportLookup,
  type ExportSource,
  type ListenAddress,
  MemoryDisk,
  type MemoryDiskOptions,
  NbdServer,
  type NbdServerEvent,
  type NbdServerOptions,
  type PresharedKeyTls,
  type ReplyMode,
  ServedError,
  type ServedExport,
  type ServerTls,
  type StatusExtent as ServedExtent,
} from "./server/index.js";
export type { ConnectOptions, NbdEvent, ReachOptions, ReconnectOptions } from "./settings.js";
export type { TlsOptions } from "./tls.js";
export { type Endpoint, formatNbdUri, type NbdAddress, parseNbdUri, type TlsAddress } from "./uri.js";
export { ALLOCATION, DIRTY } from "./wire/constants.js";
export type { BlockSize, ListedExport } from "./wire/options.js";
export type { Protocol } from "./wire/requests.js";
