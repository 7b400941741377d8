import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import {
  BackupError,
  DamageError,
  hasCode,
  messageOf,
  PreconditionError,
  UsageError,
} from "../base/errors.js";
import { domainWord, shellWord } from "../base/shell-word.js";
import { type Adaptation, fitToHost } from "../definition/fit-to-host.js";
import { networksOf, type RestoredPlace, renamed, restoredDomain } from "../definition/restored-domain.js";
import { tryDefinition } from "../definition/try-definition.js";
import { isMissing } from "../host/durable-files.js";
import { NewFiles } from "../host/new-files.js";
import { publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import { parseEmulators } from "../libvirt/documents/capabilities-xml.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { bootFilesOf, damageOf } from "../repository/kept-files.js";
import type { KeptFile, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { turnFor } from "./domain-turn.js";
import { refuseInside } from "./restore.js";
import { type FileTarget, without } from "./restored-files.js";

export interface RestoredDefinitionOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  /** The name of the new domain; default: the old name with `-restored` behind it. */
  readonly name?: string | undefined;
  /**
   * It takes the place of the old domain, which must be gone: with its name, UUID and MACs. Default: false.
   */
  readonly keepIdentity?: boolean | undefined;
  /** Where its XML is written: to a file, or to `NAME.xml` in a folder. */
  readonly place: { readonly folder: string } | { readonly file: string };
  /** Where the restored disks are, by their names in the domain. */
  readonly disks: ReadonlyMap<string, RestoredPlace>;
  /** The folder for its boot files, which keep their names; default: beside the XML, as `NAME.FILE`. */
  readonly filesIn?: string | undefined;
  /** The libvirt in which the domain is defined; undefined: only the XML is written. */
  readonly libvirt?: Libvirt | undefined;
  /**
   * It may name files, devices and programs of this host, because nobody else can write to the repository.
   * Default: false.
   */
  readonly trusted?: boolean | undefined;
  /**
   * @internal It is only to see whether it comes up: `trusted` is then about its emulator and firmware only,
   * and no network takes the place of another. Default: false.
   */
  readonly boxed?: boolean | undefined;
  /** Change what this host has not, such as a machine type; otherwise it is refused. Default: false. */
  readonly adapt?: boolean | undefined;
  /** It is started at once. Default: false. */
  readonly starts?: boolean | undefined;
  /** @internal The command's options that ask for it, for messages: `--define`. Default: none. */
  readonly asked?: readonly string[] | undefined;
  /** @internal The last change to it, before it is compared with what the host has. */
  readonly adjust?: ((xml: string) => string) | undefined;
  /** Replace a file that exists at the XML's path. */
  readonly force: boolean;
  /** Flush the XML to stable storage. */
  readonly sync: boolean;
}

/** Leaves room in a file's name for what libvirt appends to it, such as `_VARS.fd`. */
const MAX_NAME_BYTES = 200;
/** Longer than any definition: libvirt itself takes no more than 4 MiB from a client. */
const MOST_BYTES = 4 * 1024 * 1024;

/**
 * The definition of a new domain on restored disks. `prepare` checks everything that could prevent it, before
 * anything is restored. `apply` writes and defines it, after the disks are restored.
 */
export class RestoredDefinition {
  readonly name: string;
  readonly uuid: string;
  readonly xmlPath: string;
  /** The domain's boot files, to be restored with the disks. */
  readonly files: readonly FileTarget[];
  /** What the user should know before starting the domain. */
  readonly warnings: readonly string[];
  /** What its network cards are connected to: `network default`, `bridge br0`. */
  readonly networks: readonly string[];
  /** What was changed in it because the host has not what it wanted. */
  readonly adapted: readonly Adaptation[];
  readonly #xml: string;
  readonly #options: RestoredDefinitionOptions;

  private constructor(
    facts: Pick<
      RestoredDefinition,
      "name" | "uuid" | "xmlPath" | "files" | "warnings" | "networks" | "adapted"
    >,
    xml: string,
    options: RestoredDefinitionOptions,
  ) {
    this.name = facts.name;
    this.uuid = facts.uuid;
    this.xmlPath = facts.xmlPath;
    this.files = facts.files;
    this.warnings = facts.warnings;
    this.networks = facts.networks;
    this.adapted = facts.adapted;
    this.#xml = xml;
    this.#options = options;
  }

  /**
   * Makes the definition. Leaves nothing that it has written.
   * @throws {PreconditionError} `E_NO_DEFINITION`: the point has no definition; `E_DOMAIN_EXISTS`: a domain
   *   has that name; `E_TARGET_IN_USE`: a QEMU has the XML's file open for writing;
   *   `E_STRANGERS`: others can write to the repository, and this is root;
   *   `E_UNTRUSTED_DEFINITION`: it is no virtual machine, and not trusted; `E_DEFINITION_REFUSED`: libvirt
   *   doesn't take it; `E_HOST_LACKS`: it wants what the host has not
   * @throws {UsageError} the name is invalid; the XML's file or that of a serial line exists; the XML's lies
   *   in the repository, or is a disk's, or can't be written
   * @throws {DamageError} the stored definition is not what was stored
   * @throws {BackupError} the stored definition can't be parsed; and as {@link Libvirt} does
   */
  static async prepare(options: RestoredDefinitionOptions): Promise<RestoredDefinition> {
    const { repository, domain, point, place, disks, filesIn, libvirt, trusted = false } = options;
    await repository.assertTrusted(domain);
    const stored = await readDefinition(options);
    const { keepIdentity = false } = options;
    const old = parseDomain(stored);
    if (keepIdentity && options.name !== undefined && options.name !== old.name) {
      const message = `--keep-identity keeps the name ${old.name} too: leave =${options.name} out`;
      throw new UsageError("E_DEFINE", message);
    }
    const name = keepIdentity ? old.name : (options.name ?? `${old.name}-restored`);
    refuseName(name, keepIdentity);
    const xmlPath = "file" in place ? place.file : join(place.folder, `${name}.xml`);
    if ([...disks.values()].some(({ path }) => path === resolve(xmlPath))) {
      throw new UsageError("E_DEFINE", `${xmlPath} is where a disk goes: name another file with --xml`);
    }
    await refuseInside(repository, xmlPath);
    await refuseTarget(xmlPath, options.force);
    // Into the folder of the disks, these are written first.
    if ("file" in place) await refuseUnwritable(xmlPath);
    if (keepIdentity && libvirt) await refuseOld(libvirt, old);
    if (await libvirt?.hasDomain(name)) {
      const message = `a domain ${name} already exists: nothing was restored. Choose another name with --define=NAME`;
      throw new PreconditionError("E_DOMAIN_EXISTS", message, { details: { domain: name } });
    }
    const files = bootFilesOf(point).map((file) => ({ file, path: pathOf(file, xmlPath, filesIn) }));
    const moved = new Map(files.map(({ file, path }) => [file.source ?? "", resolve(path)]));
    const emulators = trusted || !libvirt ? undefined : parseEmulators(await libvirt.capabilities());
    const lines = resolve(filesIn ?? dirname(xmlPath), name);
    const isFree = trusted && options.boxed !== true;
    const parts = { disks, files: moved, lines, trusted: isFree, programs: trusted, emulators };
    const made = restoredDomain(stored, name, { ...parts, keepsIdentity: keepIdentity });
    // libvirt appends to a file that is there, and replaces a socket.
    if (!options.force) for (const path of made.lines) await refuseTarget(path, false);
    const own = new Set([...[...disks.values()].map(({ path }) => path), ...moved.values()]);
    const adjusted = options.adjust?.(made.xml) ?? made.xml;
    const { adapt = false, starts = false, boxed: keepsNetworks = false } = options;
    const byHand = toWriteOnly(options.asked);
    const wanted = { name, own, starts, keepsNetworks, adapt, byHand };
    const fit = await (libvirt && fitToHost(adjusted, { libvirt, ...wanted }));
    const { xml, adapted } = fit ?? { xml: adjusted, adapted: [] };
    const left = await (libvirt && tryOut(libvirt, { name, xml, byHand }));
    const warnings = left === undefined ? made.warnings : [...made.warnings, left];
    const networks = networksOf(xml);
    return new RestoredDefinition(
      { ...made, warnings, networks, adapted, name, xmlPath, files },
      xml,
      options,
    );
  }

  /** As it is written, and defined. */
  get xml(): string {
    return this.#xml;
  }

  /**
   * Writes the XML and, if there is a `libvirt`, defines the domain.
   * @throws {BackupError} `E_DEFINE_FAILED`: the XML can't be written, or libvirt rejects it; the restored
   *   disks stay
   */
  async apply(): Promise<void> {
    const { libvirt, force, sync } = this.#options;
    const temporary = temporaryPathFor(this.xmlPath);
    try {
      await using files = new NewFiles();
      files.expect(temporary);
      await writeFile(temporary, this.#xml, { flag: "wx", flush: sync, mode: 0o600 });
      await publish([{ temporary, final: this.xmlPath }], { force, sync });
      files.keep();
    } catch (cause) {
      throw this.#failure(`its definition could not be written to ${this.xmlPath}`, cause);
    }
    // Without the signal: the disks are restored, and an interrupt would report that nothing was made.
    const steady = libvirt?.withSignal(undefined);
    if (!steady) return;
    let isThere: boolean;
    try {
      await using turn = await turnFor(this.uuid);
      void turn;
      isThere = await steady.hasDomain(this.uuid);
      if (!isThere) await steady.define(this.name, this.#xml);
    } catch (cause) {
      const byHand = `Define it by hand: virsh define ${shellWord(this.xmlPath)}`;
      throw this.#failure(`libvirt did not take its definition ${this.xmlPath}`, cause, byHand);
    }
    if (!isThere) return;
    const cause = new Error(`a domain of its UUID ${this.uuid} was made meanwhile`);
    const byHand = `To have that one run on these disks: virsh define ${shellWord(this.xmlPath)}`;
    throw this.#failure(`libvirt was not given its definition ${this.xmlPath}`, cause, byHand);
  }

  #failure(what: string, cause: unknown, next = ""): BackupError {
    const reason = messageOf(cause);
    const message =
      `the disks of ${this.name} were restored and stay, but ${what}: ${reason}. ${next}`.trim();
    return new BackupError("E_DEFINE_FAILED", message, {
      cause,
      details: { domain: this.name, xml: this.xmlPath },
    });
  }
}

/** @throws {UsageError} `E_DEFINE`: no file can be made beside `path`, from which it would get its name */
async function refuseUnwritable(path: string): Promise<void> {
  await using files = new NewFiles();
  const temporary = temporaryPathFor(path);
  files.expect(temporary);
  try {
    await writeFile(temporary, "", { flag: "wx", mode: 0o600 });
  } catch (cause) {
    const message = `the definition can't be written to ${path}: ${messageOf(cause)}. Nothing was restored: name another file with --xml`;
    throw new UsageError("E_DEFINE", message, { cause, details: { path } });
  }
}

/** @throws {PreconditionError} `E_DOMAIN_EXISTS`: the old domain is there, by its name or its UUID */
async function refuseOld(
  libvirt: Libvirt,
  { name, uuid }: { readonly name: string; readonly uuid: string },
): Promise<void> {
  for (const known of [uuid, name]) {
    if (!(await libvirt.hasDomain(known))) continue;
    const message = `${name} is there still (${known}), and two domains can't have one identity: nothing was restored. Remove its definition first (virsh undefine ${domainWord(known)} --checkpoints-metadata --keep-nvram, and --keep-tpm where it has a TPM; its disks stay), or leave --keep-identity out, which makes a domain that can run beside it`;
    throw new PreconditionError("E_DOMAIN_EXISTS", message, { details: { domain: name, uuid } });
  }
}

/**
 * Has libvirt take the definition under another name and forget it, before a long restore ends in a refusal.
 * @returns a warning
 * @throws {PreconditionError} `E_DEFINITION_REFUSED`
 */
async function tryOut(
  libvirt: Libvirt,
  { name, xml, byHand }: { readonly name: string; readonly xml: string; readonly byHand: string },
): Promise<string | undefined> {
  const trial = { name: `nbdpull-trial-${randomUUID().slice(0, 8)}`, uuid: randomUUID() };
  try {
    return await tryDefinition(libvirt, { ...trial, xml: renamed(xml, trial) });
  } catch (cause) {
    if (!hasCode(cause, "E_LIBVIRT_REFUSED")) throw cause;
    const message = `libvirt would not take the definition of ${name}: ${messageOf(cause)}. Nothing was restored. ${byHand} and given to \`virsh define\``;
    throw new PreconditionError("E_DEFINITION_REFUSED", message, { cause, details: { domain: name } });
  }
}

/**
 * The path for a boot file: under its own name in `filesIn`, otherwise beside the XML with the XML's name
 * before it.
 */
function pathOf({ file }: KeptFile, xmlPath: string, filesIn: string | undefined): string {
  if (filesIn !== undefined) return join(filesIn, file);
  return join(dirname(xmlPath), `${basename(xmlPath, ".xml")}.${file}`);
}

/** How to have a definition that is not taken as it is; the beginning of a sentence. */
function toWriteOnly(asked: readonly string[] = []): string {
  const others = asked.filter((option) => option !== "--xml" && option !== "--keep-identity");
  return `nbdpull restore with --xml FILE${others.length === 0 ? "" : ` and${without(others)}`} writes the definition, to be mended by hand`;
}

async function readDefinition(options: RestoredDefinitionOptions): Promise<string> {
  const { repository, domain, point, asked } = options;
  const next = `nothing was restored. The disks can be, by nbdpull restore${without(asked)}, for a domain that is defined by hand`;
  await using folder = await repository.openPoint(domain, point.id);
  // Earlier versions stored the definition without its digest.
  const kept = point.files?.find(({ role }) => role === "definition");
  const damage = kept && (await damageOf(folder, kept));
  if (damage !== undefined) {
    const message = `the definition of point ${point.id} is damaged (${damage}): ${next}`;
    throw new DamageError("E_DAMAGED", message, { details: { point: point.id, file: kept?.file } });
  }
  try {
    return (await folder.read("domain.xml", MOST_BYTES)).toString("utf8");
  } catch (cause) {
    if (!isMissing(cause)) throw cause;
    const message = `point ${point.id} of ${domain} has no definition of its domain, because libvirt was not asked for one when it was made: ${next}`;
    throw new PreconditionError("E_NO_DEFINITION", message, { cause, details: { domain, point: point.id } });
  }
}

/**
 * Throws if a domain can't have this name, which becomes the name of files here and in libvirt.
 * @throws {UsageError} `E_DEFINE`
 */
function refuseName(name: string, keepIdentity: boolean): void {
  const bytes = Buffer.byteLength(name);
  const isName = /^[^/\p{Cc}]+$/u.test(name) && !/^[-.]/.test(name);
  if (isName && bytes <= MAX_NAME_BYTES) return;
  const next = `${keepIdentity ? "Leave --keep-identity out, and choose" : "Choose"} another one with --define=NAME`;
  const message = isName
    ? `"${name}" has ${bytes} bytes, and the name of a restored domain can have at most ${MAX_NAME_BYTES} bytes. ${next}`
    : `"${name}" can't be the name of a domain: no slash, no control characters, nothing that begins with "-" or ".". ${next}`;
  throw new UsageError("E_DEFINE", message, { details: { domain: name } });
}
