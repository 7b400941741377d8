import { nbdcopy } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveUnknownZeroes } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const zeroUnknown: Workload = {
  name: "zero-unknown",
  title: "Nothing but zeroes, and the client has to find out",
  about: "20 GiB of zeroes from nbdkit's null plugin, which calls them data; unix socket.",
  reference: "nbdcopy",
  contenders: [
    nbdcopy(),
    qemuImgConvert("raw", "-W", "-m", "16"),
    nbdpull("raw"),
    nbdpull("qcow2", "--digests"),
  ],
  targets: boundedMemory("nbdpull raw", "nbdpull qcow2 --digests"),
  setUp: async ({ folder, inputs }) => await serveUnknownZeroes(await inputs.zero(), { folder }),
};
