import { nbdpullAttachToStore, uploadFile } from "../contenders/to-store.js";
import { serveByStorageDaemon } from "../servers.js";
import type { Workload } from "../workload.js";

const [attach, upload] = [nbdpullAttachToStore(), uploadFile()];
/** 96 MiB for what is on its way, beside what Node takes with AWS's SDK. */
const MEMORY_MIB = 192;

export const storeBackup: Workload = {
  name: "store-backup",
  title: "A whole disk of a job to an object store",
  about:
    "2 GiB of incompressible data in a 4 GiB qcow2 disk, by a unix socket to Ceph in memory on the same machine. nbdpull looks for zeroes and makes digests, in a repository that was made before; the upload sends the image as it is.",
  reference: upload.name,
  contenders: [upload, attach],
  targets: [
    { contender: attach.name, metric: "wall", against: upload.name, atMost: 1.3 },
    { contender: attach.name, metric: "rss", atMost: MEMORY_MIB },
  ],
  setUp: async ({ folder, inputs }) => {
    const disk = await inputs.largeExtents({ format: "qcow2" });
    return await serveByStorageDaemon(new Map([["vda", disk]]), { folder });
  },
};
