import { hasCode, PreconditionError } from "../base/errors.js";
import { closeAll } from "../base/in-parallel.js";
import { domainWord, shellWord } from "../base/shell-word.js";
import type { ImageFormat } from "../image/image.js";
import { parseCheckpoint } from "../libvirt/documents/checkpoint-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Manifest } from "../repository/manifest.js";
import { refuseRawInStore } from "../repository/refuse-store.js";
import { Repository } from "../repository/repository.js";
import { ForeignImage } from "./foreign-image.js";
import type { TakePointOptions, TakeSettings } from "./take-options.js";
import { type TakenPoint, takePoint } from "./take-point.js";

export interface ImageToImport {
  /** The disk's target in the domain, `vda`. */
  readonly disk: string;
  readonly path: string;
  readonly format: ImageFormat;
  /** Whether the user named the format; if not, a raw image that begins like qcow2 is refused. */
  readonly formatAsked: boolean;
}

export interface ImportOptions extends Omit<TakeSettings, "connect"> {
  /** Images of the same moment. */
  readonly images: readonly ImageToImport[];
  readonly repositoryPath: string;
  /** As root too, write to a repository that other users can write to; default: refuse it (`E_STRANGERS`). */
  readonly trustRepository?: boolean | undefined;
  /** The domain's name; with `libvirt`, its UUID or the number of its run too. */
  readonly domain: string;
  /** The domain's UUID; undefined: what libvirt says, if it is asked, or unknown. */
  readonly uuid?: string | undefined;
  /** The checkpoint of the images' moment; without it the point can't be a base for increments. */
  readonly checkpoint?: string | undefined;
  /** Used to look up the checkpoint; undefined: libvirt is not asked. */
  readonly libvirt?: Libvirt | undefined;
  /** Fail if libvirt does not answer, instead of continuing without the checkpoint's creation time. */
  readonly needLibvirt: boolean;
}

/**
 * Takes full images that another program made as one restore point, as if they had been pulled. The images
 * are only read, and must not change meanwhile.
 *
 * @throws {PreconditionError} an image does not exist or has a backing file, or libvirt does not know the
 *   checkpoint
 * @throws {UsageError} an image is not a plain file, or its format is in doubt
 * @throws {DamageError} an image is damaged
 * @throws {BackupError} an image can't be read, or was changed meanwhile
 * @throws as `takePoint` does
 */
export async function importImages(options: ImportOptions): Promise<TakenPoint> {
  refuseRawInStore(options.repositoryPath, options.format);
  const sources: { readonly name: string; readonly source: ForeignImage; readonly reason: string }[] = [];
  try {
    for (const { disk, path, format, formatAsked } of options.images) {
      const source = await ForeignImage.open(path, format, formatAsked);
      sources.push({ name: disk, source, reason: `imported from ${path}` });
      for (const warning of source.warnings) options.onWarning?.(warning);
    }
    const { domain, checkpoint } = await originOf(options);
    const { images: _, domain: __, uuid: ___, checkpoint: ____, ...rest } = options;
    return await takePoint({
      ...rest,
      repository: await Repository.openOrCreate(options.repositoryPath, {
        trusted: options.trustRepository,
        signal: options.signal,
        onWarning: options.onWarning,
      }),
      domain,
      checkpoint,
      disks: sources,
      connect: {},
      confirm: async () => {
        for (const { source } of sources) await source.assertUnchanged();
      },
    });
  } finally {
    await closeAll(...sources.map(({ source }) => source));
  }
}

interface Origin {
  readonly domain: TakePointOptions["domain"];
  readonly checkpoint: Manifest["checkpoint"];
}

async function originOf(options: ImportOptions): Promise<Origin> {
  const { domain, checkpoint, libvirt, needLibvirt } = options;
  const uuid = options.uuid?.toLowerCase() ?? null;
  if (checkpoint === undefined) {
    options.onWarning?.("no --checkpoint was given: this point will be no base for increments");
    return { domain: { name: domain, uuid }, checkpoint: null };
  }
  try {
    if (libvirt) return await originByLibvirt(libvirt, checkpoint, options);
  } catch (error) {
    const silent = ["E_LIBVIRT", "E_LIBVIRT_ACCESS", "E_LIBVIRT_TIMEOUT"].some((code) =>
      hasCode(error, code),
    );
    if (needLibvirt || !silent) throw error;
  }
  const message = `libvirt was not asked about the checkpoint ${checkpoint}: an increment will be matched by its name alone`;
  options.onWarning?.(message);
  return { domain: { name: domain, uuid }, checkpoint: { name: checkpoint, creationTime: null } };
}

/** @throws {PreconditionError} no such domain or checkpoint, or the checkpoint lacks one of the disks */
async function originByLibvirt(
  libvirt: Libvirt,
  checkpoint: string,
  { domain, images, uuid: asked }: ImportOptions,
): Promise<Origin> {
  const uuid = await libvirt.domainUuid(domain);
  if (asked !== undefined && asked.toLowerCase() !== uuid) {
    const message = `libvirt's domain ${domain} has the UUID ${uuid}, not ${asked}: leave --uuid out, or give --offline if its images are another's`;
    throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { domain, uuid } });
  }
  const name = await libvirt.domainName({ uuid, name: domain });
  const { creationTime, disks } = parseCheckpoint(await libvirt.checkpointXml({ uuid, name }, checkpoint));
  for (const { disk } of images) {
    if (disks.some((known) => known.name === disk && known.bitmap !== undefined)) continue;
    const message = `the checkpoint ${checkpoint} of ${name} has no disk ${disk}, so no increment can be based on it: see virsh checkpoint-dumpxml ${domainWord(name)} ${shellWord(checkpoint)}, or leave --checkpoint out`;
    throw new PreconditionError("E_CHECKPOINT_DISK", message, {
      details: { domain: name, checkpoint, disk },
    });
  }
  return { domain: { name, uuid }, checkpoint: { name: checkpoint, creationTime } };
}
