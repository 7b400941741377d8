import { nbdcopy } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByNbdkit } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

const MiB = 1024 * 1024;

export const limitedRate: Workload = {
  name: "limited-rate",
  title: "A server of 100 MiB/s",
  about:
    "256 MiB of data in a 512 MiB raw disk; nbdkit's rate filter, unix socket. All take as long as it takes: who costs least?",
  reference: "nbdcopy",
  contenders: [
    nbdcopy(),
    qemuImgConvert("raw", "-W", "-m", "16"),
    nbdpull("raw"),
    nbdpull("qcow2", "--digests"),
  ],
  targets: boundedMemory("nbdpull raw", "nbdpull qcow2 --digests"),
  setUp: async ({ folder, inputs }) => {
    const disk = await inputs.largeExtents({ format: "raw", bytes: 256 * MiB });
    // nbdkit counts bits. By default it lets a burst of two seconds' worth through after a pause.
    return await serveByNbdkit(disk, {
      folder,
      filters: ["rate"],
      settings: [`rate=${100 * MiB * 8}`, "burstiness=0.1"],
    });
  },
};
