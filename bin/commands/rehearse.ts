import { resolve } from "node:path";
import { messageOf, PreconditionError, UsageError } from "../../src/backup/base/errors.js";
import { HeldFolder } from "../../src/backup/host/held-folder.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { type Rehearsal, type RehearsalOptions, rehearse } from "../../src/backup/live/rehearse.js";
import type { SignOfLife } from "../../src/backup/live/signs-of-life.js";
import { chooseDomains, noPoints } from "../../src/backup/repository/choose-domain.js";
import { choosePoint } from "../../src/backup/repository/choose-point.js";
import { withRestorable } from "../../src/backup/repository/points-without-damage.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { adaptedLines } from "../adapted-lines.js";
import type { WhoseOptions } from "../domain-options.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { updateOfRehearsal } from "../metrics.js";
import { MetricsFile } from "../metrics-file.js";
import type { TrustOptions } from "../options.js";
import { shareOf } from "../rehearsal-share.js";
import type { Context } from "../run.js";
import { requireTrust } from "../trust.js";

interface RehearseOptions extends TrustOptions, WhoseOptions {
  readonly at: string;
  readonly expect?: string;
  readonly tcpPort?: number;
  readonly run?: string;
  /** In percent. */
  readonly share: number;
  /** In seconds. */
  readonly within: number;
  readonly memory: number;
  readonly cpus: number;
  readonly network?: string;
  readonly pictures?: string;
  readonly work: string;
  readonly trustDefinition?: true;
  readonly adapt?: true;
  readonly metrics?: string;
  readonly connect?: string;
}

export async function runRehearse(
  context: Context,
  options: RehearseOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const { output, signal } = context;
  const sign = signOf(options);
  const repository = await Repository.open(path, { trusted: options.trustRepository, signal });
  const all = await chooseDomains(repository, wanted, options.uuid);
  // A timer would take it for a proof.
  if (all.length === 0) throw noPoints();
  const domains = await shareOf(repository, all, options.share);
  await requireTrust(path, domains, options, output);
  const metrics = options.metrics === undefined ? undefined : await MetricsFile.at(options.metrics);
  const label = repository.isInStore ? path : resolve(path);
  const record = async (domain: string, cameUp: boolean): Promise<void> => {
    try {
      await metrics?.update(updateOfRehearsal(domain, label, cameUp, Date.now()));
    } catch (error) {
      output.warn(`no metrics were written: ${messageOf(error)}`);
    }
  };
  await using libvirt = new Libvirt({ connect: options.connect, signal });
  await refuseRemote(libvirt);
  const one = async (domain: string): Promise<Rehearsal & { readonly domain: string }> => {
    let name = domain;
    const choose = async () => await choosePoint(repository, domain, options.at, options.uuid);
    const work = async (): Promise<Rehearsal> => {
      // What is read later has readings of its own. This one would end in an error if another point went.
      const point = await repository.reading(domain, choose, signal);
      name = point.domain.name;
      return await rehearse({
        ...{ repository, domain, point, sign, libvirt, signal, withinMs: options.within * 1000 },
        command: options.run,
        ...{ memory: options.memory, cpus: options.cpus, network: options.network },
        ...{ place: resolve(options.work), trusted: options.trustDefinition ?? false },
        adapt: options.adapt ?? false,
        onPicture: options.pictures === undefined ? undefined : keeper(options.pictures, domain),
        onDamage: (error) => {
          process.exitCode = EXIT.damaged;
          output.warn(error.message);
        },
        onWarning: (message) => output.warn(`${domain}: ${message}`),
      });
    };
    try {
      const found = await work();
      await record(name, found.cameUp);
      return { domain, ...found };
    } catch (error) {
      if (!signal.aborted) await record(name, false);
      throw await withRestorable(error, repository, domain);
    }
  };
  const results = await eachDomain(domains, context, one, (found) => output.part(linesOf(found)));
  const told = results.map((each) => ("error" in each ? each : each.result));
  if (told.some((each) => "cameUp" in each && !each.cameUp)) process.exitCode = EXIT.damaged;
  output.result(told, []);
}

function linesOf({
  domain,
  point,
  cameUp,
  seconds,
  reason,
  said,
  adapted,
  ran,
}: Rehearsal & { readonly domain: string }): string[] {
  const after = `${seconds.toFixed(1)} s`;
  const told = adaptedLines(domain, adapted).map((line) => `    ${line}`);
  if (ran) told.push(...ranLines(ran));
  if (cameUp) return [`${domain} ${point}: came up in ${after}`, ...told];
  return [
    `${domain} ${point}: DID NOT COME UP: ${reason} (${after})`,
    ...told,
    ...said.map((line) => `    it said: ${line}`),
  ];
}

const LINES_TOLD = 5;

function ranLines({ command, exitCode, output }: NonNullable<Rehearsal["ran"]>): string[] {
  const lines = output.split(/\r?\n/).filter((line) => line.trim() !== "");
  return [
    `    ${command}: ${exitCode === undefined ? "no exit code" : `exit code ${exitCode}`}`,
    ...lines.slice(-LINES_TOLD).map((line) => `    it wrote: ${line}`),
  ];
}

/** Keeps a picture in the place of the one of the domain's last rehearsal. */
function keeper(folder: string, domain: string): NonNullable<RehearsalOptions["onPicture"]> {
  return async ({ type, bytes }) => {
    await using held = await HeldFolder.open(folder);
    const suffixes = ["png", "ppm"];
    const suffix = type === "image/png" ? "png" : "ppm";
    await held.replace(`${domain}.${suffix}`, bytes);
    for (const other of suffixes) if (other !== suffix) await held.unlink(`${domain}.${other}`);
  };
}

/** @throws {UsageError} `E_USAGE` */
function signOf({ expect, tcpPort, network }: RehearseOptions): SignOfLife {
  if (tcpPort !== undefined) {
    if (expect === undefined && network !== undefined) return { kind: "tcp", port: tcpPort };
    const message =
      expect === undefined
        ? "--tcp-port is reached through a network, and without --network the guests have none: name one"
        : "--tcp-port and --expect are each a sign of life: give one of them";
    throw new UsageError("E_USAGE", message);
  }
  const text = expect ?? "agent";
  if (text === "agent") return { kind: "agent" };
  const [, pattern] = /^serial:(.+)$/s.exec(text) ?? [];
  try {
    if (pattern !== undefined) return { kind: "serial", pattern: new RegExp(pattern, "m") };
  } catch {
    // Told below.
  }
  throw new UsageError("E_USAGE", `--expect ${text}: neither agent nor serial:PATTERN, a regular expression`);
}

/** @throws {PreconditionError} `E_LIVE_UNSUPPORTED` */
async function refuseRemote(libvirt: Libvirt): Promise<void> {
  const host = await libvirt.remoteHost();
  if (host === undefined) return;
  const message = `libvirt is on ${host}, and QEMU reads points through a socket of this host: run nbdpull on ${host}`;
  throw new PreconditionError("E_LIVE_UNSUPPORTED", message, { details: { host } });
}
