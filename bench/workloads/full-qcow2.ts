import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const fullQcow2: Workload = {
  name: "full-qcow2",
  title: "A whole disk to a qcow2 image, with digests and without",
  about: "2 GiB of incompressible data in a 4 GiB qcow2 disk, extents of 64 MiB; qemu-nbd, unix socket.",
  reference: "qemu-img convert qcow2",
  contenders: [
    qemuImgConvert("qcow2"),
    qemuImgConvert("qcow2", "-W", "-m", "16"),
    nbdpull("qcow2"),
    nbdpull("qcow2", "--digests"),
    nbdpull("qcow2", "--digests=xxh64"),
  ],
  targets: [
    { contender: "nbdpull qcow2 --digests", metric: "wall", against: "qemu-img convert qcow2", atMost: 0.8 },
    ...boundedMemory("nbdpull qcow2", "nbdpull qcow2 --digests"),
  ],
  setUp: async ({ folder, inputs }) =>
    await serveByQemuNbd(await inputs.largeExtents({ format: "qcow2" }), { folder }),
};
