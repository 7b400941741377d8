import { BackupError, PreconditionError } from "../base/errors.js";
import { together } from "../base/together.js";
import { type Checkpoint, parseCheckpoint } from "./checkpoint-xml.js";
import { type DomainDefinition, parseDomain } from "./domain-xml.js";
import type { JobInfo } from "./job-info.js";
import { type BackupJob, exportedDisks, parseBackupJob } from "./job-xml.js";
import { canBeSameJob, isUnmistakable } from "./same-job.js";
import { type DomainRef, isJobGone, PATIENCE_MS, type Virsh } from "./virsh.js";

/** A moment that is known to lie between two others, in milliseconds since 1970. */
interface Moment {
  readonly earliest: number;
  readonly latest: number;
}

/** How far our clock and the hypervisor's may drift apart during a job. */
const DRIFT_TOLERANCE_MS = 2000;

/**
 * How long after its job a checkpoint may have been dated: it comes in the same transaction, so never, but for the
 * exactness of our own look at the clock.
 */
const CHECKPOINT_TOLERANCE_MS = 20;

/** How long before its job a checkpoint may have been dated: libvirt dates it first, then waits for the domain. */
const BEGIN_TOLERANCE_MS = 5000;

/**
 * Finds the pull-mode job that runs on a domain, and notes what makes it this job and no other.
 *
 * @param options.domain as virsh takes it (name, UUID or the number of its run), or known
 * @throws {PreconditionError} no such domain, it is off, no backup job runs (`E_NO_JOB`), it is in push mode
 * @throws {BackupError} libvirt's documents can't be used
 */
export async function openRunningJob(options: {
  readonly domain: DomainRef;
  readonly virsh: Virsh;
}): Promise<RunningJob> {
  const { virsh } = options;
  const asked = { domainXml: virsh.domainXml(options.domain), backupXml: virsh.backupXml(options.domain) };
  // Last, so that nothing but its own answer lies between it and the look at the clock after it: see `checkpoint`.
  const start = askStart(virsh, options.domain);
  const [domainXml, startedAt, backupXml] = await together(asked.domainXml, start, asked.backupXml);
  const domain = parseDomain(domainXml);
  return new RunningJob({ virsh, job: parseBackupJob(backupXml), backupXml, domain, domainXml, startedAt });
}

interface RunningJobFacts {
  readonly virsh: Virsh;
  readonly job: BackupJob;
  readonly backupXml: string;
  readonly domain: DomainDefinition;
  readonly domainXml: string;
  readonly startedAt: Moment;
}

/** A backup job that somebody began, as it was when it was opened. It holds nothing: there is nothing to close. */
export class RunningJob {
  readonly job: BackupJob;
  readonly backupXml: string;
  readonly domain: DomainDefinition;
  /** The definition of the domain as it ran then. */
  readonly domainXml: string;
  readonly #virsh: Virsh;
  readonly #startedAt: Moment;

  constructor(facts: RunningJobFacts) {
    this.job = facts.job;
    this.backupXml = facts.backupXml;
    this.domain = facts.domain;
    this.domainXml = facts.domainXml;
    // What has been running for hours does not end because libvirtd is restarted in the last of its minutes.
    this.#virsh = facts.virsh.withPatience(PATIENCE_MS);
    this.#startedAt = facts.startedAt;
  }

  /**
   * Asks libvirt whether the same job still runs; to be called after the last byte was read, and after a connection was
   * lost. Only when this resolves is it known that what was read before belongs to one point in time.
   *
   * The same job is one with the same description, in the same run of the domain. Where libvirt is so old that the
   * description has no numbers, it also has to have begun at the same moment, which is computed as now minus elapsed,
   * both by a clock that may be set in between: the difference stays. A libvirtd that was restarted since counts anew,
   * and such a job can't be told from another one then.
   *
   * @throws {PreconditionError} `E_JOB_ENDED`, `E_JOB_REPLACED`, or what `Virsh` throws where libvirt doesn't answer
   */
  async assertAlive(): Promise<void> {
    const { name, id } = this.domain;
    try {
      // Answered in this order: the description is known to be of this run.
      const [startedAt, backupXml, run] = await together(
        askStart(this.#virsh, this.domain),
        this.#virsh.backupXml(this.domain),
        this.#virsh.domainId(this.domain),
      );
      const sameRun = run === id;
      const now = parseBackupJob(backupXml);
      if (!sameRun || !canBeSameJob(now, this.job)) throw replaced(name, "another one runs in its place");
      if (!isUnmistakable(now) && !overlap(startedAt, this.#startedAt, DRIFT_TOLERANCE_MS)) {
        throw replaced(
          name,
          "libvirt dates it otherwise. Either it is another one, or libvirtd was restarted",
        );
      }
    } catch (error) {
      if (isJobGone(error)) throw await this.#ended(error);
      throw error;
    }
  }

  /**
   * The checkpoint that the user says was created together with this job, if it can be that. Nothing in libvirt
   * links the two, so the time of its creation has to fit, to the second that libvirt tells:
   *
   *     older: not this job's  |  5 s  job begins  |  newer: not this job's
   *     -----------------------[============|======]----------------------> creation
   *
   * A newer one must never pass: what the guest wrote after the job began and before the checkpoint would be in no
   * increment. An older one would only make the next increment larger, but libvirt dates a job too late after a
   * restart of libvirtd, and then a newer checkpoint looks like an older one.
   *
   * @throws {PreconditionError} `E_NO_CHECKPOINT`, `E_CHECKPOINT_IS_BASE`, `E_CHECKPOINT_OLDER`, `E_CHECKPOINT_NEWER`
   */
  async checkpoint(name: string): Promise<Checkpoint> {
    const domain = this.domain.name;
    const checkpoint = parseCheckpoint(await this.#virsh.checkpointXml(this.domain, name));
    const fail = (code: string, reason: string): PreconditionError =>
      new PreconditionError(
        code,
        `the checkpoint ${name} of ${domain} ${reason}. Name the one that \`virsh backup-begin\` created with this job ` +
          `(\`virsh checkpoint-list ${domain}\` shows when each was created), or leave --checkpoint out: ` +
          "the point is then complete, but no base for increments",
        { details: { domain, checkpoint: name, creationTime: checkpoint.creationTime } },
      );
    if (basesOf(this.job).has(name)) {
      throw fail("E_CHECKPOINT_IS_BASE", "is the base that this job is incremental to, not its own");
    }
    // Known to the second, rounded down.
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

  /** The error for a job that is gone, with libvirt's word on why. */
  async #ended(cause: unknown): Promise<PreconditionError> {
    const { name } = this.domain;
    const last = await this.#virsh.lastJobInfo(this.domain).catch(() => undefined);
    const reason = last?.operation === "backup" ? ` (libvirt: ${last.error ?? last.type})` : "";
    return new PreconditionError(
      "E_JOB_ENDED",
      `the backup job of ${name} is not running any more${reason}, so what was read can't be trusted. Begin it again`,
      { cause, details: { domain: name } },
    );
  }
}

/** When the backup job that runs began: libvirt's answer was given between our two looks at the clock. */
async function askStart(virsh: Virsh, domain: DomainRef): Promise<Moment> {
  const before = Date.now();
  const job = await virsh.jobInfo(domain);
  const after = Date.now();
  const name = typeof domain === "string" ? domain : domain.name;
  if (!job.active || job.operation !== "backup") throw noBackupJob(name, job);
  if (job.elapsedMs === undefined) {
    throw new BackupError(
      "E_VIRSH_OUTPUT",
      `libvirt doesn't say how long the job of ${name} has been running`,
    );
  }
  return { earliest: before - job.elapsedMs, latest: after - job.elapsedMs };
}

function noBackupJob(domain: string, job: JobInfo): PreconditionError {
  const other = job.active ? ` (but another one: ${job.operation})` : "";
  return new PreconditionError(
    "E_NO_JOB",
    `no backup job runs on the domain ${domain}${other}. Begin one: virsh backup-begin ${domain} BACKUP.xml CHECKPOINT.xml`,
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
