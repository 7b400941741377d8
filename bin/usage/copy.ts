import { type Command, InvalidArgumentError } from "commander";
import { examples, positive, size, withCreate, withTrust } from "../options.js";
import { withRetention } from "../retention-options.js";
import type { Run } from "../run.js";

export function addCopy(program: Command, run: Run): void {
  const command = program
    .command("copy")
    .addHelpText(
      "after",
      examples(
        "nbdpull copy /srv/backups /mnt/offsite/backups",
        "nbdpull copy s3://backups/site /srv/restored web --latest",
        "nbdpull copy /srv/backups s3://offsite/backups --delete --keep-daily 90",
      ),
    )
    .description(
      "copy the points that another repository lacks, with their chains, each cluster proven; exit 3 on damage",
    )
    .argument("<from>", "the repository that is copied")
    .argument("<to>", "the one that is kept in step")
    .argument("[domain...]", "left out: every domain, each by itself")
    .option("--latest", "only the newest point of each domain, and what it is based on")
    .option("--since <time>", "only points made since then, and what they are based on", time)
    .option("--all", "also points that were copied before and that TO has dropped since")
    .option("--delete", "then remove from TO what came from FROM, is not there any more, and no rule keeps")
    .option("--limit-rate <bytes/s>", "copy no faster than this", size)
    .option(
      "--jobs <n>",
      "of several domains, how many are copied at once; default 2, into an object store at most 4",
      positive,
    )
    .option("--dry-run", "only tell what would be copied");
  withCreate(withTrust(withRetention(command))).action(
    run(async () => (await import("../commands/copy.js")).runCopy),
  );
}

/** As users write times for --at; without a zone it is local. */
function time(text: string): Date {
  const [, day = "", rest = "T00:00"] =
    /^(\d{4}-\d\d-\d\d)([T ]\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?(?:Z|[+-]\d\d:\d\d)?)?$/.exec(text) ?? [];
  const date = new Date(`${day}${rest.replace(" ", "T")}`);
  if (!Number.isNaN(date.getTime())) return date;
  throw new InvalidArgumentError("Give a time such as 2026-11-20, or 2026-11-20T11:32.");
}
