import { BackupError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { ImageFormat } from "../image/image.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";

/** Longer than any definition: libvirt itself takes no more than 4 MiB from a client. */
const MOST_BYTES = 4 * 1024 * 1024;

/**
 * The format that each disk's image had on its host, by the disk's name: a qcow2 disk that comes back raw
 * could have no dirty bitmap any more. It is what the manifest has of the disk, or else the stored
 * definition. Where neither tells it, or it was another format, it is raw.
 * @param domain the name of its folder in the repository
 */
export async function originalFormats(
  repository: Repository,
  domain: string,
  point: Manifest,
): Promise<ReadonlyMap<string, ImageFormat>> {
  const isKnown = point.disks.every(({ identity }) => (identity?.format ?? null) !== null);
  const defined = isKnown ? new Map<string, string>() : await formatsInDefinition(repository, domain, point);
  return new Map(
    point.disks.map(({ name, identity }) => {
      const format = identity?.format ?? defined.get(name);
      return [name, format === "qcow2" ? "qcow2" : "raw"];
    }),
  );
}

/** A definition that is missing or damaged tells nothing. */
async function formatsInDefinition(
  repository: Repository,
  domain: string,
  point: Manifest,
): Promise<ReadonlyMap<string, string>> {
  await using folder = await repository.openPoint(domain, point.id);
  try {
    const xml = (await folder.read("domain.xml", MOST_BYTES)).toString("utf8");
    return new Map(parseDomain(xml).disks.map(({ target, format = "raw" }) => [target, format]));
  } catch (error) {
    if (isMissing(error) || error instanceof BackupError) return new Map();
    throw error;
  }
}
