import { type Command, InvalidArgumentError } from "commander";
import { type PruneResult, prune } from "../../src/backup/prune/prune.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type WhoseOptions, withWhose } from "../domain-options.js";
import { human } from "../output.js";
import type { Run } from "../run.js";
import { prepareToWrite, type TrustOptions, warnOfStrangers, withTrust } from "../trust.js";

interface PruneCommandOptions extends TrustOptions, WhoseOptions {
  readonly keepLast?: number;
  readonly keepDaily?: number;
  readonly keepWeekly?: number;
  readonly keepMonthly?: number;
  readonly dryRun?: true;
  readonly fsync: boolean;
}

export function addPrune(program: Command, run: Run): void {
  const command = program
    .command("prune")
    .description("drop old points, and merge what later ones need of them; every kept point stays restorable")
    .argument("<repo>")
    .argument("[domain]", "left out: every domain, each by itself")
    .option("--keep-last <n>", "keep the newest N points", count)
    .option("--keep-daily <n>", "keep the newest point of each of the last N days that have points", count)
    .option("--keep-weekly <n>", "the same of weeks, which begin on Monday", count)
    .option("--keep-monthly <n>", "the same of months", count)
    .option("--dry-run", "only tell what would be done")
    .option("--no-fsync", "do not flush to stable storage: faster, and not safe against a power cut");
  withTrust(withWhose(command)).action(
    run<PruneCommandOptions, [repo: string, domain: string | undefined]>(
      async ({ output, signal }, options, path, wanted) => {
        const repository = await Repository.open(path, { trusted: options.trustRepository });
        const domains = await chooseDomains(repository, wanted, options.uuid);
        const dryRun = options.dryRun ?? false;
        if (dryRun) await warnOfStrangers(path, domains, output);
        else await prepareToWrite(path, domains, options, output);
        const { keepLast: last, keepDaily: daily, keepWeekly: weekly, keepMonthly: monthly } = options;
        const results: PruneResult[] = [];
        const progress = await output.progress();
        try {
          for (const domain of domains) {
            results.push(
              await prune({
                repository,
                domain,
                uuid: options.uuid,
                retention: { last, daily, weekly, monthly },
                dryRun,
                sync: options.fsync,
                signal,
                onProgress: (disk, position, size) =>
                  progress.update(`${domain} ${disk}`, position, size, position),
              }),
            );
          }
        } finally {
          progress.stop();
        }
        const lines = results.flatMap((result) => asText(result, dryRun));
        const json = { dryRun, domains: results };
        output.result(json, lines.length > 0 ? lines : ["no restore points yet"]);
      },
    ),
  );
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 0 && /^\d+$/.test(text)) return value;
  throw new InvalidArgumentError("It has to be a whole number, 0 or more.");
}

function asText(
  { domain, points, merges, writtenBytes, freedBytes }: PruneResult,
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
  const merged = merges.map(({ disk, child, dropped: from, base, writtenBytes: bytes }) => {
    const into = base === null ? "a new image" : base === child ? "its own image" : `the image of ${base}`;
    return `    ${disk} of ${child} ${dryRun ? "would take" : "took"} what it needs of ${from.join(", ")}: ${human(bytes)} written into ${into}`;
  });
  return [
    `${domain}: ${verb} ${dropped} of ${points.length} points, ${human(writtenBytes)} ${dryRun ? "to write" : "written"}${won}`,
    ...lines,
    ...merged,
  ];
}

function spaceText(freedBytes: number): string {
  return freedBytes >= 0 ? `${human(freedBytes)} of space won` : `${human(-freedBytes)} more space taken`;
}
