import { type Finished, publish } from "../host/publish.js";
import type { Geometry, ImageWriter } from "../image/image.js";
import { createImage } from "../pull/create-image.js";
import type { PointServer } from "../serve/serve.js";

const CLUSTER_BYTES = 64 * 1024;
/** Of a larger disk the zeroes are not noted: its tables would take longer than a start may. */
const MOST_NOTED = 1024 ** 4;

/**
 * Makes a qcow2 image without data for each disk, based on its export. Its header says that the base is raw,
 * so libvirt follows it without looking into the base. The definition need not name the base too: what it
 * said would be wrong after the disk is filled, for a guest that starts before anybody has mended it.
 * @param images where each is made, and the name under which it is made
 * @throws {UsageError} a file exists that must not be replaced
 * @throws the file system's error
 */
export async function makeOverlays(
  server: PointServer,
  images: readonly { readonly disk: string; readonly path: string; readonly temporary: string }[],
  options: {
    readonly force: boolean;
    /** Note in the image what is zero in the export, so that the guest's QEMU need not ask for it. */
    readonly notesZeroes: boolean;
    /** Called when all are whole, before they get their names. */
    readonly beforeNames?: ((finished: readonly Finished[]) => Promise<void>) | undefined;
  },
): Promise<void> {
  const finished: Finished[] = [];
  for (const { disk, path, temporary } of images) {
    const served = server.disks.find((each) => each.disk === disk);
    if (!served) throw new RangeError(`${disk} is not served`);
    const geometry = { virtualSize: served.virtualSize, clusterSize: CLUSTER_BYTES };
    const backing = { name: served.uri, format: "raw" } as const;
    const writer = await createImage(temporary, { format: "qcow2", geometry, backing });
    try {
      if (options.notesZeroes && served.virtualSize <= MOST_NOTED)
        noteZeroes(writer, server.zeroes(disk), geometry);
      await writer.finish({ sync: true });
    } finally {
      await writer.close();
    }
    finished.push({ temporary, final: path });
  }
  await options.beforeNames?.(finished);
  await publish(finished, { force: options.force, sync: true });
}

function noteZeroes(
  writer: ImageWriter,
  zeroes: Iterable<{ readonly offset: number; readonly length: number }>,
  { virtualSize, clusterSize }: Geometry,
): void {
  for (const { offset, length } of zeroes) {
    const first = Math.ceil(offset / clusterSize);
    const end = offset + length;
    // The last cluster may reach beyond the end of the disk.
    const behind = end === virtualSize ? Math.ceil(end / clusterSize) : Math.floor(end / clusterSize);
    if (behind > first) writer.addRun({ kind: "zero", cluster: first, count: behind - first });
  }
}
