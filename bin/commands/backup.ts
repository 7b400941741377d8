import pLimit from "p-limit";
import { BackupError, hasCode, UsageError } from "../../src/backup/base/errors.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import type { RateLimit } from "../../src/backup/pull/rate-limit.js";
import { type JudgedPoint, judgePoints } from "../../src/backup/repository/judged-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type BackupResult, backup, loadBackups } from "../../src/backup/take/backup.js";
import { type ChosenDomain, chosenDomains } from "../chosen-domains.js";
import { domainsAtOnce } from "../domains-at-once.js";
import { EXIT, exitCodeOf, throwIfInterrupted, worstExitCode } from "../exit-codes.js";
import { freezeOf } from "../freeze-choice.js";
import { type FullEveryOptions, refuseLevelBeside } from "../full-every.js";
import type { GuestOptions } from "../guest-options.js";
import { hintIfAny } from "../hint-if-any.js";
import { readersOf, tcpServerOf } from "../job-server.js";
import { keptLines } from "../kept-lines.js";
import { type MetricsUpdate, updateOfFailure, updateOfRun, updateOfSuccess } from "../metrics.js";
import { connectOf, rateLimitOf, reconnectOf, storageOf } from "../option-values.js";
import type {
  CopyOptions,
  CreateOptions,
  ProofOptions,
  ReconnectOptions,
  TalkOptions,
  TrustOptions,
} from "../options.js";
import { OutageNotes } from "../outage-notes.js";
import { asDisks, human, type Progress } from "../output.js";
import { placeOf } from "../place-of.js";
import { proofText } from "../proof-text.js";
import type { Context } from "../run.js";
import { requireRepository } from "../target-repository.js";
import { prepareToWrite } from "../trust.js";

export interface BackupOptions
  extends CopyOptions,
    CreateOptions,
    FullEveryOptions,
    GuestOptions,
    ProofOptions,
    ReconnectOptions,
    TrustOptions {
  readonly to: string;
  readonly all?: true | undefined;
  readonly skip?: readonly string[];
  readonly jobs?: number;
  readonly metrics?: string;
  readonly moved?: true;
  readonly resume: boolean;
}

/** Domains that are backed up side by side, unless the user says. */
const JOBS = 2;

/** One run of the command. */
interface Job extends Context {
  readonly options: BackupOptions;
  /** How many domains are backed up side by side. */
  readonly atOnce: number;
  /** Shared by all domains. */
  readonly progress: Progress;
  readonly rateLimit: RateLimit | undefined;
  /** Put before messages and names of disks, where they could be of several domains. */
  readonly prefixOf: (domain: string) => string;
  /** Updates the metrics file, if there is one. */
  readonly record: (update: MetricsUpdate) => Promise<void>;
}

export async function runBackup(
  context: Context,
  options: BackupOptions & TalkOptions,
  named: readonly string[],
): Promise<void> {
  refuseLevelBeside(options);
  const record = await recorderOf(context, options);
  const job = { ...context, options, record, rateLimit: rateLimitOf(options) };
  const server = tcpServerOf(options);
  const readers = readersOf(server);
  if (readers !== undefined) context.output.note(readers);
  if (server && (options.jobs ?? 1) > 1) {
    const message = "--jobs makes several jobs listen at once, but --server names one port: leave one out";
    throw new UsageError("E_USAGE", message);
  }
  try {
    await backUpAsAsked(job, named);
    const code = options.strict && context.output.warnings.length > 0 ? EXIT.warnings : EXIT.done;
    await record(updateOfRun(placeOf(options.to), Number(process.exitCode ?? code), Date.now()));
  } catch (error) {
    await record(updateOfRun(placeOf(options.to), exitCodeIn(context, error), Date.now()));
    throw error;
  }
}

async function backUpAsAsked(
  asked: Omit<Job, "progress" | "prefixOf" | "atOnce">,
  named: readonly string[],
): Promise<void> {
  const { output, options } = asked;
  await requireRepository(options.to, options, asked.signal);
  await prepareToWrite(options.to, undefined, options, output);
  const domains = await chosenDomains(named, options, asked);
  const [only, ...others] = domains;
  const isSeveral = others.length > 0;
  const progress = await output.progress();
  const { to, jobs, server } = options;
  const usual = server === undefined ? JOBS : 1;
  const job: Job = {
    ...asked,
    atOnce: domainsAtOnce(output, { to, jobs, usual, count: domains.length }),
    progress,
    prefixOf: (domain) => (isSeveral ? `${domain}: ` : ""),
  };
  try {
    if (only === undefined || isSeveral || options.all) return await backUpAll(job, domains);
    const result = await backUp(job, only);
    progress.stop();
    output.result({ ...describe(result, options), warnings: output.warnings }, report(result));
  } finally {
    progress.stop();
  }
}

/** A committed point doesn't count as failed because its metrics could not be written. */
async function recorderOf({ output }: Context, { metrics }: BackupOptions): Promise<Job["record"]> {
  if (metrics === undefined) return async () => undefined;
  const { MetricsFile } = await import("../metrics-file.js");
  const file = await MetricsFile.at(metrics);
  return async (update) => {
    try {
      await file.update(update);
    } catch (error) {
      output.warn(`no metrics were written: ${error instanceof Error ? error.message : String(error)}`);
    }
  };
}

/** A failure after a signal is due to the signal. */
function exitCodeIn({ signal }: Context, error: unknown): number {
  return exitCodeOf(signal.aborted ? signal.reason : error);
}

/**
 * Backs up domains, several at once, and prints the result of each as soon as there is one. A failure of one
 * doesn't stop the others; a signal stops all.
 */
async function backUpAll(job: Job, domains: readonly ChosenDomain[]): Promise<void> {
  const { output, signal, options, progress } = job;
  const entries: object[] = [];
  const errors: unknown[] = [];
  const backUpOne = async (chosen: ChosenDomain, index: number): Promise<void> => {
    signal.throwIfAborted();
    const domain = chosen.name;
    try {
      const result = await backUp(job, chosen);
      entries[index] = describe(result, options);
      output.ended(domain);
      output.part(report(result));
    } catch (error) {
      signal.throwIfAborted();
      output.ended(domain);
      if (hasNothing(job, error)) {
        output.warn(`${error.message}: it was passed over`);
        entries[index] = { domain, passedOver: error.message };
        return;
      }
      errors.push(error);
      const hint = await hintIfAny(error, {
        command: "backup",
        args: [domain],
        options: { ...options },
        signal,
      });
      entries[index] = { domain, error: output.fault(domain, error, hint) };
      output.part([`${domain}: failed, see above`]);
    }
  };
  // Hours may pass up to the first domain that is off, and the program may be upgraded meanwhile.
  if (domains.length > 1) await loadBackups(storageOf(options));
  const atOnce = pLimit(Math.max(1, job.atOnce));
  await Promise.allSettled(domains.map((domain, index) => atOnce(backUpOne, domain, index)));
  progress.stop();
  const done = domains.flatMap(({ name }, index) => (entries[index] === undefined ? [] : [name]));
  throwIfInterrupted(signal, done, domains.length);
  output.result({ domains: entries, warnings: output.warnings }, []);
  if (errors.length > 0) process.exitCode = worstExitCode(errors);
}

/**
 * Nobody has asked for the backup of this domain, and it has nothing to back up, or none of the included
 * disks.
 */
function hasNothing({ options }: Job, error: unknown): error is BackupError {
  const codes = ["E_NO_DISKS", "E_NO_SUCH_DISK"];
  return options.all === true && error instanceof BackupError && codes.some((code) => hasCode(error, code));
}

async function backUp(job: Job, chosen: ChosenDomain): Promise<BackupResult> {
  const repository = placeOf(job.options.to);
  try {
    const result = await backUpDomain(job, chosen);
    const points =
      job.options.metrics === undefined ? undefined : await restorability(result, repository, job.signal);
    await job.record(updateOfSuccess(result, repository, Date.now(), points));
    return result;
  } catch (error) {
    if (hasNothing(job, error)) throw error;
    const domain = chosen.name;
    await using libvirt = new Libvirt({ connect: job.options.connect });
    const name =
      job.options.metrics === undefined ? domain : await libvirt.domainName(domain).catch(() => domain);
    await job.record(updateOfFailure(name, repository, exitCodeIn(job, error), Date.now()));
    throw error;
  }
}

/** Whether each point of the domain can be restored; undefined if that can't be found out. */
async function restorability(
  { domainFolder }: BackupResult,
  path: string,
  signal: AbortSignal,
): Promise<readonly boolean[] | undefined> {
  try {
    const repository = await Repository.open(path, { signal });
    const judge = (): Promise<JudgedPoint[]> => judgePoints(repository, domainFolder);
    const points = await repository.reading(domainFolder, judge);
    return points.map(({ obstacles }) => obstacles.length === 0);
  } catch {
    // The point is committed, and the metric is left out.
    return undefined;
  }
}

async function backUpDomain(job: Job, { name: domain, disks }: ChosenDomain): Promise<BackupResult> {
  const { output, signal, options, progress, rateLimit, prefixOf } = job;
  const storage = storageOf(options);
  const server = tcpServerOf(options);
  const notes = new OutageNotes(output, progress);
  const { signal: _, ...connect } = await connectOf(options, signal, reconnectOf(options));
  // Each domain has a connection of its own: a libvirt that is slow with one does not hold up the others.
  await using libvirt = new Libvirt({ signal, connect: options.connect });
  const freeze = await freezeOf(libvirt, domain, options, (why) => output.note(`${domain}: ${why}`));
  return await backup({
    libvirt,
    domain,
    repositoryPath: options.to,
    trustRepository: options.trustRepository,
    level: options.level,
    fullEvery: options.fullEvery,
    disks,
    encrypted: options.encrypted,
    scratchParent: options.scratch,
    scratchReserve: options.scratchReserve,
    server,
    freeze,
    moved: options.moved ?? false,
    resume: options.resume,
    ...storage,
    pointsAtOnce: job.atOnce,
    connect,
    rateLimit,
    signal,
    onProgress: (disk, p) =>
      progress.update(`${prefixOf(domain)}${disk}`, p.position, p.virtualSize, p.readBytes),
    onOutage: (disk, news) => notes.note(`${prefixOf(domain)}${disk}`, news),
    onWarning: (message) => output.warn(`${prefixOf(domain)}${message}`),
  });
}

function describe(result: BackupResult, options: BackupOptions): object {
  const { manifest, folder, proofs, extents, requests, connections, seconds, level, retired, isRunning } =
    result;
  const { leftOut, plainText } = result;
  return {
    id: manifest.id,
    domain: manifest.domain.name,
    uuid: manifest.domain.uuid,
    level,
    levelAsked: options.level,
    checkpoint: manifest.checkpoint?.name ?? null,
    createdAt: manifest.createdAt,
    resumed: manifest.resumed ?? null,
    folder,
    isRunning,
    disks: asDisks(manifest.disks),
    files: manifest.files,
    notKept: manifest.notKept,
    proofs,
    extents,
    requests,
    connections,
    seconds,
    retiredCheckpoints: retired,
    leftOut: leftOut.map(({ disk, reason }) => ({ disk, reason })),
    plainText,
  };
}

/** What was left of a run that was killed. */
function resumedText(
  { times, keptBytes, readBytes }: NonNullable<BackupResult["manifest"]["resumed"]>,
  createdAt: string,
): string {
  const runs = times === 1 ? "a run that was killed" : `${times} runs that were killed`;
  return `of ${createdAt}, resumed after ${runs}: ${human(keptBytes)} of data were stored already, ${human(readBytes)} read now`;
}

/** What was done, and why. */
function report(result: BackupResult): string[] {
  const { manifest, domainFolder, proofs, level, seconds, retired, isRunning, leftOut, plainText } = result;
  const disks = manifest.disks.map((disk) => {
    const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
    const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
    const plain = plainText.includes(disk.name) ? " as plain text (it is encrypted on the host)" : "";
    return `  ${disk.name}: ${human(disk.virtualSize)}, ${what}${why}, ${human(disk.storedBytes)} stored${plain}${proofText(proofs, disk.name)}`;
  });
  const next =
    manifest.checkpoint === null
      ? "no checkpoint: no base for increments"
      : `checkpoint ${manifest.checkpoint.name}`;
  const gone = retired.length === 0 ? "" : `, ${retired.length} older deleted`;
  return [
    `${manifest.domain.name} ${manifest.id}: ${level} restore point${isRunning ? "" : " of the domain as it is off,"} in ${seconds.toFixed(2)} s; ${next}${gone}`,
    ...(manifest.resumed === undefined ? [] : [`  ${resumedText(manifest.resumed, manifest.createdAt)}`]),
    ...disks,
    ...leftOut.map(({ disk, reason }) => `  ${disk}: left out, ${reason}`),
    ...keptLines(manifest).map((line) => `  ${line}`),
    ...(domainFolder === manifest.domain.name ? [] : [`  in the folder ${domainFolder} of the repository`]),
  ];
}
