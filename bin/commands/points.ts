import { UsageError } from "../../src/backup/base/errors.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import {
  type JudgedPoint,
  judgePoints,
  type Obstacle,
  obstacleText,
} from "../../src/backup/repository/judged-points.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { isOwner, ownersOf } from "../../src/backup/repository/point-owners.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { WhoseOptions } from "../domain-options.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { fixClock } from "../fixed-clock.js";
import { keptLines } from "../kept-lines.js";
import type { TrustOptions } from "../options.js";
import { human } from "../output.js";
import type { Context } from "../run.js";
import { prepareToWrite, warnOfStrangers } from "../trust.js";

interface PointsOptions extends TrustOptions, WhoseOptions {
  readonly fixClock?: true;
  readonly wrong?: readonly string[];
  readonly dryRun?: true;
}

/** The points of one domain in one folder, oldest first. */
interface Series {
  readonly folder: string;
  readonly uuid: string | null;
  /** Whether the folder has points of other domains too. */
  readonly isMixed: boolean;
  readonly points: readonly Manifest[];
  /** What keeps points from being restored, by their ids. */
  readonly obstacles: ReadonlyMap<string, readonly Obstacle[]>;
}

export async function runPoints(
  context: Context,
  options: PointsOptions,
  path: string,
  domain: string | undefined,
): Promise<void> {
  const repository = await Repository.open(path, { trusted: options.trustRepository });
  const domains = await chooseDomains(repository, domain, options.uuid);
  const { fixClock: isWrite = false, dryRun = false, wrong = [] } = options;
  if (isWrite && options.uuid !== undefined) {
    const message = "--fix-clock mends all points of a folder: name the folder, and leave --uuid out";
    throw new UsageError("E_USAGE", message);
  }
  if (dryRun && !isWrite) throw new UsageError("E_USAGE", "--dry-run is for --fix-clock");
  if (wrong.length > 0 && !isWrite) throw new UsageError("E_USAGE", "--wrong is for --fix-clock");
  if (wrong.length > 0 && domains.length > 1) {
    const message = `--wrong names points of one domain, and here are several: ${domains.join(", ")}. Name one`;
    throw new UsageError("E_WHICH_DOMAIN", message);
  }
  if (isWrite && !dryRun) await prepareToWrite(path, domains, options, context.output);
  else await warnOfStrangers(path, domains, context.output);
  if (isWrite) return await fixClock(repository, domains, { dryRun, wrong }, context);
  await list(repository, domains, options.uuid, context);
}

async function list(
  repository: Repository,
  domains: readonly string[],
  uuid: string | undefined,
  context: Context,
): Promise<void> {
  const { output, signal } = context;
  const look = async (folder: string): Promise<Series[]> => {
    const judged = await repository.reading(folder, () => judgePoints(repository, folder), signal);
    const found = seriesOf(folder, judged);
    for (const { manifest, obstacles } of judged) {
      if (manifest === undefined) for (const { message } of obstacles) output.warn(message);
      if (obstacles.length > 0) process.exitCode = EXIT.damaged;
    }
    return found.filter((series) => uuid === undefined || isOwner(series.uuid, uuid));
  };
  const results = await eachDomain(domains, context, look, (found) => output.part(found.flatMap(asText)));
  const all = results.flatMap((each) => ("error" in each ? [] : each.result));
  const json = all.flatMap((series) =>
    series.points.map((point) => asJson(point, series, repository.pointFolder(series.folder, point.id))),
  );
  output.result(json, all.length > 0 ? [] : ["no restore points yet"]);
}

/** The points of each domain that has some in the folder. */
function seriesOf(folder: string, judged: readonly JudgedPoint[]): Series[] {
  const points = judged.flatMap(({ manifest }) => manifest ?? []);
  const obstacles = new Map(judged.map((point) => [point.id, point.obstacles]));
  const owners = ownersOf(points);
  const uuids = [...new Set(owners.values())];
  return uuids.map((uuid) => ({
    folder,
    uuid,
    isMixed: uuids.length > 1,
    obstacles,
    points: points.filter(({ id }) => owners.get(id) === uuid),
  }));
}

function asJson(point: Manifest, { uuid, obstacles }: Series, folder: string): Record<string, unknown> {
  return {
    id: point.id,
    domain: point.domain.name,
    uuid,
    level: point.level,
    checkpoint: point.checkpoint?.name ?? null,
    createdAt: point.createdAt,
    restorable: obstaclesOf(point, obstacles).length === 0,
    obstacles: obstaclesOf(point, obstacles),
    folder,
    disks: point.disks.map((disk) => ({
      disk: disk.name,
      name: disk.name,
      mode: disk.mode,
      ...(disk.reason === undefined ? {} : { reason: disk.reason }),
      parent: disk.parent,
      file: disk.file,
      format: disk.format,
      virtualSize: disk.virtualSize,
      dirtyBytes: disk.dirtyBytes,
      storedBytes: disk.storedBytes,
    })),
    ...(folder === point.domain.name ? {} : { folder }),
    ...(point.files ? { files: point.files } : {}),
    ...(point.notKept ? { notKept: point.notKept } : {}),
  };
}

function obstaclesOf({ id }: Manifest, obstacles: Series["obstacles"]): readonly Obstacle[] {
  return obstacles.get(id) ?? [];
}

function asText({ folder, uuid, isMixed, points, obstacles }: Series): string[] {
  const name = points.at(-1)?.domain.name ?? folder;
  // No folder can be called as some domains are.
  const called = folder === name || folder.startsWith(`${name}@`) ? folder : `${folder} (${name})`;
  const whose = isMixed ? `${called}, ${uuid === null ? "no UUID" : `UUID ${uuid}`}` : called;
  const lines = points.flatMap((point) => linesOf(folder, point, obstaclesOf(point, obstacles)));
  const lost = points.filter((point) => obstaclesOf(point, obstacles).length > 0).length;
  const warning = lost === 0 ? "" : `; ${lost} CAN'T BE RESTORED (nbdpull repair)`;
  return [...lines, `${summary(whose, points)}${warning}`];
}

function linesOf(folder: string, point: Manifest, obstacles: readonly Obstacle[]): string[] {
  const base = point.checkpoint ? `checkpoint ${point.checkpoint.name}` : "no base for increments";
  return [
    `${folder}  ${point.id}  ${localTime(point.createdAt)}  ${point.level}  ${base}`,
    ...point.disks.map((disk) => {
      const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
      const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
      return `    ${disk.name}  ${human(disk.virtualSize)}, ${what}, ${human(disk.storedBytes)} stored${why}`;
    }),
    ...keptLines(point).map((line) => `    ${line}`),
    ...obstacles.map((obstacle) => `    CAN'T BE RESTORED: ${obstacleText(obstacle, point.id)}`),
  ];
}

/** @param points of one domain, oldest first */
function summary(domain: string, points: readonly Manifest[]): string {
  const stored = points.flatMap(({ disks }) => disks).reduce((total, disk) => total + disk.storedBytes, 0);
  const needed = neededBy(points.at(-1), points).size;
  const count = points.length === 1 ? "1 point" : `${points.length} points`;
  return `${domain}: ${count}, ${human(stored)} stored; the newest is based on ${needed - 1} of the others`;
}

/** The ids of a point and of all points that its disks depend on, as far as known. */
function neededBy(point: Manifest | undefined, points: readonly Manifest[]): ReadonlySet<string> {
  const needed = new Set<string>();
  for (const { name } of point?.disks ?? []) {
    for (let link = point; link; ) {
      needed.add(link.id);
      const { id, disks } = link;
      const parent = disks.find((disk) => disk.name === name)?.parent;
      // Parents are older, even if a damaged manifest claims otherwise.
      link = points.find((point) => point.id === parent && point.id < id);
    }
  }
  return needed;
}

/** Local time, such as `2026-11-20 16:22:16`. */
function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}
