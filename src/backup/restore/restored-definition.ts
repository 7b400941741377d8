import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { BackupError, DamageError, messageOf, PreconditionError, UsageError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import { NewFiles } from "../host/new-files.js";
import { publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import { parseDomain } from "../libvirt/domain-xml.js";
import { type RestoredPlace, restoredDomain } from "../libvirt/restored-domain.js";
import type { Virsh } from "../libvirt/virsh.js";
import { bootFilesOf, damageOf } from "../repository/kept-files.js";
import type { KeptFile, Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { refuseInside } from "./restore.js";
import type { FileTarget } from "./restored-files.js";

export interface RestoredDefinitionOptions {
  readonly repository: Repository;
  /** By its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  /** Of the new domain; default is the old one's and `-restored`. */
  readonly name?: string | undefined;
  /** Where its XML goes; a folder of files gets `NAME.xml`. */
  readonly place: { readonly folder: string } | { readonly file: string };
  /** Of the restored disks, by their names in the domain. */
  readonly disks: ReadonlyMap<string, RestoredPlace>;
  /** Where the files go that it starts with, by their own names; left out: beside the XML, by its name and theirs. */
  readonly filesIn?: string | undefined;
  /** Where the domain is to be defined; left out: its XML is only written. */
  readonly virsh?: Virsh | undefined;
  /** Replace the file that is at the XML's path. */
  readonly force: boolean;
  readonly sync: boolean;
}

/** Room for the `_VARS.fd` and the like that libvirt makes of it. */
const MAX_NAME_BYTES = 200;

/** A new domain on restored disks: all that can be in its way is asked before anything is restored. */
export class RestoredDefinition {
  readonly name: string;
  readonly uuid: string;
  readonly xmlPath: string;
  /** What the domain starts with: to be restored along with the disks. */
  readonly files: readonly FileTarget[];
  /** What whoever starts it should know. */
  readonly warnings: readonly string[];
  readonly #xml: string;
  readonly #options: RestoredDefinitionOptions;

  private constructor(
    facts: Pick<RestoredDefinition, "name" | "uuid" | "xmlPath" | "files" | "warnings">,
    xml: string,
    options: RestoredDefinitionOptions,
  ) {
    this.name = facts.name;
    this.uuid = facts.uuid;
    this.xmlPath = facts.xmlPath;
    this.files = facts.files;
    this.warnings = facts.warnings;
    this.#xml = xml;
    this.#options = options;
  }

  /**
   * @throws {PreconditionError} the point has no definition, or there is a domain of that name
   * @throws {UsageError} the name is none, or the XML's file exists
   * @throws {BackupError} the stored definition makes no sense; as {@link Virsh} does
   */
  static async prepare(options: RestoredDefinitionOptions): Promise<RestoredDefinition> {
    const { repository, point, place, disks, filesIn, virsh } = options;
    const stored = await readDefinition(options);
    const name = options.name ?? `${parseDomain(stored).name}-restored`;
    refuseName(name);
    const xmlPath = "file" in place ? place.file : join(place.folder, `${name}.xml`);
    if ([...disks.values()].some(({ path }) => path === resolve(xmlPath))) {
      throw new UsageError("E_DEFINE", `${xmlPath} is where a disk goes: name another file with --xml`);
    }
    await refuseInside(repository, xmlPath);
    await refuseTarget(xmlPath, options.force);
    if (await virsh?.hasDomain(name)) {
      const message = `there is a domain ${name} already: nothing was restored. Choose another name with --define=NAME`;
      throw new PreconditionError("E_DOMAIN_EXISTS", message, { details: { domain: name } });
    }
    const files = bootFilesOf(point).map((file) => ({ file, path: placeOf(file, xmlPath, filesIn) }));
    const moved = new Map(files.map(({ file, path }) => [file.source ?? "", resolve(path)]));
    const { xml, uuid, warnings } = restoredDomain(stored, name, disks, moved);
    return new RestoredDefinition({ name, uuid, xmlPath, files, warnings }, xml, options);
  }

  /**
   * Writes the XML, and defines the domain where that was asked for.
   * @throws {BackupError} the XML can't be written, or libvirt does not take it: the restored disks stay
   */
  async apply(): Promise<void> {
    const { virsh, force, sync } = this.#options;
    const temporary = temporaryPathFor(this.xmlPath);
    try {
      await using files = new NewFiles();
      files.expect(temporary);
      await writeFile(temporary, this.#xml, { flag: "wx", flush: sync, mode: 0o640 });
      await publish([{ temporary, final: this.xmlPath }], { force, sync });
      files.keep();
    } catch (cause) {
      throw this.#failure(`its definition could not be written to ${this.xmlPath}`, cause);
    }
    try {
      // The disks are there: who interrupts now must not be told that nothing was made.
      await virsh?.withSignal(undefined).define(this.name, this.xmlPath);
    } catch (cause) {
      const byHand = `Define it by hand: virsh define ${this.xmlPath}`;
      throw this.#failure(`libvirt did not take its definition ${this.xmlPath}`, cause, byHand);
    }
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

/** What the new domain starts with never lies where the old one's does. */
function placeOf({ file }: KeptFile, xmlPath: string, filesIn: string | undefined): string {
  if (filesIn !== undefined) return join(filesIn, file);
  return join(dirname(xmlPath), `${basename(xmlPath, ".xml")}.${file}`);
}

async function readDefinition({ repository, domain, point }: RestoredDefinitionOptions): Promise<string> {
  const folder = repository.pointFolder(domain, point.id);
  // Earlier versions stored it without its digest.
  const kept = point.files?.find(({ role }) => role === "definition");
  const damage = kept && (await damageOf(folder, kept));
  if (damage !== undefined) {
    const message = `the definition of point ${point.id} is damaged (${damage}): nothing was restored. Restore without --define and --xml, and define a domain by hand`;
    throw new DamageError("E_DAMAGED", message, { details: { point: point.id, file: kept?.file } });
  }
  try {
    return await readFile(join(folder, "domain.xml"), "utf8");
  } catch (cause) {
    if (!isMissing(cause)) throw cause;
    const message = `point ${point.id} of ${domain} has no definition of its domain (libvirt was not asked for it then): nothing was restored. Restore without --define, and define a domain by hand`;
    throw new PreconditionError("E_NO_DEFINITION", message, { cause, details: { domain, point: point.id } });
  }
}

/** It becomes a file's name here and in libvirt. */
function refuseName(name: string): void {
  const isName =
    /^[^/\p{Cc}]+$/u.test(name) && !/^[-.]/.test(name) && Buffer.byteLength(name) <= MAX_NAME_BYTES;
  if (isName) return;
  const message = `"${name}" can't be the name of a domain: no slash, no control characters, nothing that begins with "-" or "."`;
  throw new UsageError("E_DEFINE", message, { details: { domain: name } });
}
