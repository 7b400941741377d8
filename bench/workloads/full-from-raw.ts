import { minimalClient } from "../contenders/minimal-client.js";
import { nbdcopy, nbdcopyTuned } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const fullFromRaw: Workload = {
  name: "full-from-raw",
  title: "A whole disk that is a raw file",
  about: "As full-raw, but what qemu-nbd serves is a sparse raw file.",
  reference: "nbdcopy",
  contenders: [
    nbdcopy(),
    nbdcopyTuned(),
    qemuImgConvert("raw", "-W", "-m", "16"),
    minimalClient(),
    nbdpull("raw"),
  ],
  targets: boundedMemory("nbdpull raw"),
  setUp: async ({ folder, inputs }) =>
    await serveByQemuNbd(await inputs.largeExtents({ format: "raw" }), { folder }),
};
