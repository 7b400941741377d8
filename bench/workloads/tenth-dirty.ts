import { minimalClient } from "../contenders/minimal-client.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { pythonLibnbd } from "../contenders/python-libnbd.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const tenthDirty: Workload = {
  name: "tenth-dirty",
  title: "A tenth of the disk has changed, in large extents",
  about: "4 GiB disk, a quarter of it data, extents of 16 MiB in the dirty bitmap; qemu-nbd, unix socket.",
  reference: "libnbd from Python",
  contenders: [pythonLibnbd(), minimalClient(), nbdpull("raw"), nbdpull("raw", "--digests")],
  targets: boundedMemory("nbdpull raw", "nbdpull raw --digests"),
  setUp: async ({ folder, inputs }) => await serveByQemuNbd(await inputs.tenthDirty(), { folder }),
};
