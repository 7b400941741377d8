import { shellWord } from "../src/backup/base/shell-word.js";
import { type ClockDoubt, type MendedTime, mendClock } from "../src/backup/repository/mend-clock.js";
import type { Repository } from "../src/backup/repository/repository.js";
import { eachDomain } from "./each-domain.js";
import type { Context } from "./run.js";

/**
 * Dates the points of some domains anew, or only tells what it would do, and prints it. A failure of one
 * domain doesn't stop the others.
 */
export async function fixClock(
  repository: Repository,
  domains: readonly string[],
  { dryRun, wrong }: { readonly dryRun: boolean; readonly wrong: readonly string[] },
  context: Context,
): Promise<void> {
  const { output, signal } = context;
  const doubtful: (ClockDoubt & { readonly domain: string })[] = [];
  const fixOne = async (domain: string): Promise<MendedIn[]> => {
    const onDoubt = (doubt: ClockDoubt): void => {
      doubtful.push({ domain, ...doubt });
      output.warn(doubtText(repository, domain, doubt));
    };
    const done = await mendClock(repository, domain, { dryRun, wrong, onDoubt, signal });
    return done.map((time) => ({ domain, ...time }));
  };
  const results = await eachDomain(domains, context, fixOne, (mended) => output.part(mended.map(asText)));
  const mended = results.flatMap((each) => ("error" in each ? [] : each.result));
  const failed = results.filter((each) => "error" in each);
  const none = doubtful.length + failed.length > 0 ? "nothing was mended" : "all times fit, nothing to mend";
  output.result({ dryRun, mended, doubtful, failed }, mended.length > 0 ? [] : [none]);
}

type MendedIn = MendedTime & { readonly domain: string };

function asText({ domain, id, was, createdAt, by }: MendedIn): string {
  return `${domain}  ${id}  ${was} -> ${createdAt}  (${SOURCES[by]})`;
}

/** What can't be known, and how the user says it. */
function doubtText({ path }: Repository, domain: string, { tooLate, tooEarly }: ClockDoubt): string {
  const command = `nbdpull points ${shellWord(path)} ${shellWord(domain)} --fix-clock --wrong ID`;
  return `${domain}: the times of some points don't sort as the points were made. Either a clock was ahead at ${some(tooLate)}, or one was behind at ${some(tooEarly)}. Nothing tells which, so their times stay; if you know it, name those whose time is wrong, each with --wrong: ${command}`;
}

function some(ids: readonly string[]): string {
  const more = ids.length - SHOWN;
  return ids.slice(0, SHOWN).join(", ") + (more > 0 ? ` and ${more} more (--json names all)` : "");
}

/** Points that a message names. */
const SHOWN = 5;

/** What tells the new time. */
const SOURCES: Readonly<Record<MendedTime["by"], string>> = {
  checkpoint: "by its checkpoint",
  files: "by its oldest file",
  next: "that of the next point: it is not younger",
  now: "now: it is not younger",
};
