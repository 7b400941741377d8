import { type PruneResult, prune } from "../../src/backup/prune/prune.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { WhoseOptions } from "../domain-options.js";
import { eachDomain } from "../each-domain.js";
import type { TrustOptions } from "../options.js";
import { human } from "../output.js";
import { recordedJob } from "../recorded-job.js";
import type { RetentionOptions } from "../retention-options.js";
import type { Context } from "../run.js";
import { prepareToWrite, warnOfStrangers } from "../trust.js";

export interface PrunedDomain {
  readonly domain: string;
  readonly uuid: string | undefined;
}

interface PruneCommandOptions extends RetentionOptions, TrustOptions, WhoseOptions {
  readonly metrics?: string;
  /** Undefined: as the user names them. */
  readonly only?: readonly PrunedDomain[];
  readonly dryRun?: true;
  readonly strict?: true;
  readonly fsync: boolean;
}

export async function runPrune(
  context: Context,
  options: PruneCommandOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const isWhole = wanted === undefined && options.uuid === undefined && !options.dryRun;
  const { metrics, strict } = options;
  const recorded = isWhole ? { metrics, strict } : {};
  await recordedJob("prune", context, recorded, path, async () => {
    await pruneAsAsked(context, options, path, wanted);
    return undefined;
  });
}

async function pruneAsAsked(
  context: Context,
  options: PruneCommandOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const { output, signal } = context;
  const repository = await Repository.open(path, {
    trusted: options.trustRepository,
    signal,
    onWarning: (message) => output.warn(message),
  });
  const among = options.only ?? [{ domain: wanted, uuid: options.uuid }];
  const folders = await Promise.all(among.map(({ domain, uuid }) => chooseDomains(repository, domain, uuid)));
  const domains = [...new Set(folders.flat())];
  const dryRun = options.dryRun ?? false;
  if (dryRun) await warnOfStrangers(path, domains, output);
  else await prepareToWrite(path, domains, options, output);
  const { keepLast: last, keepDaily: daily, keepWeekly: weekly, keepMonthly: monthly } = options;
  const progress = await output.progress();
  const pruneOne = (domain: string): Promise<PruneResult> =>
    prune({
      repository,
      domain,
      uuid: options.uuid,
      retention: { last, daily, weekly, monthly },
      dryRun,
      sync: options.fsync,
      signal,
      onWarning: (message) => output.warn(message),
      onProgress: (disk, position, size) => progress.update(`${domain} ${disk}`, position, size, position),
    });
  try {
    const results = await eachDomain(domains, context, pruneOne, (result) =>
      output.part(asText(result, dryRun)),
    );
    const json = results.map((each) => ("error" in each ? each : each.result));
    output.result({ dryRun, domains: json }, domains.length > 0 ? [] : ["no restore points yet"]);
  } finally {
    progress.stop();
  }
}

function asText(
  { domain, points, merges, writtenBytes, copiedBytes, freedBytes }: PruneResult,
  dryRun: boolean,
): string[] {
  const dropped = points.filter(({ action }) => action === "drop").length;
  const verb = dryRun ? "would drop" : "dropped";
  const won = freedBytes === null ? "" : `, ${spaceText(freedBytes)}`;
  const areMixed = new Set(points.map(({ uuid }) => uuid)).size > 1;
  const lines = points.map(({ id, uuid, action, reasons }) => {
    const whose = areMixed ? `  ${uuid ?? "no UUID"}` : "";
    return `    ${id}${whose}  ${action}${reasons.length > 0 ? `  (${reasons.join(", ")})` : ""}`;
  });
  const merged = merges.map((merge) => {
    const { disk, child, dropped: from, base, writtenBytes: bytes } = merge;
    const into = base === null ? "a new image" : base === child ? "its own image" : `the image of ${base}`;
    return `    ${disk} of ${child} ${dryRun ? "would take" : "took"} what it needs of ${from.join(", ")}: ${human(bytes)} written into ${into}${copiedText(merge)}`;
  });
  return [
    `${domain}: ${verb} ${dropped} of ${points.length} ${points.length === 1 ? "point" : "points"}, ${human(writtenBytes)} ${dryRun ? "to write" : "written"}${copiedText({ copiedBytes })}${won}`,
    ...lines,
    ...merged,
  ];
}

function copiedText({ copiedBytes }: Pick<PruneResult, "copiedBytes">): string {
  return copiedBytes === 0 ? "" : `, ${human(copiedBytes)} copied by the store`;
}

function spaceText(freedBytes: number): string {
  return freedBytes >= 0 ? `${human(freedBytes)} of space won` : `${human(-freedBytes)} more space taken`;
}
