import { DEFAULT_DIGESTS } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import { nbdpullRestore, qemuImgConvertChain } from "../contenders/stored.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const restoreCompressed: Workload = {
  name: "restore-compressed",
  title: "The newest of eleven compressed points, restored",
  about: "As restore-chain, of text in clusters compressed with deflate.",
  reference: "qemu-img convert raw",
  contenders: [
    qemuImgConvertChain("raw"),
    qemuImgConvertChain("raw", "-W", "-m", "16"),
    nbdpullRestore("raw"),
    nbdpullRestore("qcow2"),
  ],
  targets: [
    { contender: "nbdpull restore raw", metric: "wall", against: "qemu-img convert raw", atMost: 0.6 },
    ...boundedMemory("nbdpull restore raw", "nbdpull restore qcow2"),
  ],
  setUp: (stage) => storedScene(stage, { digests: DEFAULT_DIGESTS, content: "text", compress: "deflate" }),
};
