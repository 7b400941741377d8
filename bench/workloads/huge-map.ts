import { nbdinfoMap } from "../contenders/nbdinfo.js";
import { nbdpullMap } from "../contenders/nbdpull.js";
import { serveByQemuNbd } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const hugeMap: Workload = {
  name: "huge-map",
  title: "The map of a huge sparse disk",
  about: "1 TiB, 200,000 extents in the dirty bitmap, printed as JSON; qemu-nbd, unix socket.",
  reference: "nbdinfo --map",
  contenders: [nbdinfoMap(), nbdpullMap()],
  targets: [
    { contender: "nbdpull map", metric: "wall", against: "nbdinfo --map", atMost: 1 },
    ...boundedMemory("nbdpull map"),
  ],
  setUp: async ({ folder, inputs }) => await serveByQemuNbd(await inputs.huge(), { folder }),
};
