import { DamageError } from "../base/errors.js";
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
 * @throws {DamageError} a cluster is used more often than it can be
 */
export async function* singlyUsed(image: Qcow2Reader): AsyncGenerator<ClusterRun> {
  const { clusterSize } = image.geometry;
  const uses = new ClusterUses();
  // A stream is counted only in the cluster in which it begins, though it may end in the next one. No more
  // than `streamsIn` can begin in one cluster, so the one more is a margin.
  const most = streamsIn(clusterSize, image.header.compression) + 1;
  for await (const run of image.runs()) {
    for (let i = 0; i < run.count && run.kind !== "zero"; i += 1) {
      const cluster = run.cluster + i;
      if (run.kind === "data" && image.isCompressed(run.hostOffset)) {
        const host = Math.floor((await image.streamOf(cluster)).hostOffset / clusterSize);
        const fits = uses.share(host) && uses.of(host) <= most;
        if (!fits) throw overused(image, cluster, `more is in use at byte ${host * clusterSize} than fits`);
      } else if (run.kind === "data" || run.dataMask !== 0) {
        const hostOffset = run.hostOffset + i * clusterSize;
        const free = uses.claim(hostOffset / clusterSize, false);
        if (!free) throw overused(image, cluster, `the cluster at byte ${hostOffset} is in use for another`);
      }
    }
    yield run;
  }
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
