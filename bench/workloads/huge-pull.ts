import { minimalClientToNull } from "../contenders/minimal-client.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const hugePull: Workload = {
  name: "huge-pull",
  title: "An increment of a huge sparse disk",
  about:
    "1 TiB, 200,000 extents of 64 KiB in the dirty bitmap, all of them zeroed since; qemu-nbd, unix socket. The minimal client knows no zeroes: it reads them all, and throws them away.",
  reference: "minimal C client -n",
  contenders: [minimalClientToNull(), nbdpull("raw"), nbdpull("qcow2", "--digests")],
  targets: boundedMemory("nbdpull raw", "nbdpull qcow2 --digests"),
  setUp: async ({ folder, inputs }) => await serveByQemuNbd(await inputs.huge(), { folder }),
};
