import { readFile } from "node:fs/promises";
import { Agent as PlainAgent } from "node:http";
import { Agent as TlsAgent } from "node:https";
import { S3Client, type S3ClientConfig } from "@aws-sdk/client-s3";
import { UsageError } from "../base/errors.js";
import { AWS_ENDPOINT, plainEndpoint, type S3Address } from "./address.js";
import { RequestHandler } from "./request-handler.js";

// It would write a warning to standard error with older versions of Node, once a process.
process.env["AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED"] ??= "true";

export const MOST_CONNECTIONS = 48;
const CONNECT_MS = 10_000;
/** A connection on which nothing moves for so long is given up. */
const IDLE_MS = 30_000;
/** The same while a store copies: some say nothing before they have done it. */
export const COPY_IDLE_MS = 300_000;
/** Bytes a second that a store copies at least: a part has up to 5 GiB. */
const LEAST_COPIED = 2 * 1024 * 1024;
/** Where a store is not AWS, the region is part of the signature only. */
const ANY_REGION = "us-east-1";

/**
 * After how long a connection is given up on which a store says nothing while it copies `bytes`: five
 * minutes, or that doubled until a slow store can have done it.
 */
export function copyIdleMs(bytes: number): number {
  const neededMs = (bytes / LEAST_COPIED) * 1000;
  return COPY_IDLE_MS * 2 ** Math.max(0, Math.ceil(Math.log2(neededMs / COPY_IDLE_MS)));
}

/**
 * A client for the store of an address that `lastingAddress` has given. Credentials come from where AWS's own
 * tools look for them: variables, files, a container or the machine's role. It tries each request once.
 * @param idleMs after which a connection on which nothing moves is given up
 * @throws {UsageError} `E_S3_CA`: the file that AWS_CA_BUNDLE names cannot be read
 */
export async function clientFor(address: S3Address, idleMs = IDLE_MS): Promise<S3Client> {
  const { endpoint = AWS_ENDPOINT } = address;
  const isAws = endpoint === AWS_ENDPOINT;
  const agent = { keepAlive: true, maxSockets: MOST_CONNECTIONS };
  const config: S3ClientConfig = {
    maxAttempts: 1,
    // An older store refuses checksums that it does not know. Every request is signed with the digest of its
    // body.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    followRegionRedirects: true,
    forcePathStyle: address.pathStyle ?? (!isAws || !isHostName(address.bucket)),
    requestHandler: new RequestHandler({
      connectionTimeout: CONNECT_MS,
      socketTimeout: idleMs,
      httpAgent: new PlainAgent(agent),
      httpsAgent: new TlsAgent({ ...agent, ca: await trustedRoots() }),
      logger: SILENT,
    }),
    logger: SILENT,
  };
  if (isAws) config.ignoreConfiguredEndpointUrls = true;
  else config.endpoint = endpoint;
  if (address.profile !== undefined) config.profile = address.profile;
  const region = address.region ?? process.env["AWS_REGION"] ?? process.env["AWS_DEFAULT_REGION"];
  if (region !== undefined) return new S3Client({ ...config, region });
  const client = new S3Client(config);
  const isKnown = await client.config.region().then(
    () => true,
    () => false,
  );
  if (isKnown) return client;
  client.destroy();
  return new S3Client({ ...config, region: ANY_REGION });
}

const nothing = (): void => undefined;
/** The library never writes to the terminal. */
const SILENT = { trace: nothing, debug: nothing, info: nothing, warn: nothing, error: nothing };

/**
 * The address with the endpoint in use, without credentials: it leads to the same store where AWS's variables
 * and files say something else.
 * @throws {UsageError} `E_S3_ADDRESS`: the endpoint that these name is no URL
 */
export async function lastingAddress(address: S3Address): Promise<S3Address> {
  const endpoint = address.endpoint ?? (await configuredEndpoint()) ?? AWS_ENDPOINT;
  try {
    return { ...address, endpoint: plainEndpoint(endpoint) };
  } catch {
    // Not what it is: credentials may be in it.
    const message =
      "the endpoint that AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or AWS's files name is no URL: it begins with https:// or http://";
    throw new UsageError("E_S3_ADDRESS", message);
  }
}

/** What AWS's variables say, and its files in the section of AWS_PROFILE; undefined: AWS itself. */
async function configuredEndpoint(): Promise<string | undefined> {
  const asked = new S3Client({ region: ANY_REGION, logger: SILENT });
  try {
    return await asked.config.serviceConfiguredEndpoint?.();
  } finally {
    asked.destroy();
  }
}

/** Whether a certificate for AWS's hosts covers the bucket as a part of the host's name. */
function isHostName(bucket: string): boolean {
  return /^[a-z0-9-]+$/.test(bucket);
}

/** As AWS's command line has it: these roots instead of the usual ones. */
async function trustedRoots(): Promise<Buffer | undefined> {
  const path = process.env["AWS_CA_BUNDLE"];
  if (path === undefined || path === "") return undefined;
  try {
    return await readFile(path);
  } catch (cause) {
    const message = `AWS_CA_BUNDLE names ${path}, which cannot be read: correct the variable, or remove it`;
    throw new UsageError("E_S3_CA", message, { cause, details: { path } });
  }
}
