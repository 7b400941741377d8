import { join } from "node:path";
import { makeCertificates } from "../certificates.js";
import { nbdcopy } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { qemuImgConvert } from "../contenders/qemu-img.js";
import { serveByQemuNbd } from "../servers.js";
import type { Workload } from "../workload.js";

export const tls: Workload = {
  name: "tls",
  title: "A whole disk over TLS",
  about:
    "1 GiB of data in a 2 GiB qcow2 disk; qemu-nbd over TCP on this machine, certificates on both sides.",
  reference: "nbdcopy",
  contenders: [nbdcopy(), qemuImgConvert("raw", "-W", "-m", "16"), nbdpull("raw")],
  targets: [
    { contender: "nbdpull raw", metric: "wall", against: "nbdcopy", atMost: 0.9 },
    { contender: "nbdpull raw", metric: "rss", atMost: 100 },
  ],
  setUp: async ({ folder, inputs }) => {
    const certificates = await makeCertificates(join(folder, "certificates"));
    const disk = await inputs.largeExtents({ format: "qcow2", bytes: 1024 ** 3 });
    return await serveByQemuNbd(disk, { folder, over: "tcp", tls: certificates });
  },
};
