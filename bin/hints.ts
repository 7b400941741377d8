/** What the user may have meant. Loaded only when a command has failed. */
import { closestMatch } from "leven";
import { BackupError, hasCode } from "../src/backup/base/errors.js";
import { shellWord } from "../src/backup/base/shell-word.js";
import { Repository } from "../src/backup/repository/repository.js";
import { defineHint } from "./options.js";

/** What was called, as far as it tells what was meant. */
export interface Called {
  readonly command: string;
  /** Arguments as they were given. */
  readonly args: readonly string[];
  readonly options: Readonly<Record<string, unknown>>;
  /** Ends the look for what was meant. */
  readonly signal: AbortSignal;
}

/** ` (Did you mean WORD?)`, or nothing if no known word is near. */
export function didYouMean(word: string, known: readonly string[]): string {
  // Two letters that changed places count as two.
  const most = word.length < 3 ? 1 : Math.max(2, Math.floor(word.length * 0.4));
  const nearest = closestMatch(
    word,
    known.filter((each) => each !== word),
    { maxDistance: most },
  );
  return nearest === undefined ? "" : ` (Did you mean ${nearest}?)`;
}

/** Completes the message of an error; undefined if nothing better is known. Never fails. */
export async function hintFor(error: unknown, called: Called): Promise<string | undefined> {
  if (!(error instanceof BackupError)) return undefined;
  try {
    return (await hintOf(error, called)) || undefined;
  } catch {
    return undefined;
  }
}

async function hintOf(error: BackupError, called: Called): Promise<string> {
  const [path = "", domain] = called.args;
  const { details, message } = error;
  const opening = { signal: called.signal };
  const define = defineHint(process.argv, called.args);
  const isPlace = hasCode(error, "E_NO_REPOSITORY") || hasCode(error, "E_NO_DOMAIN");
  if (isPlace && define !== "") return ` ${define}`;
  if (hasCode(error, "E_NO_REPOSITORY")) return await swapped(called);
  if (hasCode(error, "E_NO_DOMAIN") && domain !== undefined) {
    return didYouMean(domain, await (await Repository.open(path, opening)).domains());
  }
  if (hasCode(error, "E_NO_POINT") && typeof called.options["at"] === "string") {
    const repository = await Repository.open(path, opening);
    const domains = domain === undefined ? await repository.domains() : [domain];
    const ids = await Promise.all(domains.map((each) => repository.pointNames(each)));
    return didYouMean(called.options["at"], ids.flat());
  }
  const { disk, domain: named, known } = details;
  const word = disk ?? named;
  if (typeof word === "string" && Array.isArray(known)) return didYouMean(word, known.map(String));
  if (hasCode(error, "E_NO_SUCH_DOMAIN")) {
    const { Libvirt } = await import("../src/backup/libvirt/libvirt.js");
    const connect = called.options["connect"];
    await using libvirt = new Libvirt({ connect: typeof connect === "string" ? connect : undefined });
    const names = [
      ...(await libvirt.runningDomains()),
      ...(await libvirt.stoppedDomains()).map(({ name }) => name),
    ];
    const { skip } = called.options;
    const words = [...called.args, ...(Array.isArray(skip) ? skip.map(String) : [])];
    const asked = words.find((name) => !names.includes(name) && message.includes(name));
    return asked === undefined ? "" : didYouMean(asked, names);
  }
  return "";
}

/** A repository that stands where the domain is expected, or the other way round. */
async function swapped({ command, args, options, signal }: Called): Promise<string> {
  const { to } = options;
  for (const [index, word] of args.entries()) {
    if (!(await Repository.openIfThere(word, { signal }).catch(() => undefined))) continue;
    if (typeof to === "string" && args.length === 1) {
      return ` (Did you mean nbdpull ${command} ${shellWord(to)} --to ${shellWord(word)}?)`;
    }
    if (index !== 1) continue;
    return ` (Did you mean nbdpull ${command} ${shellWord(word)} ${shellWord(args[0] ?? "")}? The repository comes first)`;
  }
  return "";
}
