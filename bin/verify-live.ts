/** `nbdpull verify --live`: the disks of a running domain compared with their chain. */

import { UsageError } from "../src/backup/base/errors.js";
import { Libvirt } from "../src/backup/libvirt/libvirt.js";
import { type LiveDiskReport, verifyLive } from "../src/backup/take/verify-live.js";
import { EXIT } from "./exit-codes.js";
import { SCRATCH_PARENT } from "./guest-options.js";
import { rateLimitOf, reconnectOf } from "./option-values.js";
import type { ReconnectOptions, ScratchOptions, TrustOptions } from "./options.js";
import { OutageNotes } from "./outage-notes.js";
import { human } from "./output.js";
import type { Context } from "./run.js";
import { prepareToWrite } from "./trust.js";

export interface LiveOptions extends ReconnectOptions, ScratchOptions, TrustOptions {
  readonly at?: string;
  readonly uuid?: string;
  readonly live?: true;
  readonly scratch?: string;
  readonly connect?: string;
  readonly limitRate?: number;
}

/** @throws {UsageError} there is an option that only means something with `--live` */
export function refuseLiveOptions({
  connect,
  scratch,
  scratchReserve,
  limitRate,
  reconnect,
}: LiveOptions): void {
  const given = { connect, scratch, "scratch-reserve": scratchReserve, "limit-rate": limitRate, reconnect };
  const [name] = Object.entries(given).find(([, value]) => value !== undefined) ?? [];
  if (name !== undefined) throw new UsageError("E_USAGE", `--${name} means something with --live only`);
}

/** Exits with 3 if a disk differs, and with 4 if none could be compared. */
export async function verifyLiveDomain(
  { output, signal }: Context,
  options: LiveOptions,
  repositoryPath: string,
  domain: string | undefined,
): Promise<void> {
  if (domain === undefined) throw new UsageError("E_DOMAIN", "--live needs the domain: name it");
  for (const name of ["at", "uuid"] as const) {
    if (options[name] === undefined) continue;
    throw new UsageError("E_USAGE", `--live compares the domain with its newest chain: leave --${name} out`);
  }
  await prepareToWrite(repositoryPath, undefined, options, output);
  const progress = await output.progress();
  const notes = new OutageNotes(output, progress);
  const report = await verifyLive({
    libvirt: new Libvirt({ signal, connect: options.connect }),
    domain,
    repositoryPath,
    trustRepository: options.trustRepository,
    scratchParent: options.scratch ?? SCRATCH_PARENT,
    scratchReserve: options.scratchReserve,
    rateLimit: rateLimitOf(options),
    signal,
    onProgress: (disk, p) => progress.update(disk, p.comparedBytes, p.virtualSize, p.comparedBytes),
    reconnect: reconnectOf(options),
    onOutage: notes.note,
    onWarning: (message) => output.warn(message),
  }).finally(() => progress.stop());
  for (const { disk, unread } of report.disks) {
    if (unread > 0) output.warn(`${disk}: ${unread} clusters could not be read, and were not compared`);
  }
  const differs = report.disks.some(({ findings }) => findings.length > 0);
  output.result({ ...report, differs, warnings: output.warnings }, report.disks.flatMap(asText));
  if (differs) process.exitCode = EXIT.damaged;
  else if (report.disks.every(({ reason }) => reason !== undefined)) process.exitCode = EXIT.precondition;
}

function asText({ disk, point, reason, comparedBytes, findings }: LiveDiskReport): string[] {
  if (reason !== undefined) return [`${disk}: not compared: ${reason}`];
  const state = findings.length === 0 ? "as" : "NOT AS";
  const head = `${disk}: ${state} its chain up to ${point} has it, apart from what changed since: ${human(comparedBytes)} compared`;
  return [
    head,
    ...findings.map(({ guestOffset, length, message }) =>
      guestOffset === undefined
        ? `    ${message}`
        : `    guest offset ${guestOffset}, ${length} bytes: ${message}`,
    ),
  ];
}
