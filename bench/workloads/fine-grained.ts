import { minimalClient } from "../contenders/minimal-client.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { pythonLibnbd } from "../contenders/python-libnbd.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const fineGrained: Workload = {
  name: "fine-grained",
  title: "A bitmap with a granularity of 4 KiB",
  about: "20,000 dirty extents of 4 KiB all over a 4 GiB disk; qemu-nbd, unix socket.",
  reference: "minimal C client",
  contenders: [minimalClient(), pythonLibnbd(), nbdpull("raw"), nbdpull("raw", "--digests")],
  targets: boundedMemory("nbdpull raw", "nbdpull raw --digests"),
  setUp: async ({ folder, inputs }) => await serveByQemuNbd(await inputs.fineGrained(), { folder }),
};
