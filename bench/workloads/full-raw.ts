import { cp } from "../contenders/cp.js";
import { minimalClient } from "../contenders/minimal-client.js";
import { nbdcopy, nbdcopyTuned } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { pythonLibnbd } from "../contenders/python-libnbd.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

const WIDE = "qemu-img convert raw -W -m 16";

export const fullRaw: Workload = {
  name: "full-raw",
  title: "A whole disk to a raw image",
  about: "2 GiB of incompressible data in a 4 GiB qcow2 disk, extents of 64 MiB; qemu-nbd, unix socket.",
  reference: "nbdcopy",
  contenders: [
    nbdcopy(),
    nbdcopyTuned(),
    qemuImgConvert("raw", "-W", "-m", "16"),
    minimalClient(),
    pythonLibnbd(),
    cp(),
    nbdpull("raw"),
    nbdpull("raw", "--digests"),
  ],
  targets: [
    { contender: "nbdpull raw", metric: "wall", against: "nbdcopy", atMost: 0.8 },
    { contender: "nbdpull raw", metric: "cpu", against: "nbdcopy", atMost: 0.8 },
    { contender: "nbdpull raw", metric: "wall", against: "nbdcopy tuned", atMost: 0.95 },
    { contender: "nbdpull raw", metric: "wall", against: "cp --sparse=always", atMost: 1.25 },
    { contender: "nbdpull raw --digests", metric: "wall", against: "cp --sparse=always", atMost: 1.5 },
    { contender: "nbdpull raw --digests", metric: "wall", against: "nbdcopy", atMost: 1 },
    { contender: "nbdpull raw", metric: "wall", against: WIDE, atMost: 0.8 },
    ...boundedMemory("nbdpull raw", "nbdpull raw --digests"),
  ],
  setUp: async ({ folder, inputs }) =>
    await serveByQemuNbd(await inputs.largeExtents({ format: "qcow2" }), { folder }),
};
