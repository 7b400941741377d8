/** The domains of one run of `backup`, each once, and which of its disks the user means. */
import { PreconditionError, UsageError } from "../src/backup/base/errors.js";
import type { DiskChoice } from "../src/backup/libvirt/choose-disks.js";
import { type DomainDefinition, parseDomain } from "../src/backup/libvirt/domain-xml.js";
import { Libvirt } from "../src/backup/libvirt/libvirt.js";
import type { GuestOptions } from "./guest-options.js";
import type { Context } from "./run.js";

export interface ChosenDomain {
  /** As the user, or libvirt's list, names it. */
  readonly name: string;
  readonly disks: DiskChoice;
}

interface ChoiceOptions extends Pick<GuestOptions, "include" | "exclude" | "connect"> {
  readonly all?: true;
}

interface FoundDomain {
  readonly name: string;
  /** Undefined if libvirt doesn't tell; its backup then says why. */
  readonly definition: DomainDefinition | undefined;
}

/**
 * The domains to back up. One that is named twice, maybe by its name and its UUID, is told and taken once. Of
 * several domains each takes those included disks that it has. An excluded disk that no domain has is a warning.
 *
 * @throws {UsageError} `E_DOMAIN`: none was named, or some beside `--all`
 * @throws {PreconditionError} `E_NO_SUCH_DISK`: a disk is included that none of several domains has
 */
export async function chosenDomains(
  named: readonly string[],
  options: ChoiceOptions,
  { output, signal }: Pick<Context, "output" | "signal">,
): Promise<readonly ChosenDomain[]> {
  if (options.all && named.length > 0) {
    throw new UsageError("E_DOMAIN", "name domains, or give --all: not both");
  }
  if (!options.all && named.length === 0) throw new UsageError("E_DOMAIN", "name a domain, or give --all");
  await using libvirt = new Libvirt({ signal, connect: options.connect });
  const names = options.all ? await libvirt.runningDomains() : [...new Set(named)];
  const choice: DiskChoice = { include: options.include ?? [], exclude: options.exclude ?? [] };
  const mayNeedLook = names.length > 1 || options.all || choice.exclude.length > 0;
  const found = mayNeedLook ? await definitionsOf(names, libvirt) : [];
  signal.throwIfAborted();
  if (found.length === 0) return names.map((name) => ({ name, disks: choice }));

  const domains = eachOnce(found, (message) => output.note(message));
  for (const disk of missingFrom(domains, choice.exclude)) {
    output.warn(`--exclude ${disk} leaves nothing out: ${whichOf(domains)} has no disk ${disk}`);
  }
  if (domains.length === 1 && !options.all) return domains.map(({ name }) => ({ name, disks: choice }));
  for (const disk of missingFrom(domains, choice.include)) {
    const message = `--include ${disk}: ${whichOf(domains)} has no disk ${disk}. \`virsh domblklist DOMAIN\` shows what a domain has`;
    throw new PreconditionError("E_NO_SUCH_DISK", message, { details: { disk } });
  }
  return domains.map(({ name, definition }) => {
    const theirs = choice.include.filter((disk) => has(definition, disk));
    // A domain that has none of them can't be backed up, and its backup says so.
    return { name, disks: { ...choice, include: theirs.length > 0 ? theirs : choice.include } };
  });
}

async function definitionsOf(names: readonly string[], libvirt: Libvirt): Promise<FoundDomain[]> {
  const finding = names.map(async (name) => {
    const xml = await libvirt.domainXml(name).catch(() => undefined);
    return { name, definition: xml === undefined ? undefined : definitionIn(xml) };
  });
  return await Promise.all(finding);
}

function definitionIn(xml: string): DomainDefinition | undefined {
  try {
    return parseDomain(xml);
  } catch {
    return undefined;
  }
}

function eachOnce(domains: readonly FoundDomain[], onTwice: (message: string) => void): FoundDomain[] {
  const first = new Map<string, string>();
  return domains.filter(({ name, definition }) => {
    if (definition === undefined) return true;
    const { uuid } = definition;
    const before = first.get(uuid);
    if (before === undefined) {
      first.set(uuid, name);
      return true;
    }
    onTwice(`${before} and ${name} are the same domain (${uuid}): it is backed up once`);
    return false;
  });
}

/** Those of the disks that no domain has. Of domains that libvirt does not tell of, that is not known. */
function missingFrom(domains: readonly FoundDomain[], disks: readonly string[]): string[] {
  if (domains.some(({ definition }) => definition === undefined)) return [];
  return [...new Set(disks)].filter((disk) => !domains.some(({ definition }) => has(definition, disk)));
}

function has(definition: DomainDefinition | undefined, disk: string): boolean {
  return definition?.disks.some(({ target }) => target === disk) ?? false;
}

function whichOf(domains: readonly FoundDomain[]): string {
  const [only, ...others] = domains;
  return only && others.length === 0 ? (only.definition?.name ?? only.name) : "none of the domains";
}
