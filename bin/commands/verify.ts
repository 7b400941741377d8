import { DamageError, UsageError } from "../../src/backup/base/errors.js";
import { findChain } from "../../src/backup/chain/chain.js";
import { chooseDomain, chooseDomains, foldersWithPoint } from "../../src/backup/repository/choose-domain.js";
import { choosePoint } from "../../src/backup/repository/choose-point.js";
import { judgePoints, type Obstacle, obstacleText } from "../../src/backup/repository/judged-points.js";
import { isOwner, ownersOf } from "../../src/backup/repository/point-owners.js";
import { Repository } from "../../src/backup/repository/repository.js";
import {
  type Finding,
  type PointReport,
  type VerifyProgress,
  verifyPoints,
} from "../../src/backup/verify/verify.js";
import type { WhoseOptions } from "../domain-options.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { isDamage, noteDamage } from "../noted-damage.js";
import { human } from "../output.js";
import { recordedJob } from "../recorded-job.js";
import type { Context } from "../run.js";
import { shareOfToday } from "../share-of-points.js";
import { warnOfStrangers } from "../trust.js";
import { type LiveOptions, refuseLiveOptions, verifyLiveDomain } from "../verify-live.js";

/** What was found in a point, and whether it can be restored. */
interface Verified extends PointReport {
  readonly domain: string;
  /** Of the point itself and of those that it is based on. */
  readonly obstacles: readonly Obstacle[];
}

interface VerifyOptions extends LiveOptions, WhoseOptions {
  readonly at?: string;
  /** In so many days every point is verified. */
  readonly share?: number;
  readonly metrics?: string;
  readonly strict?: true;
}

export async function runVerify(
  context: Context,
  options: VerifyOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const { at, uuid, live, metrics, strict } = options;
  const isWhole = [wanted, at, uuid, live].every((word) => word === undefined);
  const recorded = isWhole ? { metrics, strict } : {};
  await recordedJob("verify", context, recorded, path, async () => {
    const isDamaged = await verifyAsAsked(context, options, path, wanted);
    return isDamaged ? EXIT.damaged : undefined;
  });
}

/** @returns whether any point of these domains is known to be damaged, also one whose turn is another day */
async function verifyAsAsked(
  context: Context,
  options: VerifyOptions,
  path: string,
  wanted: string | undefined,
): Promise<boolean> {
  const { output, signal } = context;
  if (options.share !== undefined && (options.at !== undefined || options.live)) {
    const given = [...(options.at === undefined ? [] : ["--at"]), ...(options.live ? ["--live"] : [])];
    throw new UsageError("E_USAGE", `--share covers all points: leave ${given.join(" and ")} out`);
  }
  if (options.live) {
    await verifyLiveDomain(context, options, path, wanted);
    return false;
  }
  refuseLiveOptions(options);
  const repository = await Repository.open(path, { trusted: options.trustRepository, signal });
  const { at, uuid } = options;
  const domains = await domainsOf(repository, wanted, options);
  await warnOfStrangers(path, domains, output);
  const progress = await output.progress();
  const today = new Date();
  let isKnownDamaged = false;
  const chosen = (domain: string, ids: readonly string[]): readonly string[] =>
    options.share === undefined ? ids : shareOfToday(domain, ids, options.share, today);
  const verify = async (domain: string): Promise<readonly Verified[]> => {
    const onProgress = (disk: string, { verifiedBytes, totalBytes }: VerifyProgress): void =>
      progress.update(`${domain} ${disk}`, verifiedBytes, totalBytes, verifiedBytes);
    const reading = await repository.beginReading(domain, signal);
    try {
      const ids =
        at === undefined
          ? chosen(domain, await idsOf(repository, domain, uuid))
          : await chainOf(repository, domain, at, uuid);
      const found = await verifyPoints(repository, domain, ids, { signal, onProgress });
      // Before damage is noted, which a prune seems to have made.
      await reading.assertUnpruned();
      const { verified, isDamaged } = await judge(repository, domain, found, context);
      isKnownDamaged ||= isDamaged;
      return verified;
    } finally {
      await reading.release();
    }
  };
  try {
    const reports = await eachDomain(domains, context, verify, (found) => tell(found, context));
    const all = reports.flatMap((report) => ("error" in report ? [] : report.result));
    const damaged = all.some(({ findings, obstacles }) => findings.some(isDamage) || obstacles.length > 0);
    const failed = reports.flatMap((report) => ("error" in report ? [report] : []));
    const points = all.map(({ obstacles, ...report }) => ({
      ...report,
      restorable: obstacles.length === 0,
      obstacles,
    }));
    const json = { damaged, points, ...(failed.length > 0 ? { failed } : {}) };
    const none = domains.length === 0 ? ["no restore points yet"] : [];
    const notToday = options.share !== undefined && all.length === 0 && none.length === 0;
    output.result(json, notToday ? ["no point is due for verification today"] : none);
    if (damaged) process.exitCode = EXIT.damaged;
    return damaged || isKnownDamaged;
  } finally {
    progress.stop();
  }
}

/**
 * Keeps what was found beside the points, and finds out which points can't be restored because of it.
 * @returns also whether any point of the domain can't be restored, by what earlier runs have found
 */
async function judge(
  repository: Repository,
  domain: string,
  reports: readonly PointReport[],
  { output }: Context,
): Promise<{ readonly verified: Verified[]; readonly isDamaged: boolean }> {
  const found = new Map(reports.map(({ id, findings }) => [id, findings.filter(isDamage)]));
  await noteDamage(repository, domain, found, output);
  const judged = new Map((await judgePoints(repository, domain, found)).map((point) => [point.id, point]));
  const isDamaged = [...judged.values()].some(({ obstacles }) => obstacles.length > 0);
  const verified = reports.map((report) => {
    return { ...report, domain, obstacles: judged.get(report.id)?.obstacles ?? [] };
  });
  return { verified, isDamaged };
}

function tell(reports: readonly Verified[], { output }: Context): void {
  for (const { domain, id, disks, findings } of reports) {
    const bare = disks.filter((disk) => !disk.digests).map((disk) => disk.disk);
    if (bare.length > 0)
      output.warn(`${domain} ${id}: no digests for ${bare.join(", ")}, only structure was looked at`);
    for (const leak of findings.filter(isLeak))
      output.warn(`${domain} ${id}: space that nothing uses: ${findingAsText(leak)}`);
  }
  output.part(reports.flatMap(asText));
}

/** The domains to look at: with --at those that have such a point, unless one is named. */
async function domainsOf(
  repository: Repository,
  wanted: string | undefined,
  { at, uuid }: VerifyOptions,
): Promise<readonly string[]> {
  if (at === undefined) return await chooseDomains(repository, wanted, uuid);
  if (wanted !== undefined || uuid !== undefined)
    return [await chooseDomain(repository, wanted, { at, uuid })];
  const all = await repository.domains();
  return all.length === 0 ? [] : await foldersWithPoint(repository, all, at);
}

/** The points of the domain with that UUID, or all; those that can't be read are of any. */
async function idsOf(repository: Repository, domain: string, uuid: string | undefined): Promise<string[]> {
  const ids = await repository.pointNames(domain);
  if (uuid === undefined) return ids;
  const owners = ownersOf(await repository.points(domain, () => undefined));
  return ids.filter((id) => {
    const owner = owners.get(id);
    return owner === undefined || isOwner(owner, uuid);
  });
}

/** A point and all points that its disks depend on. */
async function chainOf(
  repository: Repository,
  domain: string,
  at: string,
  uuid: string | undefined,
): Promise<string[]> {
  const point = await choosePoint(repository, domain, at, uuid);
  const ids = new Set<string>([point.id]);
  for (const disk of point.disks) {
    try {
      for (const link of await findChain(repository, domain, point, disk.name)) ids.add(link.point.id);
    } catch (error) {
      // The report covers a broken chain.
      if (!(error instanceof DamageError)) throw error;
    }
  }
  return [...ids].sort();
}

function asText({ domain, id, disks, findings, obstacles }: Verified): string[] {
  const damages = findings.filter(isDamage);
  const below = obstacles.filter(({ point }) => point !== id);
  const itself = damages.length > 0 ? "DAMAGED" : "sound";
  const state = damages.length === 0 && below.length > 0 ? "sound itself, but CAN'T BE RESTORED" : itself;
  return [
    `${domain} ${id}: ${state}, ${comparedText(disks)}`,
    ...damages.map((finding) => `    ${findingAsText(finding)}`),
    ...below.map((obstacle) => `    ${obstacleText(obstacle, id)}`),
  ];
}

/** What was compared. Of checksums (xxh64) it says so: they find damage, but no forgery. */
function comparedText(disks: PointReport["disks"]): string {
  const bytesOf = (some: PointReport["disks"]): number =>
    some.reduce((total, { verifiedBytes }) => total + verifiedBytes, 0);
  const summed = disks.filter(({ digests, proven }) => digests && !proven);
  const rest = disks.filter((disk) => !summed.includes(disk));
  const texts = [
    ...(rest.length > 0 || summed.length === 0 ? [`${human(bytesOf(rest))} verified`] : []),
    ...(summed.length > 0 ? [`${human(bytesOf(summed))} matches its checksum`] : []),
  ];
  return texts.join(", ");
}

function isLeak({ severity }: Finding): boolean {
  return severity === "leak";
}

function findingAsText({ disk, guestOffset, length, message }: Finding): string {
  const place = guestOffset === undefined ? [] : [`guest offset ${guestOffset}, ${length} bytes`];
  const where = [...(disk === undefined ? [] : [disk]), ...place].join(", ");
  return where === "" ? message : `${where}: ${message}`;
}
