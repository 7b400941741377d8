import { realpath } from "node:fs/promises";
import { UsageError } from "../../src/backup/base/errors.js";
import { type CopyResult, copyDomain } from "../../src/backup/copy/copy-points.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import { rateLimitOf } from "../option-values.js";
import type { CreateOptions, TrustOptions } from "../options.js";
import { human } from "../output.js";
import { placeOf } from "../place-of.js";
import type { Context } from "../run.js";
import { requireRepository } from "../target-repository.js";
import { prepareToWrite, warnOfStrangers } from "../trust.js";

interface CopyCommandOptions extends CreateOptions, TrustOptions {
  readonly latest?: true;
  readonly since?: Date;
  readonly limitRate?: number;
  readonly dryRun?: true;
}

export async function runCopy(
  context: Context,
  options: CopyCommandOptions,
  source: string,
  target: string,
  wanted: readonly string[],
): Promise<void> {
  const { output, signal } = context;
  if (options.latest && options.since) {
    throw new UsageError("E_USAGE", "--latest and --since contradict each other: give one of them");
  }
  const trusted = { trusted: options.trustRepository };
  const from = await Repository.open(source, { ...trusted, signal });
  const domains = await domainsOf(from, wanted);
  await warnOfStrangers(source, domains, output);
  await requireRepository(target, options);
  if (options.dryRun && !(await Repository.openIfThere(target))) {
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

  const limit = rateLimitOf(options);
  const which = options.latest ? "latest" : options.since && { since: options.since };
  const progress = await output.progress();
  const copy = (domain: string): Promise<CopyResult> =>
    copyDomain({
      from,
      to,
      domain,
      which,
      dryRun: options.dryRun,
      limit,
      signal,
      onProgress: ({ copiedBytes, totalBytes }) =>
        progress.update(domain, copiedBytes, Math.max(copiedBytes, totalBytes), copiedBytes),
    });
  try {
    const results = await eachDomain(domains, context, copy, (result) =>
      output.part(asText(result, options.dryRun ?? false)),
    );
    const json = results.map((each) => ("error" in each ? each : each.result));
    const damaged = results.some(
      (each) => "result" in each && each.result.points.some(({ state }) => state === "damaged"),
    );
    const nothing = domains.length > 0 ? [] : ["no restore points yet"];
    output.result({ dryRun: options.dryRun ?? false, damaged, domains: json }, nothing);
    if (damaged) process.exitCode = EXIT.damaged;
  } finally {
    progress.stop();
  }
}

async function domainsOf(from: Repository, wanted: readonly string[]): Promise<string[]> {
  if (wanted.length === 0) return await from.domains();
  const folders = new Set<string>();
  for (const name of wanted) for (const folder of await chooseDomains(from, name)) folders.add(folder);
  return [...folders].sort();
}

/** @throws {UsageError} `E_USAGE` */
async function refuseSame(from: Repository, to: Repository): Promise<void> {
  const places = [from, to].map(({ path }) => realpath(path).catch(() => placeOf(path)));
  const [one, other] = await Promise.all(places);
  if (one === other)
    throw new UsageError("E_USAGE", `${from.path} and ${to.path} are the same repository: name two`);
}

function asText({ domain, points, copiedBytes }: CopyResult, dryRun: boolean): string[] {
  const count = (state: string): number => points.filter((point) => point.state === state).length;
  const copied = count("copied");
  const bytes = dryRun ? points.reduce((sum, point) => sum + point.bytes, 0) : copiedBytes;
  const verb = dryRun ? "would copy" : "copied";
  return [
    `${domain}: ${verb} ${copied} of ${points.length} ${points.length === 1 ? "point" : "points"}, ${human(bytes)}; ${count("there")} were there`,
    ...points.flatMap(({ id, state, message }) => {
      if (message === undefined) return [];
      return [state === "damaged" ? `    ${id} NOT copied: ${message}` : `    ${id}: ${message}`];
    }),
  ];
}
