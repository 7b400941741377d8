import { minimalClient } from "../contenders/minimal-client.js";
import { nbdcopy } from "../contenders/nbdcopy.js";
import { nbdpull } from "../contenders/nbdpull.js";
import { serveByNbdkit } from "../servers.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

const MANY = ["--connections=4", "--requests=64"] as const;
const MANY_NAME = "nbdcopy 4 × 64";

export const latency: Workload = {
  name: "latency",
  title: "A server with a latency of 5 ms",
  about:
    "1 GiB of data in a 2 GiB raw disk; nbdkit delays every read and every question for extents by 5 ms, up to 64 of a connection at once; unix socket. nbdcopy 4 × 64 has four connections with 64 requests each.",
  reference: MANY_NAME,
  contenders: [
    { ...nbdcopy(...MANY), name: MANY_NAME },
    nbdcopy(),
    minimalClient(),
    nbdpull("raw"),
    nbdpull("raw", "--connections", "4"),
  ],
  targets: [
    { contender: "nbdpull raw", metric: "wall", against: MANY_NAME, atMost: 1.1 },
    { contender: "nbdpull raw --connections 4", metric: "wall", against: MANY_NAME, atMost: 1.1 },
    ...boundedMemory("nbdpull raw", "nbdpull raw --connections 4"),
  ],
  setUp: async ({ folder, inputs }) => {
    const disk = await inputs.largeExtents({ format: "raw", bytes: 1024 ** 3 });
    return await serveByNbdkit(disk, {
      folder,
      filters: ["delay"],
      settings: ["rdelay=5ms", "delay-extents=5ms"],
    });
  },
};
