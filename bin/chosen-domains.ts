/** The domains of one run of `backup`, each once, and which of its disks the user means. */
import { PreconditionError, UsageError } from "../src/backup/base/errors.js";
import type { DiskChoice } from "../src/backup/libvirt/choose-disks.js";
import { type DomainDefinition, parseDomain } from "../src/backup/libvirt/documents/domain-xml.js";
import { Libvirt } from "../src/backup/libvirt/libvirt.js";
import type { GuestOptions } from "./guest-options.js";
import type { Context } from "./run.js";

export interface ChosenDomain {
  /** As the user, or libvirt's list, names it. */
  readonly name: string;
  readonly disks: DiskChoice;
}

interface ChoiceOptions extends Pick<GuestOptions, "include" | "exclude" | "connect"> {
  readonly all?: true | undefined;
  readonly skip?: readonly string[];
}

interface FoundDomain {
  readonly name: string;
  /** Undefined if libvirt doesn't tell; its backup then says why. */
  readonly definition: DomainDefinition | undefined;
}

/**
 * The domains to back up. One that is named twice, maybe by its name and its UUID, is told and taken once. Of
 * several domains each takes those included disks that it has, and need not have those that are excluded.
 *
 * @throws {UsageError} `E_DOMAIN`: none was named, or some beside `--all`
 * @throws {PreconditionError} `E_NO_SUCH_DISK`: a disk is included, or excluded, that none of several domains
 *   has; `E_NO_SUCH_DOMAIN`: one that is to be skipped
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
  const { skip = [] } = options;
  if (skip.length > 0 && !options.all) throw new UsageError("E_USAGE", "--skip is for --all");
  const running = options.all ? await libvirt.runningDomains() : [];
  const names = options.all ? await withoutSkipped(running, skip, libvirt) : [...new Set(named)];
  const choice: DiskChoice = { include: options.include ?? [], exclude: options.exclude ?? [] };
  const mayNeedLook = names.length > 1 || options.all || choice.exclude.length > 0;
  const found = mayNeedLook ? await definitionsOf(names, libvirt) : [];
  signal.throwIfAborted();
  if (found.length === 0) return names.map((name) => ({ name, disks: choice }));

  const domains = eachOnce(found, (message) => output.note(message));
  await refuseUnknown(choice.exclude, domains, options, { output, libvirt });
  if (domains.length === 1 && !options.all) return domains.map(({ name }) => ({ name, disks: choice }));
  for (const disk of missingFrom(domains, choice.include)) {
    const message = `--include ${disk}: ${whichOf(domains)} has no disk ${disk}. \`virsh domblklist DOMAIN\` shows what a domain has`;
    throw new PreconditionError("E_NO_SUCH_DISK", message, { details: { disk, known: disksOf(domains) } });
  }
  return domains.map(({ name, definition }) => {
    const theirs = choice.include.filter((disk) => has(definition, disk));
    // A domain that has none of them can't be backed up, and its backup says so.
    return { name, disks: { ...choice, include: theirs.length > 0 ? theirs : choice.include } };
  });
}

/**
 * An excluded disk that no domain has is a mistyped one. Of a single domain that is named it may be meant for
 * others: services share their options.
 * @throws {PreconditionError} `E_NO_SUCH_DISK`
 */
async function refuseUnknown(
  excluded: readonly string[],
  domains: readonly FoundDomain[],
  { all }: ChoiceOptions,
  { output, libvirt }: Pick<Context, "output"> & { readonly libvirt: Libvirt },
): Promise<void> {
  const missing = missingFrom(domains, excluded);
  if (missing.length === 0) return;
  if (domains.length === 1 && !all) {
    for (const disk of missing) {
      output.warn(`--exclude ${disk} leaves nothing out: ${whichOf(domains)} has no disk ${disk}`);
    }
    return;
  }
  // A domain that is off tonight may have it.
  const off = all ? (await libvirt.stoppedDomains()).map(({ name }) => name) : [];
  const known = [...domains, ...(await definitionsOf(off, libvirt))];
  const [disk] = missingFrom(known, missing);
  if (disk === undefined) return;
  const message = `--exclude ${disk}: no domain has a disk ${disk}. \`virsh domblklist DOMAIN\` shows what a domain has`;
  throw new PreconditionError("E_NO_SUCH_DISK", message, { details: { disk, known: disksOf(known) } });
}

/** @throws {PreconditionError} `E_NO_SUCH_DOMAIN`: one that is to be skipped is neither running nor off */
async function withoutSkipped(
  running: readonly string[],
  skip: readonly string[],
  libvirt: Libvirt,
): Promise<string[]> {
  const uuids = new Map<string, string>();
  const isUuid = skip.some((word) => /^[0-9a-f-]{36}$/.test(word));
  if (isUuid) for (const name of running) uuids.set(await libvirt.domainUuid(name), name);
  const skipped = new Set(skip.map((word) => uuids.get(word) ?? word));
  const unknown = [...skipped].filter((word) => !running.includes(word));
  if (unknown.length > 0) {
    const off = await libvirt.stoppedDomains();
    const known = [...running, ...off.map(({ name }) => name)];
    const domain = unknown.find((word) => !known.includes(word) && !off.some(({ uuid }) => uuid === word));
    if (domain !== undefined) {
      const message = `--skip ${domain}: libvirt has no domain ${domain}. \`virsh list --all\` shows what there is`;
      throw new PreconditionError("E_NO_SUCH_DOMAIN", message, { details: { domain, known } });
    }
  }
  return running.filter((name) => !skipped.has(name));
}

function disksOf(domains: readonly FoundDomain[]): string[] {
  return [
    ...new Set(domains.flatMap(({ definition }) => definition?.disks.map(({ target }) => target) ?? [])),
  ];
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
