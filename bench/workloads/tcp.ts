import { minimalClient } from "../contenders/minimal-client.js";
import { nbdcopy, nbdcopyTuned } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { vatesNbdClient } from "../contenders/vates.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const tcp: Workload = {
  name: "tcp",
  title: "A whole disk over TCP",
  about: "As full-raw, over TCP on this machine.",
  reference: "nbdcopy",
  contenders: [
    nbdcopy(),
    nbdcopyTuned(),
    qemuImgConvert("raw", "-W", "-m", "16"),
    minimalClient(),
    vatesNbdClient(),
    nbdpull("raw"),
  ],
  targets: boundedMemory("nbdpull raw"),
  setUp: async ({ folder, inputs }) =>
    await serveByQemuNbd(await inputs.largeExtents({ format: "qcow2" }), { folder, over: "tcp" }),
};
