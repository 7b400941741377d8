/** Checks the domain: its state, jobs and disks, and the port that its job would listen on. */

import { createServer } from "node:net";
import { PreconditionError } from "../base/errors.js";
import { domainWord, shellWord } from "../base/shell-word.js";
import { findLeft, refuseAnyJob, runningBackup } from "../guest/claim.js";
import { judgeEncrypted } from "../guest/encrypted-disks.js";
import { keyOf } from "../guest/guest.js";
import { JobFolder } from "../guest/job-folder.js";
import { bitmapObstacle } from "../guest/plan-disk.js";
import { refuseRemote, refuseUnfit } from "../guest/unfit-while-off.js";
import { disksLeftOut, obstacleOf } from "../libvirt/choose-disks.js";
import type { TcpServer } from "../libvirt/documents/begin-xml.js";
import type { DomainDefinition, DomainDisk } from "../libvirt/documents/domain-xml.js";
import { FRAGILE, fragileDisks } from "../libvirt/fragile-disks.js";
import { blockJobMessage } from "../libvirt/libvirt-errors.js";
import { type Found, fail, failedBy, pass, type Subject, warn } from "./check.js";

export async function lookAtState({ libvirt, domain }: Subject): Promise<readonly Found[]> {
  if (!domain) return [];
  const state = await libvirt.domainState(domain);
  if (domain.id !== undefined) return [pass(state)];
  await refuseRemote(libvirt, domain);
  return [pass(`${state}: its images are read by qemu-nbd, and what is taken is known only then`)];
}

export async function lookAtJob({
  libvirt,
  domain,
  repository,
  scratchParent,
  ssh,
}: Subject): Promise<readonly Found[]> {
  if (!domain) return [];
  if (!repository) {
    await refuseAnyJob({ libvirt, domain });
    return [pass("none runs")];
  }
  const guest = { libvirt, domain, repository, ssh };
  const here = await JobFolder.find(scratchParent, keyOf(guest), ssh);
  const { folders, job, isUnclear } = await findLeft(guest, here);
  if (isUnclear)
    return [pass("one begins or ends just now: the next backup waits until libvirt can tell whose")];
  if (job) {
    return [
      pass(
        `one that a dead backup left, in ${folders.at(-1)?.path}: the next backup goes on with its point, or ends it first`,
      ),
    ];
  }
  if (await here.isThere()) {
    return [pass(`none runs; ${here.path} was left by a dead backup, the next one clears it away`)];
  }
  return [pass("none runs")];
}

/** Reports on every disk, including those that are not backed up. */
export async function lookAtDisks(subject: Subject): Promise<readonly Found[]> {
  const { domain, disks, choice = { include: [], exclude: [] } } = subject;
  if (!domain) return [];
  const leftOut = disksLeftOut(domain, choice);
  // Why the disks could not be looked at was said before.
  const told = disks ? domain.disks : domain.disks.filter((disk) => obstacleOf(disk, []) !== undefined);
  const missing = choice.exclude.filter((name) => !domain.disks.some(({ target }) => target === name));
  const needless = missing.map((name) =>
    warn(`${domain.name} has no disk ${name}: --exclude ${name} leaves nothing out`, undefined, name),
  );
  const found = told.flatMap((disk): Found[] => {
    const { target, format = "raw", type, source, volume } = disk;
    const chosen = disks?.find(({ name }) => name === target);
    if (!chosen) {
      const cause = `takes no part: ${obstacleOf(disk, []) ?? "it was left out"}`;
      const isMissed = leftOut.some((each) => each.disk === target && each.isWritable);
      if (!isMissed) return [pass(cause, target)];
      const canTake = obstacleOf(disk, [target]) === undefined;
      return [
        warn(cause, canTake ? `--include ${target} and all other disks` : `--exclude ${target}`, target),
      ];
    }
    const unfit = domain.id === undefined ? unfitWhileOff(domain, disk) : undefined;
    if (unfit) return [unfit];
    const encrypted = disk.isEncrypted ? [lookAtEncrypted(disk, subject)] : [];
    const what = `${format}, ${volume ? `volume ${volume.name} of the pool ${volume.pool}` : (source ?? `on ${type}`)}`;
    const obstacle = bitmapObstacle(chosen);
    if (obstacle === undefined) return [pass(what, target), ...encrypted];
    const cause = `${what}: ${obstacle}, so every backup of it is full`;
    return [warn(cause, mendImage(domain, disk, chosen.path), target), ...encrypted];
  });
  return [...found, ...needless];
}

/** What a backup of a domain that is off would say of the disk. */
function unfitWhileOff(domain: DomainDefinition, disk: DomainDisk): Found | undefined {
  try {
    refuseUnfit(domain, disk);
    return undefined;
  } catch (error) {
    return { ...failedBy(error, { domain }), mend: `--exclude ${disk.target}`, of: disk.target };
  }
}

/** How an image that can't keep bitmaps becomes one that can; undefined: not by one command. */
function mendImage(domain: DomainDefinition, disk: DomainDisk, path: string | undefined): string | undefined {
  const image = path === undefined ? "IMAGE" : shellWord(path);
  if (disk.format === "qcow2") return `qemu-img amend -f qcow2 -o compat=v3 ${image} (while it is off)`;
  // Converted like this an encrypted image would keep its encryption, below that of the new one.
  if (disk.isEncrypted) return undefined;
  return `qemu-img convert -p -O qcow2 ${image} NEW.qcow2 (while it is off); virsh edit ${domainWord(domain.name)}`;
}

/** A block job on a disk (copy, commit, pull) keeps it from being backed up. */
export async function lookAtBlockJobs({ libvirt, domain, disks }: Subject): Promise<readonly Found[]> {
  if (domain?.id === undefined || !disks) return [];
  const looks = disks.map(async ({ name }) => ({ name, kind: await libvirt.blockJob(domain, name) }));
  const running = (await Promise.all(looks)).filter(({ kind }) => kind !== undefined);
  if (running.length === 0) return [pass("none runs")];
  return running.map(({ name, kind }): Found => {
    const error = new PreconditionError("E_DOMAIN_BUSY", blockJobMessage(domain.name, name, kind));
    const mend = `virsh blockjob ${domainWord(domain.name)} ${name} --info`;
    return { status: "fail", cause: error.message, mend, of: name, error };
  });
}

function lookAtEncrypted({ target }: DomainDisk, { domain, encrypted }: Subject): Found {
  if (!domain) return pass("encrypted on the host", target);
  const warnings: string[] = [];
  try {
    judgeEncrypted(domain, [target], { encrypted, onWarning: (message) => warnings.push(message) });
  } catch (error) {
    return { ...failedBy(error, { domain }), of: target };
  }
  const [warning] = warnings;
  const mend = `--exclude ${target}`;
  return warning === undefined
    ? pass("encrypted on the host, and stored as plain text", target)
    : warn(warning, mend, target);
}

/**
 * Nothing can be done about it but not to kill the backup: `backup` itself disconnects in the right order.
 */
export async function lookAtIothreads({ libvirt, domain }: Subject): Promise<readonly Found[]> {
  if (domain?.id === undefined) return [];
  const fragile = await fragileDisks(libvirt, domain);
  if (fragile.length === 0) return [pass("no disk for which an order of disconnecting matters")];
  const cause = `${fragile.join(", ")}: ${FRAGILE}. nbdpull ends the job first, but if it is killed (SIGKILL), or its ssh connection is lost, the guest dies`;
  return [warn(cause)];
}

/**
 * Checks whether QEMU can listen on the port. A port that is held by the job of a dead backup is fine: the
 * next backup ends that job first.
 */
export async function lookAtPort(subject: Subject): Promise<readonly Found[]> {
  const { server, ssh } = subject;
  // A port of another host can't be tried from here.
  if (!server || ssh) return [];
  const where = `port ${server.port} of ${server.host}`;
  const obstacle = await tryToListen(server);
  if (obstacle === undefined) return [pass(`${where} is free`)];
  if (obstacle === "EADDRINUSE" && (await isHeldByOurs(subject, server))) {
    return [pass(`${where} is held by a job that a dead backup left, which goes first`)];
  }
  const cause =
    obstacle === "EADDRINUSE" ? `${where} is in use` : `${where} can't be listened on (${obstacle})`;
  return [
    fail("E_ADDRESS_IN_USE", cause, {
      advice: "end what listens there, or name another one: --server tcp:PORT",
      mend: `ss -ltnp 'sport = :${server.port}'`,
      details: { address: `${server.host}:${server.port}` },
    }),
  ];
}

async function isHeldByOurs(
  { libvirt, domain, repository, ssh }: Subject,
  { port }: TcpServer,
): Promise<boolean> {
  if (!domain || !repository) return false;
  const job = await runningBackup(libvirt, domain);
  if (!job || !JobFolder.ofJob(job, keyOf({ libvirt, domain, repository, ssh }))) return false;
  return job.server.transport === "tcp" && job.server.port === port;
}

/** @returns the system's error code; undefined if listening worked */
function tryToListen({ host, port }: TcpServer): Promise<string | undefined> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(undefined)));
  });
}
