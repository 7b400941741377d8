import { DEFAULT_DIGESTS } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import { nbdpullPrune, qemuImgCommit } from "../contenders/pruning.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const prune: Workload = {
  name: "prune",
  title: "All but the last two of eleven points dropped",
  about:
    "The chain of restore-chain, copied for each run. nbdpull proves what it copies by its digests, writes digest files, and can be killed at any moment; qemu-img commit can't be undone half-way and leaves the newest point to be rebased by hand.",
  reference: "qemu-img commit",
  contenders: [qemuImgCommit(), nbdpullPrune()],
  targets: [
    { contender: "nbdpull prune", metric: "wall", against: "qemu-img commit", atMost: 2 },
    ...boundedMemory("nbdpull prune"),
  ],
  setUp: (stage) => storedScene(stage, { digests: DEFAULT_DIGESTS }),
};
