import { DEFAULT_DIGESTS } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import { nbdpullRestore, qemuImgConvertChain } from "../contenders/stored.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const restoreChain: Workload = {
  name: "restore-chain",
  title: "The newest of eleven points, restored",
  about:
    "A full point with 1 GiB of random data in a 2 GiB disk, and ten increments of 64 MiB in pieces of 128 KiB. nbdpull proves every byte by its digest.",
  reference: "qemu-img convert raw",
  contenders: [
    qemuImgConvertChain("raw"),
    qemuImgConvertChain("raw", "-W", "-m", "16"),
    qemuImgConvertChain("qcow2"),
    nbdpullRestore("raw"),
    nbdpullRestore("qcow2"),
  ],
  targets: [
    { contender: "nbdpull restore raw", metric: "wall", against: "qemu-img convert raw", atMost: 1 },
    { contender: "nbdpull restore qcow2", metric: "wall", against: "qemu-img convert qcow2", atMost: 1 },
    ...boundedMemory("nbdpull restore raw", "nbdpull restore qcow2"),
  ],
  setUp: (stage) => storedScene(stage, { digests: DEFAULT_DIGESTS }),
};
