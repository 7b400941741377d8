/**
 * What the options of several commands mean to the engine. Loaded with a command's work, not with its help.
 */
import { readFile } from "node:fs/promises";
import { UsageError } from "../src/backup/base/errors.js";
import { DEFAULT_DIGESTS, type DigestAlgorithm } from "../src/backup/digest/algorithms.js";
import type { ImageFormat } from "../src/backup/image/image.js";
import { assertCompressible } from "../src/backup/pull/compressible.js";
import { RateLimit } from "../src/backup/pull/rate-limit.js";
import type { Window } from "../src/backup/pull/window.js";
import type { CompressionMethod } from "../src/backup/qcow2/can-compress.js";
import type { ProveSettings } from "../src/backup/take/prove-disk.js";
import type { TakeSettings } from "../src/backup/take/take-options.js";
import type { ConnectOptions } from "../src/nbd/index.js";
import { limitsOf } from "./network-limits.js";
import {
  type CopyOptions,
  type NetworkOptions,
  type ProofOptions,
  RECONNECT_SECONDS,
  type ReconnectOptions,
} from "./options.js";
import { version } from "./version.js";

/** How points of a job's disks are stored: what `backup` and `attach` have in common. */
export function storageOf(
  options: CopyOptions & NetworkOptions & ProofOptions,
): Omit<TakeSettings, "connect" | "signal"> {
  const format = options.format ?? "qcow2";
  return {
    format,
    digests: digestsOf(options, DEFAULT_DIGESTS),
    compress: compressOf(options, format),
    sync: options.fsync,
    proveBase: proofOf(options),
    tool: `nbdpull ${version()}`,
    window: windowOf(options),
  };
}

function proofOf({ proveBase: amount, proveSeed: seed }: ProofOptions): ProveSettings {
  return { amount, seed };
}

/** @throws {UsageError} if this format, or this version of Node, doesn't support the compression */
export function compressOf(options: CopyOptions, format: ImageFormat): CompressionMethod | undefined {
  if (options.compress !== undefined) assertCompressible(format, options.compress);
  return options.compress;
}

/** Undefined for no digests. Without either flag, the command's own default `otherwise` applies. */
export function digestsOf(
  options: CopyOptions,
  otherwise: DigestAlgorithm | undefined,
): DigestAlgorithm | undefined {
  return options.digests === false ? undefined : (options.digests ?? otherwise);
}

export function windowOf(options: CopyOptions & NetworkOptions): Window {
  const { requestSize, inFlight, connections } = options;
  return { requestSize, inFlight, connections };
}

export function rateLimitOf(options: Pick<CopyOptions, "limitRate">): RateLimit | undefined {
  return options.limitRate === undefined ? undefined : new RateLimit(options.limitRate);
}

/** Undefined: a loss is a failure. */
export function reconnectOf({
  reconnect = RECONNECT_SECONDS,
}: ReconnectOptions): ConnectOptions["reconnect"] {
  if (reconnect === 0) return undefined;
  return { withinMs: reconnect * 1000, delayMs: 200, maxDelayMs: 2000, sameServer: true };
}

/** @throws {UsageError} a certificate or key file cannot be read */
export async function connectOf(
  options: NetworkOptions,
  signal: AbortSignal,
  reconnect?: ConnectOptions["reconnect"],
): Promise<ConnectOptions> {
  const { connections, hostOverride } = options;
  const tls = await tlsOf(options);
  return {
    signal,
    ...(connections === undefined ? {} : { connections }),
    ...(hostOverride === undefined ? {} : { hostOverride }),
    ...(tls === undefined ? {} : { tls }),
    ...limitsOf(options),
    ...(reconnect === undefined ? {} : { reconnect }),
  };
}

/** Undefined if no flag concerns TLS: then only the URI decides. */
async function tlsOf(options: NetworkOptions): Promise<ConnectOptions["tls"]> {
  const { tlsCa, tlsCert, tlsKey, tlsPskFile, insecure } = options;
  if ([tlsCa, tlsCert, tlsKey, tlsPskFile, insecure].every((flag) => flag === undefined)) return undefined;
  return {
    ...(tlsCa === undefined ? {} : { ca: await readPem("--tls-ca", tlsCa) }),
    ...(tlsCert === undefined ? {} : { cert: await readPem("--tls-cert", tlsCert) }),
    ...(tlsKey === undefined ? {} : { key: await readPem("--tls-key", tlsKey) }),
    ...(tlsPskFile === undefined ? {} : { pskFile: tlsPskFile }),
    ...(insecure === undefined ? {} : { insecureSkipVerification: true }),
  };
}

/** @throws {UsageError} if it can't be read */
export async function readPem(flag: string, path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError("E_TLS_FILE", `${flag}: ${message}`, { cause });
  }
}

/** The requested format, or else that of the suffix: `.qcow2`; anything else is raw. */
export function formatOf(path: string, asked: ImageFormat | undefined): ImageFormat {
  return asked ?? (path.endsWith(".qcow2") ? "qcow2" : "raw");
}
