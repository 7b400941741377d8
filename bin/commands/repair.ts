import { UsageError } from "../../src/backup/base/errors.js";
import { clearLeftovers } from "../../src/backup/repair/clear-leftovers.js";
import type { ClusterSource } from "../../src/backup/repair/cluster-sources.js";
import { type Mend, repairPoints } from "../../src/backup/repair/repair.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { judgePoints, type Obstacle, obstacleText } from "../../src/backup/repository/judged-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type Finding, type PointReport, verifyPoints } from "../../src/backup/verify/verify.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { SCRATCH_PARENT } from "../guest-options.js";
import { leftToMend } from "../left-to-mend.js";
import { LivingDisks } from "../living-disks.js";
import { isDamage, noteDamage } from "../noted-damage.js";
import type { TrustOptions } from "../options.js";
import { counted, human, type Progress } from "../output.js";
import type { Context } from "../run.js";
import { prepareToWrite, warnOfStrangers } from "../trust.js";

interface RepairOptions extends TrustOptions {
  readonly dryRun?: true;
  readonly from?: readonly string[];
  readonly fromDomain?: true;
  readonly scratch?: string;
  readonly connect?: string;
}

/** What was done for the points of a domain. */
interface Repaired {
  readonly domain: string;
  /** How many points there are. */
  readonly points: number;
  readonly mended: readonly Mend[];
  /** In an object store: what killed runs had left of points. */
  readonly cleared: readonly Cleared[];
  /** Damage and leaks that are still there. */
  readonly left: readonly Finding[];
  /** Points that can't be restored because of it. */
  readonly unrestorable: readonly { readonly id: string; readonly obstacles: readonly Obstacle[] }[];
}

interface Cleared {
  readonly point: string;
  readonly objects: number;
  readonly uploads: number;
  /** Whether a run had noted it, which may be under way in a dry run. */
  readonly noted: boolean;
}

export async function runRepair(
  context: Context,
  options: RepairOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const { output } = context;
  const repository = await Repository.open(path, {
    trusted: options.trustRepository,
    signal: context.signal,
    onWarning: (message) => output.warn(message),
  });
  const domains = await chooseDomains(repository, wanted);
  const { from = [] } = options;
  if (from.length > 0 && domains.length !== 1) {
    throw new UsageError("E_USAGE", "--from is about the disks of one domain: name it");
  }
  refuseFromDomain(options, domains);
  await using living = await LivingDisks.connect(from, context.signal);
  const dryRun = options.dryRun ?? false;
  if (dryRun) await warnOfStrangers(path, domains, output);
  else await prepareToWrite(path, domains, options, output);
  const progress = await output.progress();
  const work = (domain: string): Promise<Repaired> =>
    repair(repository, domain, { dryRun, progress, living, options, ...context });
  try {
    const results = await eachDomain(domains, context, work, (done) => output.part(asText(done, dryRun)));
    const json = results.map((each) => ("error" in each ? each : each.result));
    output.result({ dryRun, domains: json }, domains.length > 0 ? [] : ["no restore points yet"]);
    const isDamaged = (each: (typeof results)[number]): boolean =>
      "result" in each && (each.result.unrestorable.length > 0 || each.result.left.some(isDamage));
    if (results.some(isDamaged)) process.exitCode = EXIT.damaged;
  } finally {
    progress.stop();
  }
}

interface Job extends Context {
  readonly dryRun: boolean;
  readonly progress: Progress;
  readonly living: LivingDisks;
  readonly options: RepairOptions;
}

async function repair(repository: Repository, domain: string, job: Job): Promise<Repaired> {
  const { dryRun, signal } = job;
  const left = await clearLeftovers({ repository, domain, dryRun, signal });
  const cleared = left.map(({ id, isNoted, ...counts }) => ({ point: id, ...counts, noted: isNoted }));
  const ids = await repository.pointNames(domain);
  const before = await verify(repository, domain, ids, job);
  const bad = before.filter(({ findings }) => findings.length > 0).map(({ id }) => id);
  const spared = new Set<string>();
  const onSpared = (id: string): void => void spared.add(id);
  const mended =
    bad.length === 0 ? [] : await mend(repository, domain, bad, job.living, { ...job, onSpared });
  let reports = await verifyAgain(repository, domain, before, mended, job);
  // Whatever the guest has, a spared one stays as it is.
  const wanting = (job.options.fromDomain ? leftToMend(reports, mended) : []).filter((id) => !spared.has(id));
  if (wanting.length > 0) {
    const taken = await mendFromDomain(repository, domain, wanting, mended, job);
    // A dry run has found once more what it had found before.
    const known = dryRun ? mended.filter(({ point }) => !wanting.includes(point)) : mended;
    mended.splice(0, mended.length, ...known, ...taken);
    reports = await verifyAgain(repository, domain, reports, taken, job);
  }
  const damages = new Map(reports.map(({ id, findings }) => [id, findings.filter(isDamage)]));
  if (!dryRun) await noteDamage(repository, domain, damages, job.output);
  const judged = await repository.reading(domain, () => judgePoints(repository, domain, damages), signal);
  return {
    domain,
    points: ids.length,
    mended,
    cleared,
    left: reports.flatMap(({ findings }) => findings),
    unrestorable: judged
      .filter(({ obstacles }) => obstacles.length > 0)
      .map(({ id, obstacles }) => ({ id, obstacles })),
  };
}

interface MendJob extends Pick<Job, "dryRun" | "signal" | "output"> {
  readonly onSpared?: (id: string) => void;
}

async function mend(
  repository: Repository,
  domain: string,
  ids: readonly string[],
  living: LivingDisks,
  { dryRun, signal, output, onSpared }: MendJob,
): Promise<Mend[]> {
  const onWarning = (message: string): void => output.warn(message);
  const sourcesOf = (disk: string): readonly ClusterSource[] => living.sourcesOf(disk);
  return await repairPoints({ repository, domain, ids, dryRun, signal, sourcesOf, onWarning, onSpared });
}

/**
 * Reads the guest's disks for what nothing else has.
 * @param mended what was mended until now, of which nobody would hear if the domain can't be read
 */
async function mendFromDomain(
  repository: Repository,
  domain: string,
  ids: readonly string[],
  mended: readonly Mend[],
  { dryRun, signal, options, output }: Job,
): Promise<Mend[]> {
  const { withLivingDisks } = await import("../../src/backup/take/living-disks.js");
  const { Libvirt } = await import("../../src/backup/libvirt/libvirt.js");
  const newest = (await repository.points(domain, () => undefined)).at(-1)?.domain;
  await using libvirt = new Libvirt({ signal, connect: options.connect });
  const look = {
    // One that was defined anew under the name has other disks.
    ...{ libvirt, domain: newest?.uuid ?? newest?.name ?? domain, repositoryPath: repository.path, signal },
    scratchParent: options.scratch ?? SCRATCH_PARENT,
    trustRepository: options.trustRepository,
    onWarning: (message: string) => output.warn(message),
  };
  try {
    return await withLivingDisks(look, async (clients, until) => {
      const living = LivingDisks.over(clients);
      return await mend(repository, domain, ids, living, { dryRun, signal: until, output });
    });
  } catch (error) {
    for (const done of dryRun ? [] : mended) {
      output.warn(`${domain} ${done.point} ${done.disk} was mended before this failed: ${mendText(done)}`);
    }
    throw error;
  }
}

/** Verifies the points again in which something was mended. */
async function verifyAgain(
  repository: Repository,
  domain: string,
  before: readonly PointReport[],
  mended: readonly Mend[],
  job: Job,
): Promise<readonly PointReport[]> {
  const touched = job.dryRun
    ? []
    : before.map(({ id }) => id).filter((id) => mended.some(({ point }) => point === id));
  const after = touched.length === 0 ? [] : await verify(repository, domain, touched, job);
  return before.map((report) => after.find(({ id }) => id === report.id) ?? report);
}

/** @throws {UsageError} `E_USAGE`: the options contradict each other */
function refuseFromDomain(
  { fromDomain, from, scratch, connect }: RepairOptions,
  domains: readonly string[],
): void {
  if (fromDomain && from) throw new UsageError("E_USAGE", "give --from or --from-domain, not both");
  if (fromDomain && domains.length !== 1) {
    throw new UsageError("E_USAGE", "--from-domain is about one domain: name it");
  }
  if (fromDomain) return;
  const given = scratch === undefined ? connect && "connect" : "scratch";
  if (given) throw new UsageError("E_USAGE", `--${given} means something with --from-domain only`);
}

async function verify(
  repository: Repository,
  domain: string,
  ids: readonly string[],
  { signal, progress }: Job,
): Promise<PointReport[]> {
  const onProgress = (disk: string, done: { verifiedBytes: number; totalBytes: number }): void =>
    progress.update(`${domain} ${disk}`, done.verifiedBytes, done.totalBytes, done.verifiedBytes);
  const read = (): Promise<PointReport[]> => verifyPoints(repository, domain, ids, { signal, onProgress });
  return await repository.reading(domain, read, signal);
}

function asText(
  { domain, points, mended, cleared, left, unrestorable }: Repaired,
  dryRun: boolean,
): string[] {
  const damages = left.filter(isDamage).length;
  const places = counted(mended.length, "place");
  const outcome =
    mended.length === 0 && left.length === 0
      ? "sound, nothing to mend"
      : `${places} ${dryRun ? "would be mended" : "mended"}, ${damages} ${dryRun ? "damaged before that" : "left damaged"}`;
  return [
    `${domain}: ${counted(points, "point")}, ${outcome}`,
    ...cleared.map((each) => `    ${each.point}: ${clearedText(each, dryRun)}`),
    ...mended.map((mend) => `    ${mend.point} ${mend.disk}: ${mendText(mend)}`),
    ...left.map(
      ({ point, disk, severity, message, guestOffset, length }) =>
        `    ${point}${disk === undefined ? "" : ` ${disk}`}: ${dryRun ? severity : `${severity} left`}${guestOffset === undefined ? "" : ` at guest offset ${guestOffset}, ${length} bytes`}: ${message}`,
    ),
    ...unrestorable.flatMap(({ id, obstacles }) =>
      obstacles.slice(0, 1).map((obstacle) => `    ${id} CAN'T BE RESTORED: ${obstacleText(obstacle, id)}`),
    ),
  ];
}

function clearedText({ objects, uploads, noted }: Cleared, dryRun: boolean): string {
  const what = `${counted(objects, "object")} that no manifest names, and ${counted(uploads, "upload")}`;
  if (!dryRun) return `${what}, left by a killed run, removed`;
  return noted ? `${what}, of a run that is under way or was killed` : `${what} would be removed`;
}

function mendText({ what, guestOffset, length = 0, from }: Mend): string {
  if (what === "digests") return `the digest file, made again out of ${from}`;
  if (what === "refcounts") return `refcounts and leaks, by ${from}`;
  return `guest offset ${guestOffset}, ${human(length)} from ${from}`;
}
