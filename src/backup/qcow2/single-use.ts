import { DamageError, PreconditionError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import type { ClusterRun } from "../image/image.js";
import type { Qcow2Reader } from "./reader.js";
import { ClusterUses } from "./refcounts.js";

/** The largest ratio of a cluster to its stream, and the fewest bytes of a stream. */
const MOST_SHRUNK = { deflate: 1032, zstd: Number.POSITIVE_INFINITY } as const;
const SHORTEST_STREAM = 8;

/**
 * The runs of an untrusted image, as long as each cluster of the file holds data of only one guest cluster,
 * or no more compressed streams than fit into it. Otherwise a small file could describe data of any length.
 * Within an active state QEMU never shares clusters. Memory: two bytes for each cluster in use.
 *
 * @throws {PreconditionError} `E_SHARED_CLUSTERS`: a cluster has several uses, and the image's refcount says
 *   so too: then some other program shares clusters that are equal
 * @throws {DamageError} a cluster is used more often than it can be, or than its refcount says
 */
export async function* singlyUsed(image: Qcow2Reader): AsyncGenerator<ClusterRun> {
  const { clusterSize } = image.geometry;
  const uses = new ClusterUses();
  // A stream is counted only in the cluster in which it begins, though it may end in the next one. No more
  // than `streamsIn` can begin in one cluster, so the one more is a margin.
  const most = streamsIn(clusterSize, image.header.compression) + 1;
  const table = image.sharedTable();
  if (table !== undefined) await refuseShared(image, table.cluster, table.hostOffset, 1);
  for await (const run of image.runs()) {
    for (let i = 0; i < run.count && run.kind !== "zero"; i += 1) {
      const cluster = run.cluster + i;
      if (run.kind === "data" && image.isCompressed(run.hostOffset)) {
        const host = Math.floor((await image.streamOf(cluster)).hostOffset / clusterSize);
        if (uses.share(host) && uses.of(host) <= most) continue;
        await refuseShared(image, cluster, host * clusterSize, most);
        throw overused(image, cluster, `more is in use at byte ${host * clusterSize} than fits`);
      } else if (run.kind === "data" || run.dataMask !== 0) {
        const hostOffset = run.hostOffset + i * clusterSize;
        if (uses.claim(hostOffset / clusterSize, false)) continue;
        await refuseShared(image, cluster, hostOffset, 1);
        throw overused(image, cluster, `the cluster at byte ${hostOffset} is in use for another`);
      }
    }
    yield run;
  }
}

/**
 * @param most uses that the cluster at `hostOffset` of the file can have unless clusters are shared
 * @throws {PreconditionError} its refcount is higher
 */
async function refuseShared(
  image: Qcow2Reader,
  cluster: number,
  hostOffset: number,
  most: number,
): Promise<void> {
  const refcount = await image.refcountAt(hostOffset);
  if (refcount <= most) return;
  const guestOffset = cluster * image.geometry.clusterSize;
  const { path } = image;
  const message = `${path}: at guest offset ${guestOffset}, the cluster at byte ${hostOffset} of the file is shared with other places of the disk (refcount ${refcount}), as some programs do with equal data, and such images are not read: nothing was stored. Make one with clusters of its own, and import that: qemu-img convert -O qcow2 ${shellWord(path)} UNSHARED.qcow2`;
  throw new PreconditionError("E_SHARED_CLUSTERS", message, { details: { path, guestOffset, refcount } });
}

function streamsIn(clusterSize: number, method: "deflate" | "zstd"): number {
  const shortest = Math.max(SHORTEST_STREAM, clusterSize / MOST_SHRUNK[method]);
  return Math.ceil(clusterSize / shortest);
}

function overused({ path, geometry }: Qcow2Reader, cluster: number, problem: string): DamageError {
  const guestOffset = cluster * geometry.clusterSize;
  return new DamageError("E_QCOW2_ENTRY", `${path}: at guest offset ${guestOffset}, ${problem}`, {
    details: { path, guestOffset, problem },
  });
}
