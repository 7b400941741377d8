import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

const TWO_THREADS = "qemu-img convert qcow2 -c -m 2";

export const toCompressed: Workload = {
  name: "to-compressed",
  title: "A whole disk to a compressed qcow2 image",
  about: "256 MiB of text in a 512 MiB qcow2 disk; qemu-nbd, unix socket; deflate in all of them.",
  reference: TWO_THREADS,
  contenders: [
    qemuImgConvert("qcow2", "-c", "-m", "2"),
    qemuImgConvert("qcow2", "-c", "-W", "-m", "16"),
    nbdpull("qcow2", "--compress=deflate"),
    nbdpull("qcow2", "--compress=deflate", "--digests"),
  ],
  targets: [
    { contender: "nbdpull qcow2 --compress=deflate", metric: "wall", against: TWO_THREADS, atMost: 0.9 },
    ...boundedMemory("nbdpull qcow2 --compress=deflate", "nbdpull qcow2 --compress=deflate --digests"),
  ],
  setUp: async ({ folder, inputs }) => {
    const disk = await inputs.largeExtents({ format: "qcow2", content: "text", bytes: 256 * 1024 * 1024 });
    return await serveByQemuNbd(disk, { folder });
  },
};
