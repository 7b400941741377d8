import { once } from "node:events";
import { resolve } from "node:path";
import { UsageError } from "../../src/backup/base/errors.js";
import { isLoopback, parseListenAddress, resolveHost } from "../../src/backup/host/listen-address.js";
import { chooseDomain } from "../../src/backup/repository/choose-domain.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type PointServer, type ServeOptions, servePoint } from "../../src/backup/serve/serve.js";
import type { ServerTls } from "../../src/nbd/index.js";
import { type CacheOptions, cacheOf } from "../cache-options.js";
import type { WhoseOptions } from "../domain-options.js";
import { readPem } from "../option-values.js";
import type { Output } from "../output.js";
import type { Context } from "../run.js";
import { tellAssurance, tellCacheFailure, tellEvents } from "../served-point.js";
import { warnOfStrangers } from "../trust.js";

interface ServeCommandOptions extends WhoseOptions, CacheOptions {
  readonly at: string;
  readonly disk?: string[];
  readonly listen?: string;
  readonly socket?: string;
  readonly allowRemote?: true;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly once?: true;
  readonly idleLimit: number;
  readonly maxClients?: number;
  readonly maxClientsPerHost?: number;
}

export async function runServe(
  { output, signal }: Context,
  options: ServeCommandOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const cache = cacheOf(options);
  const where = await whereToListen(options, output);
  const repository = await Repository.open(path, { signal });
  const domain = await chooseDomain(repository, wanted, options);
  await warnOfStrangers(path, [domain], output);
  const { at, uuid, disk: disks, maxClients, maxClientsPerHost } = options;
  const idleTimeoutMs = options.idleLimit === 0 ? undefined : options.idleLimit * 1000;
  const onEvent = tellEvents(output);
  await using server = await servePoint({
    ...where,
    ...{ repository, domain, at, uuid, disks, idleTimeoutMs, signal, onEvent },
    ...{ maxClients, maxClientsPerHost, cache, onCacheFailure: tellCacheFailure(output) },
  });
  announce(server, domain, output);
  // A server normally ends by being stopped: that is no failure.
  const stopped = signal.aborted ? Promise.resolve() : once(signal, "abort");
  await (options.once ? Promise.race([stopped, server.clientsLeft]) : stopped);
}

function announce({ point, disks }: PointServer, domain: string, output: Output): void {
  tellAssurance(disks, output);
  output.result(
    { domain, uuid: point.domain.uuid, point: point.id, disks },
    disks.map(({ uri }) => uri),
  );
  output.note(`serving ${domain} ${point.id}, read-only, until SIGINT or SIGTERM`);
}

type Where = Pick<ServeOptions, "address" | "host" | "tls">;

/** @throws {UsageError} if options contradict each other, or would expose a backup to everyone */
async function whereToListen(options: ServeCommandOptions, output: Output): Promise<Where> {
  const tls = await tlsOf(options);
  if (options.socket !== undefined) {
    if (options.listen !== undefined) throw new UsageError("E_USAGE", "give --listen or --socket, not both");
    return { address: { path: resolve(options.socket) }, tls };
  }
  const asked = parseListenAddress(options.listen ?? "127.0.0.1:10809");
  const address = await resolveHost(asked);
  if (!isLoopback(address.host)) mayBeRemote(address.host, tls, options, output);
  else if (options.tlsCa === undefined) {
    output.note(
      `every user of this machine can connect to ${address.host} and read the backup: --socket lets in only you`,
    );
  }
  const isEverywhere = ["0.0.0.0", "::"].includes(address.host);
  return { address, tls, host: isEverywhere ? undefined : asked.host };
}

function mayBeRemote(
  address: string,
  tls: ServerTls | undefined,
  options: ServeCommandOptions,
  output: Output,
): void {
  if (tls === undefined && !options.allowRemote) {
    const message = `other machines can reach ${address} and read the backup: give --tls-cert and --tls-key (and --tls-ca, to admit only clients with a certificate), or --allow-remote to serve it to everybody unencrypted`;
    throw new UsageError("E_REMOTE", message, { details: { address } });
  }
  if (options.tlsCa !== undefined) return;
  const encrypted = tls === undefined ? ", unencrypted" : "";
  output.note(
    `anyone who reaches ${address} can read the backup${encrypted}: --tls-ca lets in only known clients`,
  );
}

async function tlsOf({ tlsCert, tlsKey, tlsCa }: ServeCommandOptions): Promise<ServerTls | undefined> {
  if (tlsCert === undefined && tlsKey === undefined && tlsCa === undefined) return undefined;
  if (tlsCert === undefined || tlsKey === undefined) {
    throw new UsageError(
      "E_USAGE",
      "TLS needs both --tls-cert and --tls-key; --tls-ca is for the clients' certificates",
    );
  }
  const certificate = await readPem("--tls-cert", tlsCert);
  const key = await readPem("--tls-key", tlsKey);
  if (tlsCa === undefined) return { certificate, key };
  return { certificate, key, clientCa: await readPem("--tls-ca", tlsCa) };
}
