import { type DomainFacts, factsOf, type Totals, totalsOf } from "../../src/backup/report/domain-facts.js";
import { domainsIn } from "../../src/backup/report/domain-points.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { titleOf } from "../domain-title.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { human } from "../output.js";
import type { Context } from "../run.js";
import type { Line } from "../terminal.js";
import { tableLines } from "../text-table.js";
import { warnOfStrangers } from "../trust.js";

export async function runStats(
  context: Context,
  _options: unknown,
  path: string,
  wanted: readonly string[],
): Promise<void> {
  const { output, signal } = context;
  const repository = await Repository.open(path, { signal });
  const folders = new Set<string>();
  for (const name of wanted.length === 0 ? [undefined] : wanted) {
    for (const folder of await chooseDomains(repository, name)) folders.add(folder);
  }
  await warnOfStrangers(path, [...folders], output);
  const now = Date.now();
  const look = async (folder: string): Promise<DomainFacts[]> =>
    (await domainsIn(repository, folder, signal)).map((domain) => factsOf(domain, { now }));
  const results = await eachDomain([...folders], context, look, () => undefined);
  const domains = results.flatMap((each) => ("error" in each ? [] : each.result));
  // What can't be read doesn't count, so the figures are not all there is.
  const unread = domains.flatMap(({ points }) => points).filter(({ level }) => level === null);
  for (const { obstacles } of unread) for (const { message } of obstacles) output.warn(message);
  if (unread.length > 0) process.exitCode = EXIT.damaged;
  const totals = totalsOf(domains);
  const failed = results.filter((each) => "error" in each);
  const json = {
    domains: domains.map((domain) => ({
      domain: domain.name,
      folder: domain.folder,
      uuid: domain.uuid,
      ...figuresOf({ ...domain, points: domain.points.length }),
    })),
    totals: { domains: totals.domains, ...figuresOf(totals) },
    ...(failed.length > 0 ? { failed } : {}),
  };
  output.result(json, domains.length > 0 ? asTable(domains, totals) : ["no restore points yet"]);
}

type Figures = Omit<Totals, "domains" | "unrestorable">;

function figuresOf(of: Figures): Figures {
  const { points, virtualBytes, logicalBytes, storedBytes, ratio, growthPerDay, changedPerDay } = of;
  return { points, virtualBytes, logicalBytes, storedBytes, ratio, growthPerDay, changedPerDay };
}

function asTable(domains: readonly DomainFacts[], totals: Totals): Line[] {
  const columns = [
    { head: "DOMAIN", cut: true },
    { head: "POINTS", right: true, spare: 3 },
    { head: "SIZE", right: true, spare: 4 },
    { head: "LOGICAL", right: true },
    { head: "STORED", right: true },
    { head: "RATIO", right: true },
    { head: "CHANGED/DAY", right: true, spare: 1 },
    { head: "GROWTH/DAY", right: true, spare: 2 },
  ] as const;
  const row = (name: string, of: Figures): string[] => [
    name,
    String(of.points),
    human(of.virtualBytes),
    human(of.logicalBytes),
    human(of.storedBytes),
    of.ratio === null ? "–" : of.ratio.toFixed(1),
    rate(of.changedPerDay),
    rate(of.growthPerDay),
  ];
  const rows = domains.map((domain) => row(titleOf(domain), { ...domain, points: domain.points.length }));
  return tableLines(columns, rows.length > 1 ? [...rows, row("together", totals)] : rows);
}

function rate(bytesPerDay: number | null): string {
  return bytesPerDay === null ? "–" : human(Math.round(bytesPerDay));
}
