import { nbdcopy } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const zeroKnown: Workload = {
  name: "zero-known",
  title: "Nothing but zeroes, and the server says so",
  about:
    "An empty qcow2 disk of 20 GiB; qemu-nbd, unix socket. What a client costs before it has done anything.",
  reference: "nbdcopy",
  contenders: [
    nbdcopy(),
    qemuImgConvert("raw", "-W", "-m", "16"),
    nbdpull("raw"),
    nbdpull("qcow2", "--digests"),
  ],
  targets: boundedMemory("nbdpull raw", "nbdpull qcow2 --digests"),
  setUp: async ({ folder, inputs }) => await serveByQemuNbd(await inputs.zero(), { folder }),
};
