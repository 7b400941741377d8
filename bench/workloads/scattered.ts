import { minimalClient } from "../contenders/minimal-client.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { pythonLibnbd } from "../contenders/python-libnbd.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const scattered: Workload = {
  name: "scattered",
  title: "Scattered changes",
  about: "6,000 dirty extents of 64 KiB all over a 4 GiB disk; qemu-nbd, unix socket.",
  reference: "minimal C client",
  contenders: [
    minimalClient(),
    pythonLibnbd(),
    nbdpull("raw"),
    nbdpull("raw", "--digests"),
    nbdpull("raw", "--connections", "2"),
  ],
  targets: [
    { contender: "nbdpull raw", metric: "wall", against: "libnbd from Python", atMost: 0.5 },
    { contender: "nbdpull raw", metric: "wall", against: "minimal C client", atMost: 1.3 },
    { contender: "nbdpull raw", metric: "cpu", against: "minimal C client", atMost: 1.8 },
    ...boundedMemory("nbdpull raw", "nbdpull raw --digests"),
  ],
  setUp: async ({ folder, inputs }) => await serveByQemuNbd(await inputs.scattered(), { folder }),
};
