import { UsageError } from "../../src/backup/base/errors.js";
import { type DomainState, totalsOf } from "../../src/backup/report/domain-facts.js";
import { type ReportedDomain, reportedDomains } from "../../src/backup/report/repository-facts.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { findStranger } from "../../src/backup/repository/strangers.js";
import { titleOf } from "../domain-title.js";
import { EXIT, worstExitCode } from "../exit-codes.js";
import type { MaxAgeOptions } from "../max-age.js";
import { MetricsFile } from "../metrics-file.js";
import { human } from "../output.js";
import { placeOf } from "../place-of.js";
import type { ReportDocument, RepositoryFacts } from "../report-document.js";
import { updateOfReport } from "../report-metrics.js";
import type { Context } from "../run.js";
import type { Span } from "../terminal.js";
import { tableLines } from "../text-table.js";
import { durationText, localTime } from "../times.js";

interface ReportOptions extends MaxAgeOptions {
  readonly html?: string;
  readonly prometheus?: string;
}

export async function runReport(
  context: Context,
  { html, prometheus, maxAge: maxAgeSeconds }: ReportOptions,
  paths: readonly string[],
): Promise<void> {
  const { output } = context;
  // What would keep the report from being written is found before anything is read.
  const page = html === undefined ? undefined : await openPage(html);
  const metrics = prometheus === undefined ? undefined : await MetricsFile.at(prometheus);
  const now = Date.now();
  const errors: unknown[] = [];
  const repositories: RepositoryFacts[] = [];
  for (const path of new Map(paths.map((each) => [placeOf(each), each])).values()) {
    repositories.push(await look(path, { now, maxAgeSeconds }, context, errors));
  }
  const domains = repositories.flatMap((repository) => repository.domains);
  const report: ReportDocument = {
    format: "nbdpull-report",
    version: 1,
    createdAt: new Date(now).toISOString(),
    maxAgeSeconds,
    totals: totalsOf(domains),
    repositories,
  };
  await page?.write(report);
  await metrics?.update(updateOfReport(report));
  for (const domain of domains) warnOf(domain, maxAgeSeconds, context);
  output.result(report, asText(report));
  const isDamaged = domains.some(isHurt);
  if (errors.length > 0 || isDamaged) process.exitCode = isDamaged ? EXIT.damaged : worstExitCode(errors);
}

async function openPage(path: string): Promise<{ write(report: ReportDocument): Promise<void> }> {
  // Charts take longer to load than many a report takes without them.
  const { ReportFile } = await import("../report-file.js");
  const { reportPage } = await import("../report-page/page.js");
  const file = await ReportFile.at(path);
  return { write: (report) => file.replace(reportPage(report)) };
}

/** What is in a repository, or why it can't be read, which hides nothing of the others. */
async function look(
  path: string,
  promised: { readonly now: number; readonly maxAgeSeconds: number },
  { output, signal }: Context,
  errors: unknown[],
): Promise<RepositoryFacts> {
  signal.throwIfAborted();
  const domains: ReportedDomain[] = [];
  const failed: { domain: string; error: Record<string, unknown> }[] = [];
  let id: string | null = null;
  let stranger: string | null = null;
  let error: Record<string, unknown> | null = null;
  try {
    const repository = await Repository.open(path, { signal });
    id = repository.id;
    for await (const found of reportedDomains(repository, { ...promised, signal })) {
      if ("maps" in found) domains.push(found);
      else {
        errors.push(found.error);
        const { folder } = found;
        failed.push({ domain: folder, error: output.fault(`${path}: ${folder}`, found.error) });
      }
    }
    stranger = (await findStranger(path, undefined)) ?? null;
    if (stranger !== null) output.warn(stranger);
  } catch (cause) {
    signal.throwIfAborted();
    if (cause instanceof UsageError) throw cause;
    errors.push(cause);
    error = output.fault(path, cause);
  }
  return { repository: placeOf(path), id, stranger, error, domains, failed };
}

/** Damage that a restore would meet, or that the change maps have met. */
function isHurt({ unrestorable, maps }: ReportedDomain): boolean {
  return unrestorable > 0 || maps.some(({ unreadable }) => unreadable.length > 0);
}

function warnOf(domain: ReportedDomain, maxAgeSeconds: number, { output }: Context): void {
  const { isLate, ageSeconds, maps } = domain;
  const title = titleOf(domain);
  if (isLate && ageSeconds !== null) {
    const promised = durationText(maxAgeSeconds);
    output.warn(
      `${title}: its last good point is ${durationText(ageSeconds)} old; at most ${promised} was promised`,
    );
  }
  if (ageSeconds !== null && ageSeconds < 0) {
    output.warn(
      `${title}: its last good point was made later than now: a clock was wrong then, or is now (nbdpull points --fix-clock)`,
    );
  }
  for (const { disk, unreadable } of maps) {
    for (const { point, message } of unreadable) {
      output.warn(`${title}: the tables of disk ${disk} of point ${point} can't be read: ${message}`);
    }
  }
}

const COLOURS: Readonly<Record<DomainState, "green" | "yellow" | "red">> = {
  good: "green",
  late: "yellow",
  damaged: "red",
  lost: "red",
};

function asText({ repositories, totals }: ReportDocument): ReturnType<typeof tableLines> {
  const columns = [
    { head: "DOMAIN", cut: true },
    { head: "STATE" },
    { head: "LAST GOOD POINT", spare: 2 },
    { head: "AGE", right: true },
    { head: "POINTS", right: true },
    { head: "LOST", right: true },
    { head: "SIZE", right: true, spare: 3 },
    { head: "STORED", right: true, spare: 1 },
    { head: "CHANGED/DAY", right: true, spare: 4 },
    ...(repositories.length > 1 ? [{ head: "REPOSITORY", spare: 5 } as const] : []),
  ] as const;
  const rows = repositories.flatMap(({ repository, domains }) =>
    domains.map((domain): Span[] => [
      titleOf(domain),
      { text: domain.state, colour: COLOURS[domain.state] },
      domain.lastGood ? localTime(domain.lastGood.createdAt) : "none",
      domain.ageSeconds === null ? "–" : durationText(domain.ageSeconds),
      String(domain.points.length),
      String(domain.unrestorable),
      human(domain.virtualBytes),
      human(domain.storedBytes),
      domain.changedPerDay === null ? "–" : human(Math.round(domain.changedPerDay)),
      repository,
    ]),
  );
  // Of a repository that can't be read nobody knows.
  const isKnown = repositories.every(({ error, failed }) => error === null && failed.length === 0);
  if (rows.length === 0) return isKnown ? ["no restore points"] : [];
  const together = ["together", "", "", "", String(totals.points), String(totals.unrestorable)];
  const bytes = [human(totals.virtualBytes), human(totals.storedBytes), "", ""];
  return tableLines(columns, rows.length > 1 ? [...rows, [...together, ...bytes]] : rows);
}
