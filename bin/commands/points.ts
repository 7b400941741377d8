import { UsageError } from "../../src/backup/base/errors.js";
import { factsOf, totalsOf } from "../../src/backup/report/domain-facts.js";
import { type DomainPoints, domainsIn } from "../../src/backup/report/domain-points.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { type JudgedPoint, type Obstacle, obstacleText } from "../../src/backup/repository/judged-points.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { isOwner } from "../../src/backup/repository/point-owners.js";
import type { RehearsalRecord } from "../../src/backup/repository/rehearsal-record.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { WhoseOptions } from "../domain-options.js";
import { titleOf } from "../domain-title.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { fixClock } from "../fixed-clock.js";
import { keptLines } from "../kept-lines.js";
import type { TrustOptions } from "../options.js";
import { counted, human } from "../output.js";
import type { Context } from "../run.js";
import type { Line, Span } from "../terminal.js";
import { tableLines } from "../text-table.js";
import { localTime } from "../times.js";
import { prepareToWrite, warnOfStrangers } from "../trust.js";

interface PointsOptions extends TrustOptions, WhoseOptions {
  readonly fixClock?: true;
  readonly wrong?: readonly string[];
  readonly dryRun?: true;
  readonly long?: boolean;
}

export async function runPoints(
  context: Context,
  options: PointsOptions,
  path: string,
  domain: string | undefined,
): Promise<void> {
  const repository = await Repository.open(path, {
    trusted: options.trustRepository,
    signal: context.signal,
    onWarning: (message) => context.output.warn(message),
  });
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
  await list(repository, domains, options, context);
}

async function list(
  repository: Repository,
  domains: readonly string[],
  { uuid, long = false }: PointsOptions,
  context: Context,
): Promise<void> {
  const { output, signal } = context;
  const look = async (folder: string): Promise<DomainPoints[]> => {
    const found = await domainsIn(repository, folder, signal);
    for (const { manifest, obstacles } of found.flatMap(({ points }) => points)) {
      if (manifest === undefined) for (const { message } of obstacles) output.warn(message);
      if (obstacles.length > 0) process.exitCode = EXIT.damaged;
    }
    const isMeant = (each: DomainPoints): boolean => uuid === undefined || isOwner(each.uuid, uuid);
    return found.filter((each) => isMeant(each) && each.points.some(({ manifest }) => manifest));
  };
  // A table needs all its rows; a long list needn't wait for the rest.
  const tell = long ? (found: DomainPoints[]) => output.part(found.flatMap(longList)) : () => undefined;
  const results = await eachDomain(domains, context, look, tell);
  const all = results.flatMap((each) => ("error" in each ? [] : each.result));
  const json = all.flatMap((each) =>
    each.points.flatMap((point) => asJson(point, each, (id) => repository.pointFolder(each.folder, id))),
  );
  const lines = long ? [] : tableOf(all);
  output.result(json, all.length > 0 ? lines : ["no restore points yet"]);
}

function asJson(
  { manifest: point, obstacles, rehearsed }: JudgedPoint,
  { uuid }: DomainPoints,
  folderOf: (id: string) => string,
): Record<string, unknown>[] {
  if (!point) return [];
  const folder = folderOf(point.id);
  const json = {
    id: point.id,
    domain: point.domain.name,
    uuid,
    level: point.level,
    checkpoint: point.checkpoint?.name ?? null,
    createdAt: point.createdAt,
    restorable: obstacles.length === 0,
    obstacles,
    rehearsed: rehearsed ?? null,
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
    ...(point.files ? { files: point.files } : {}),
    ...(point.notKept ? { notKept: point.notKept } : {}),
  };
  return [json];
}

/** One domain's points, or a line for each of several domains; then all together. */
function tableOf(domains: readonly DomainPoints[]): Line[] {
  const [only, ...others] = domains;
  if (!only || others.length > 0) return domainTable(domains);
  return [...pointTable(only), ...only.points.flatMap(remarks), summary(only)];
}

function pointTable({ points, ...domain }: DomainPoints): Line[] {
  const facts = factsOf({ points, ...domain }, { now: Date.now() });
  const columns = [
    { head: "POINT" },
    { head: "MADE", spare: 3 },
    { head: "LEVEL" },
    { head: "CHANGED", right: true, spare: 1 },
    { head: "STORED", right: true },
    { head: "CHAIN", right: true, spare: 2 },
    { head: "RESTORABLE" },
  ] as const;
  const rows = facts.points
    .filter(({ level }) => level !== null)
    .map((point): Span[] => [
      point.id,
      localTime(point.createdAt),
      point.level ?? "",
      human(point.changedBytes ?? 0),
      human(point.storedBytes),
      String(point.chainLength),
      point.restorable ? "yes" : { text: "NO", colour: "red" },
    ]);
  return tableLines(columns, rows);
}

function domainTable(domains: readonly DomainPoints[]): Line[] {
  const all = domains.map((domain) => factsOf(domain, { now: Date.now() }));
  const totals = totalsOf(all);
  const columns = [
    { head: "DOMAIN", cut: true },
    { head: "POINTS", right: true },
    { head: "NEWEST", spare: 2 },
    { head: "SIZE", right: true, spare: 1 },
    { head: "STORED", right: true },
    { head: "CAN'T BE RESTORED", right: true },
  ] as const;
  const lost = (count: number): Span => (count === 0 ? "0" : { text: String(count), colour: "red" });
  const rows = all.map((domain): Span[] => [
    titleOf(domain),
    String(domain.points.length),
    localTime(domain.points.at(-1)?.createdAt ?? ""),
    human(domain.virtualBytes),
    human(domain.storedBytes),
    lost(domain.unrestorable),
  ]);
  const bytes = [human(totals.virtualBytes), human(totals.storedBytes)];
  const together = ["together", String(totals.points), "", ...bytes, lost(totals.unrestorable)];
  return domains.length === 0 ? [] : tableLines(columns, [...rows, together]);
}

/** What a table has no room for, and nobody should miss. */
function remarks({ id, manifest, obstacles, rehearsed }: JudgedPoint): string[] {
  const reasons = new Map<string, string[]>();
  for (const { name, reason } of manifest?.disks ?? []) {
    if (reason !== undefined) reasons.set(reason, [...(reasons.get(reason) ?? []), name]);
  }
  const why = [...reasons].map(
    ([reason, disks]) => `${id}: ${disks.join(", ")} ${disks.length === 1 ? "is" : "are"} full: ${reason}`,
  );
  const tried = rehearsed ? [`${id}: ${rehearsalText(rehearsed)}`] : [];
  const lost = obstacles.map((obstacle) => `${id} ${lostText(obstacle, id)}`);
  return manifest ? [...why, ...tried, ...lost] : [];
}

function lostText(obstacle: Obstacle, id: string): string {
  return `CAN'T BE RESTORED: ${obstacleText(obstacle, id)}`;
}

function longList(domain: DomainPoints): string[] {
  return [...domain.points.flatMap((point) => linesOf(domain.folder, point)), summary(domain)];
}

function linesOf(folder: string, { manifest: point, obstacles, rehearsed }: JudgedPoint): string[] {
  if (!point) return [];
  const base = point.checkpoint ? `checkpoint ${point.checkpoint.name}` : "no base for increments";
  return [
    `${folder}  ${point.id}  ${localTime(point.createdAt)}  ${point.level}  ${base}`,
    ...point.disks.map((disk) => {
      const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
      const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
      return `    ${disk.name}  ${human(disk.virtualSize)}, ${what}, ${human(disk.storedBytes)} stored${why}`;
    }),
    ...keptLines(point).map((line) => `    ${line}`),
    ...(rehearsed ? [`    ${rehearsalText(rehearsed)}`] : []),
    ...obstacles.map((obstacle) => `    ${lostText(obstacle, point.id)}`),
  ];
}

function rehearsalText({ at, cameUp, reason = "", seconds }: RehearsalRecord): string {
  const when = `rehearsed at ${localTime(at)}`;
  return cameUp ? `${when}: came up in ${seconds.toFixed(1)} s` : `${when}: DID NOT COME UP: ${reason}`;
}

function summary(domain: DomainPoints): string {
  const points = domain.points.flatMap(({ manifest }) => manifest ?? []);
  const stored = points.flatMap(({ disks }) => disks).reduce((total, disk) => total + disk.storedBytes, 0);
  const needed = neededBy(points.at(-1), points).size;
  const count = counted(points.length, "point");
  const lost = domain.points.filter(({ manifest, obstacles }) => manifest && obstacles.length > 0).length;
  const warning = lost === 0 ? "" : `; ${lost} CAN'T BE RESTORED (nbdpull repair)`;
  const based = needed > 1 ? `; the newest is based on ${needed - 1} of the others` : "";
  return `${titleOf(domain)}: ${count}, ${human(stored)} stored${based}${warning}`;
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
