import { DEFAULT_DIGESTS } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import {
  downloadAndConvert,
  nbdpullRestoreFromStore,
  nbdpullVerifyInStore,
} from "../contenders/from-store.js";
import type { Workload } from "../workload.js";

const REFERENCE = "SDK download, qemu-img convert";
const [restore, verify] = [nbdpullRestoreFromStore(), nbdpullVerifyInStore()];
/** With AWS's SDK. */
const MEMORY_MIB = 192;

export const storeRestore: Workload = {
  name: "store-restore",
  title: "The newest of eleven points, restored from an object store",
  about:
    "The chain of restore-chain, in Ceph in memory on the same machine. nbdpull proves every byte by its digest; verify reads all points.",
  reference: REFERENCE,
  contenders: [downloadAndConvert(), restore, verify],
  targets: [
    { contender: restore.name, metric: "wall", against: REFERENCE, atMost: 1.3 },
    { contender: restore.name, metric: "rss", atMost: MEMORY_MIB },
    { contender: verify.name, metric: "rss", atMost: MEMORY_MIB },
  ],
  setUp: (stage) => storedScene(stage, { digests: DEFAULT_DIGESTS }),
};
