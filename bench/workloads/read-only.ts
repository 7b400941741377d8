import { minimalClientToNull } from "../contenders/minimal-client.js";
import { nbdClientToNull } from "../contenders/nbd-client.js";
import { nbdcopyToNull } from "../contenders/nbdcopy.js";
import { qemuImgToNull } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const readOnly: Workload = {
  name: "read-only",
  title: "A whole disk, read and thrown away",
  about:
    "As full-raw, but nobody writes: the NBD clients by themselves. nbd-client-ts is our library in a loop of 30 lines, bench/programs/read-all.ts.",
  reference: "nbdcopy null:",
  contenders: [nbdcopyToNull(), qemuImgToNull("-W", "-m", "16"), minimalClientToNull(), nbdClientToNull()],
  targets: boundedMemory("nbd-client-ts"),
  setUp: async ({ folder, inputs }) =>
    await serveByQemuNbd(await inputs.largeExtents({ format: "qcow2" }), { folder }),
};
