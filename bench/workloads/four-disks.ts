import { nbdcopyEachDisk } from "../contenders/nbdcopy.js";
import { nbdpullAttach } from "../contenders/nbdpull.js";
import type { Disk } from "../inputs.js";
import { serveByStorageDaemon } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const fourDisks: Workload = {
  name: "four-disks",
  title: "Four disks at once",
  about:
    "Four exports of one qemu-storage-daemon, 1 GiB of data in 2 GiB each, unix socket; all of them read the same image. nbdpull attach makes one restore point of qcow2 images.",
  reference: "nbdcopy for each disk",
  contenders: [
    nbdcopyEachDisk(),
    nbdpullAttach("--no-digests"),
    nbdpullAttach("--format", "raw"),
    nbdpullAttach(),
  ],
  targets: boundedMemory("nbdpull attach", "nbdpull attach --no-digests"),
  setUp: async ({ folder, inputs }) => {
    const disk = await inputs.largeExtents({ format: "qcow2", bytes: 1024 ** 3 });
    const disks = new Map<string, Disk>(["vda", "vdb", "vdc", "vdd"].map((name) => [name, disk]));
    return await serveByStorageDaemon(disks, { folder });
  },
};
