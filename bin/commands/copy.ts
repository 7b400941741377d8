import { hasCode, UsageError } from "../../src/backup/base/errors.js";
import type { WhichPoints } from "../../src/backup/copy/choose-points.js";
import { type CopyResult, copyDomain } from "../../src/backup/copy/copy-points.js";
import type { Followed } from "../../src/backup/copy/follow-prune.js";
import type { Retention } from "../../src/backup/prune/retention.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { readCopied } from "../../src/backup/repository/copied-record.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { domainsAtOnce } from "../domains-at-once.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { rateLimitOf } from "../option-values.js";
import type { CreateOptions, TrustOptions } from "../options.js";
import { counted, human } from "../output.js";
import type { RetentionOptions } from "../retention-options.js";
import type { Context } from "../run.js";
import { requireRepository } from "../target-repository.js";
import { prepareToWrite, warnOfStrangers } from "../trust.js";

interface CopyCommandOptions extends CreateOptions, RetentionOptions, TrustOptions {
  readonly latest?: true;
  readonly since?: Date;
  readonly all?: true;
  readonly delete?: true;
  readonly limitRate?: number;
  readonly jobs?: number;
  readonly dryRun?: true;
}

/** Domains that are copied side by side, unless the user says. */
const JOBS = 2;

export async function runCopy(
  context: Context,
  options: CopyCommandOptions,
  source: string,
  target: string,
  wanted: readonly string[],
): Promise<void> {
  const { output, signal } = context;
  const which = whichOf(options);
  const remove = rulesOf(options);
  const onWarning = (message: string): void => output.warn(message);
  const reading = { trusted: options.trustRepository, signal };
  const trusted = { ...reading, onWarning };
  // It is never written to.
  const from = await Repository.open(source, reading);
  const { domains: ours, missing } = await domainsOf(from, wanted, options);
  await warnOfStrangers(source, ours, output);
  await requireRepository(target, options, signal);
  if (options.dryRun && !(await Repository.openIfThere(target, { signal }))) {
    throw new UsageError(
      "E_USAGE",
      `there is no repository at ${target} yet, so all would be copied: leave --dry-run out`,
    );
  }
  if (!options.dryRun) await prepareToWrite(target, undefined, options, output);
  const to = options.dryRun
    ? await Repository.open(target, trusted)
    : await Repository.openOrCreate(target, trusted);
  await refuseSame(from, to);
  const lost = remove ? await lostDomains({ from, to, wanted, missing }) : [];
  const domains = [...new Set([...ours, ...lost])].sort();

  const limit = rateLimitOf(options);
  const { jobs } = options;
  const asked = { to: target, jobs, usual: JOBS, count: domains.length, isCopied: true };
  const atOnce = domainsAtOnce(output, asked);
  const progress = await output.progress();
  const copy = (domain: string, ending: AbortSignal): Promise<CopyResult> =>
    copyDomain({
      from,
      to,
      domain,
      which,
      remove,
      dryRun: options.dryRun,
      limit,
      domainsAtOnce: atOnce,
      signal: ending,
      onWarning: (message) => output.warn(message),
      onProgress: ({ copiedBytes, totalBytes }) =>
        progress.update(domain, copiedBytes, Math.max(copiedBytes, totalBytes), copiedBytes),
    });
  try {
    const tell = (result: CopyResult): void => output.part(asText(result, options.dryRun ?? false));
    const results = await eachDomain(domains, context, copy, tell, atOnce);
    const json = results.map((each) => ("error" in each ? each : each.result));
    const damaged = results.some((each) => "result" in each && hasDamage(each.result));
    const nothing = domains.length > 0 ? [] : ["no restore points yet"];
    output.result({ dryRun: options.dryRun ?? false, damaged, domains: json }, nothing);
    if (damaged) process.exitCode = EXIT.damaged;
  } finally {
    progress.stop();
  }
}

/** @throws {UsageError} `E_USAGE` */
function whichOf({ latest, since, all }: CopyCommandOptions): WhichPoints | undefined {
  const given = [latest && ("latest" as const), since && { since }, all && ("all" as const)];
  const [which, ...others] = given.filter((each) => each !== undefined);
  if (others.length === 0) return which;
  throw new UsageError("E_USAGE", "--latest, --since and --all contradict each other: give one of them");
}

/**
 * What the copy keeps of what the original has dropped; undefined: everything.
 * @throws {UsageError} `E_KEEP_NOTHING`, `E_USAGE`
 */
function rulesOf(options: CopyCommandOptions): Retention | undefined {
  const { keepLast: last, keepDaily: daily, keepWeekly: weekly, keepMonthly: monthly } = options;
  const rules = { last, daily, weekly, monthly };
  const counts = Object.values(rules);
  if (!options.delete) {
    if (counts.every((count) => count === undefined)) return undefined;
    throw new UsageError("E_USAGE", "rules of what to keep are for --delete: give it too, or leave them out");
  }
  if (counts.some((count) => (count ?? 0) > 0)) return rules;
  const message =
    "--delete needs a rule of its own, which keeps what is lost at the other end by mistake: give --keep-last, --keep-daily, --keep-weekly or --keep-monthly at least 1";
  throw new UsageError("E_KEEP_NOTHING", message);
}

function hasDamage({ points, followed }: CopyResult): boolean {
  return points.some(({ state }) => state === "damaged") || followed?.refused !== undefined;
}

interface WantedDomains {
  readonly domains: readonly string[];
  /** What --delete has to look for in the other repository, with the error if it isn't there either. */
  readonly missing: ReadonlyMap<string, unknown>;
}

async function domainsOf(
  from: Repository,
  wanted: readonly string[],
  options: CopyCommandOptions,
): Promise<WantedDomains> {
  const missing = new Map<string, unknown>();
  if (wanted.length === 0) return { domains: await from.domains(), missing };
  const folders = new Set<string>();
  for (const name of wanted) {
    try {
      for (const folder of await chooseDomains(from, name)) folders.add(folder);
    } catch (error) {
      if (!options.delete || !hasCode(error, "E_NO_DOMAIN")) throw error;
      missing.set(name, error);
    }
  }
  return { domains: [...folders].sort(), missing };
}

interface LostOptions extends Pick<WantedDomains, "missing"> {
  readonly from: Repository;
  readonly to: Repository;
  readonly wanted: readonly string[];
}

/** Domains that the other repository has got from this one, and that have no points here any more. */
async function lostDomains({ from, to, wanted, missing }: LostOptions): Promise<readonly string[]> {
  const there = new Set(await to.domains());
  for (const [name, error] of missing) if (!there.has(name)) throw error;
  if (wanted.length > 0) return [...missing.keys()];
  for (const domain of await from.domains()) there.delete(domain);
  const lost: string[] = [];
  for (const domain of there) {
    await using folder = await to.openDomain(domain);
    if ((await readCopied(folder)).points.has(from.id)) lost.push(domain);
  }
  return lost;
}

/** @throws {UsageError} `E_USAGE` */
async function refuseSame(from: Repository, to: Repository): Promise<void> {
  if (await from.isAt(await to.realPath()))
    throw new UsageError("E_USAGE", `${from.path} and ${to.path} are the same repository: name two`);
}

function asText({ domain, points, dropped, followed, copiedBytes }: CopyResult, dryRun: boolean): string[] {
  const count = (state: string): number => points.filter((point) => point.state === state).length;
  const copied = count("copied");
  const bytes = dryRun ? points.reduce((sum, point) => sum + point.bytes, 0) : copiedBytes;
  const verb = dryRun ? "would copy" : "copied";
  const left = `    ${dropped.length} more were dropped there after they had been copied: --all copies them again`;
  return [
    `${domain}: ${verb} ${copied} of ${counted(points.length, "point")}, ${human(bytes)}; ${count("there")} were there`,
    ...points.flatMap(({ id, state, message }) => {
      if (message === undefined) return [];
      return [state === "damaged" ? `    ${id} NOT copied: ${message}` : `    ${id}: ${message}`];
    }),
    ...(dropped.length > 0 ? [left] : []),
    ...(followed ? followedText(followed, dryRun) : []),
  ];
}

/** What became of the points that the original has dropped. */
function followedText({ gone, pruned, refused }: Followed, dryRun: boolean): string[] {
  if (refused !== undefined) return [`    ${refused}`];
  const verb = dryRun ? "would be removed" : "removed";
  const points = (pruned?.points ?? []).filter(({ id }) => gone.includes(id));
  return points.map(({ id, action, reasons }) =>
    action === "drop"
      ? `    ${id} ${verb}: it was dropped where it came from`
      : `    ${id} stays (${reasons.join(", ")})`,
  );
}
