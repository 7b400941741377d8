import { nbdcopy, nbdcopyTuned } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const fullFromCompressed: Workload = {
  name: "full-from-compressed",
  title: "A whole disk that is a compressed qcow2 image",
  about:
    "512 MiB of text in a 1 GiB disk, stored in compressed clusters; qemu-nbd, which inflates them, unix socket.",
  reference: "nbdcopy",
  contenders: [nbdcopy(), nbdcopyTuned(), qemuImgConvert("raw", "-W", "-m", "16"), nbdpull("raw")],
  targets: boundedMemory("nbdpull raw"),
  setUp: async ({ folder, inputs }) =>
    await serveByQemuNbd(await inputs.compressed(512 * 1024 * 1024), { folder }),
};
