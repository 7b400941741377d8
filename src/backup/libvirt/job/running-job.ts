import { BackupError, PreconditionError } from "../../base/errors.js";
import { domainWord } from "../../base/shell-word.js";
import { type Checkpoint, parseCheckpoint } from "../documents/checkpoint-xml.js";
import { type DomainDefinition, parseDomain } from "../documents/domain-xml.js";
import { type BackupJob, exportedDisks, parseBackupJob } from "../documents/job-xml.js";
import { patienceToEnd } from "../fragile-disks.js";
import type { JobInfo } from "../job-info.js";
import { type DomainRef, isJobGone, type Libvirt } from "../libvirt.js";
import { endedInQemu } from "./frozen-disks.js";
import { whileJobRuns } from "./job-watch.js";
import { type LastLookOptions, lookPatiently } from "./last-look.js";
import { canBeSameJob, isUnmistakable } from "./same-job.js";

/** A point in time that lies between two known ones, in milliseconds since 1970. */
interface Moment {
  readonly earliest: number;
  readonly latest: number;
}

/** How far our clock and the hypervisor's may drift apart during a job. */
const DRIFT_TOLERANCE_MS = 2000;

/**
 * How long after its job a checkpoint may be dated. Both begin in the same transaction, so this only allows
 * for the precision with which we read the clock.
 */
const CHECKPOINT_TOLERANCE_MS = 20;

/** How long before its job a checkpoint may be dated: libvirt dates it first, then waits for the domain. */
const BEGIN_TOLERANCE_MS = 5000;

/**
 * Finds the pull-mode job that runs on a domain and records what identifies it.
 *
 * @param options.domain its name, UUID or the number of its run, or a known domain
 * @throws {PreconditionError} no such domain, it is off, no backup job runs (`E_NO_JOB`), it is in push mode
 * @throws {BackupError} libvirt's documents can't be used
 */
export async function openRunningJob(options: {
  readonly domain: DomainRef;
  readonly libvirt: Libvirt;
}): Promise<RunningJob> {
  const { libvirt } = options;
  const domainXml = await libvirt.domainXml(options.domain);
  const startedAt = await askStart(libvirt, options.domain);
  const backupXml = await libvirt.backupXml(options.domain);
  const domain = parseDomain(domainXml);
  return new RunningJob({ libvirt, job: parseBackupJob(backupXml), backupXml, domain, domainXml, startedAt });
}

interface RunningJobFacts {
  readonly libvirt: Libvirt;
  readonly job: BackupJob;
  readonly backupXml: string;
  readonly domain: DomainDefinition;
  readonly domainXml: string;
  readonly startedAt: Moment;
}

/** A running backup job, as it was when it was opened. It holds no resources, so it needs no closing. */
export class RunningJob {
  readonly job: BackupJob;
  readonly backupXml: string;
  readonly domain: DomainDefinition;
  /** The definition of the running domain at that time. */
  readonly domainXml: string;
  readonly #facts: RunningJobFacts;
  readonly #libvirt: Libvirt;
  readonly #startedAt: Moment;

  constructor(facts: RunningJobFacts) {
    this.#facts = facts;
    this.job = facts.job;
    this.backupXml = facts.backupXml;
    this.domain = facts.domain;
    this.domainXml = facts.domainXml;
    // A job that has run for hours must not fail because libvirtd restarts in its last minutes. Who ends it asks
    // first whether it is the same, so it is asked as patiently as for its end.
    this.#libvirt = facts.libvirt.withPatience(patienceToEnd(facts.domain));
    this.#startedAt = facts.startedAt;
  }

  /** The same job, asked about with another signal or none. */
  withSignal(signal: AbortSignal | undefined): RunningJob {
    return new RunningJob({ ...this.#facts, libvirt: this.#facts.libvirt.withSignal(signal) });
  }

  /**
   * Asks libvirt whether the same job still runs, and QEMU whether it runs on every disk. Call it after the
   * last byte was read, and after a connection was lost. Only if it resolves does the data read before belong
   * to one point in time: what libvirt alone says may be long past (`frozen-disks.ts`).
   *
   * The same job has the same description, in the same run of the domain. In old versions of libvirt the
   * description has no numbers; then the job must also have begun at the same moment. That moment is computed
   * as now minus the elapsed time, both by the same clock, so setting the clock in between doesn't change the
   * difference. A restarted libvirtd counts from 0 again, and then such a job can't be distinguished from
   * another one.
   *
   * A libvirt that is busy with the domain, or silent, is asked again: what was read would be lost otherwise.
   *
   * @throws {PreconditionError} `E_JOB_ENDED`, `E_JOB_REPLACED`, or what `Libvirt` throws if libvirt doesn't
   * answer
   */
  async assertAlive(options: LastLookOptions = {}): Promise<void> {
    await lookPatiently(() => this.#look(), options);
  }

  async #look(): Promise<void> {
    const { name, id } = this.domain;
    try {
      // In this order, an unchanged run means that the description belongs to it, and an unchanged
      // description that QEMU spoke of this job.
      const startedAt = await askStart(this.#libvirt, this.domain);
      const disks = exportedDisks(this.job).map((disk) => disk.name);
      const ended = await endedInQemu(this.#libvirt, this.domain, disks);
      if (ended !== undefined) throw endedUnseen(name, ended);
      const backupXml = await this.#libvirt.backupXml(this.domain);
      const run = await this.#libvirt.domainId(this.domain);
      const sameRun = run === id;
      const now = parseBackupJob(backupXml);
      if (!sameRun || !canBeSameJob(now, this.job)) throw replaced(name, "another one runs in its place");
      if (!isUnmistakable(now) && !overlap(startedAt, this.#startedAt, DRIFT_TOLERANCE_MS)) {
        throw replaced(
          name,
          "libvirt reports another start. Either it is another job, or libvirtd was restarted",
        );
      }
    } catch (error) {
      if (isJobGone(error)) throw await this.#ended(error);
      throw error;
    }
  }

  /**
   * Runs `work` with a signal that also fires in the moment in which libvirt tells that the job has ended.
   * @throws what `work` throws, or `E_JOB_ENDED` with libvirt's reason
   */
  whileItRuns<T>(signal: AbortSignal | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { domain } = this;
    const libvirt = this.#libvirt;
    const ended = (reason: string): Error => jobEnded(domain.name, ` (libvirt: ${reason})`, undefined);
    const assertAlive = (until: AbortSignal): Promise<void> => this.withSignal(until).assertAlive();
    return whileJobRuns({ libvirt, domain, ended, assertAlive, signal }, work);
  }

  /**
   * Returns the checkpoint that, according to the user, was created together with this job, if that is
   * possible. libvirt records no link between the two, so the creation time has to match, to the second,
   * which is libvirt's precision:
   *
   *     older: not this job's  |  5 s  job begins  |  newer: not this job's
   *     -----------------------[============|======]----------------------> creation
   *
   * A newer one must never pass: no increment would contain what the guest wrote between the job's beginning
   * and the checkpoint. An older one would only make the next increment larger. But after a restart of
   * libvirtd, libvirt dates a job too late, and then a newer checkpoint looks like an older one.
   *
   * @throws {PreconditionError} `E_NO_CHECKPOINT`, `E_CHECKPOINT_IS_BASE`, `E_CHECKPOINT_OLDER`,
   * `E_CHECKPOINT_NEWER`
   */
  async checkpoint(name: string): Promise<Checkpoint> {
    const domain = this.domain.name;
    const checkpoint = parseCheckpoint(await this.#libvirt.checkpointXml(this.domain, name));
    const fail = (code: string, reason: string): PreconditionError =>
      new PreconditionError(
        code,
        `the checkpoint ${name} of ${domain} ${reason}. Name the one that \`virsh backup-begin\` created with this job ` +
          `(\`virsh checkpoint-list ${domainWord(domain)}\` shows when each was created), or leave --checkpoint out: ` +
          "the point is then complete, but no base for increments",
        { details: { domain, checkpoint: name, creationTime: checkpoint.creationTime } },
      );
    if (basesOf(this.job).has(name)) {
      throw fail("E_CHECKPOINT_IS_BASE", "is the base that this job is incremental to, not its own");
    }
    // libvirt gives whole seconds, rounded down.
    const createdAt = {
      earliest: checkpoint.creationTime * 1000,
      latest: checkpoint.creationTime * 1000 + 999,
    };
    const { earliest, latest } = this.#startedAt;
    if (createdAt.earliest > latest + CHECKPOINT_TOLERANCE_MS) {
      const late = seconds(createdAt.earliest - latest);
      throw fail(
        "E_CHECKPOINT_NEWER",
        `was created some ${late} after the job had begun: what the guest wrote between would be missing ` +
          "from the next increment",
      );
    }
    if (createdAt.latest < earliest - BEGIN_TOLERANCE_MS) {
      const early = seconds(earliest - createdAt.latest);
      throw fail(
        "E_CHECKPOINT_OLDER",
        `was created some ${early} before the job began (or libvirtd was restarted since, and dates the job wrongly)`,
      );
    }
    return checkpoint;
  }

  /** The error for a job that has ended, with libvirt's reason. */
  async #ended(cause: unknown): Promise<PreconditionError> {
    const { name } = this.domain;
    const last = await this.#libvirt.lastJobInfo(this.domain).catch(() => undefined);
    const reason = last?.operation === "backup" ? ` (libvirt: ${last.error ?? last.type})` : "";
    return jobEnded(name, reason, cause);
  }
}

function jobEnded(domain: string, reason: string, cause: unknown): PreconditionError {
  return new PreconditionError(
    "E_JOB_ENDED",
    `the backup job of ${domain} has ended${reason}, so what was read can't be trusted. Begin it again`,
    { cause, details: { domain } },
  );
}

function endedUnseen(domain: string, said: string): PreconditionError {
  return new PreconditionError(
    "E_JOB_ENDED",
    `QEMU has ended the backup job of ${domain}, although libvirt still shows it (${said}): since then the exports ` +
      "show what the guest writes, so what was read can't be trusted. Begin it again",
    { details: { domain } },
  );
}

/** When the running backup job began. libvirt answered between our two readings of the clock. */
async function askStart(libvirt: Libvirt, domain: DomainRef): Promise<Moment> {
  const before = Date.now();
  const job = await libvirt.jobInfo(domain);
  const after = Date.now();
  const name = typeof domain === "string" ? domain : domain.name;
  if (!job.active || job.operation !== "backup") throw noBackupJob(name, job);
  if (job.elapsedMs === undefined) {
    throw new BackupError(
      "E_LIBVIRT_ANSWER",
      `libvirt doesn't say how long the job of ${name} has been running`,
    );
  }
  return { earliest: before - job.elapsedMs, latest: after - job.elapsedMs };
}

function noBackupJob(domain: string, job: JobInfo): PreconditionError {
  const other = job.active ? ` (but another one: ${job.operation})` : "";
  return new PreconditionError(
    "E_NO_JOB",
    `no backup job runs on the domain ${domain}${other}. Begin one: virsh backup-begin ${domainWord(domain)} BACKUP.xml CHECKPOINT.xml`,
    { details: { domain } },
  );
}

function replaced(domain: string, reason: string): PreconditionError {
  return new PreconditionError(
    "E_JOB_REPLACED",
    `the backup job of ${domain} is not the one that was opened: ${reason}. ` +
      "What was read can't be trusted to be of one point in time. Attach again",
    { details: { domain } },
  );
}

function basesOf(job: BackupJob): ReadonlySet<string> {
  const bases = exportedDisks(job).flatMap((disk) => (disk.mode === "incremental" ? [disk.incremental] : []));
  return new Set(job.incremental === undefined ? bases : [...bases, job.incremental]);
}

function overlap(a: Moment, b: Moment, toleranceMs: number): boolean {
  return a.earliest <= b.latest + toleranceMs && b.earliest <= a.latest + toleranceMs;
}

function seconds(milliseconds: number): string {
  return `${Math.max(1, Math.round(milliseconds / 1000))} s`;
}
