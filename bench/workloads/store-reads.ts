import { DEFAULT_DIGESTS } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import { randomGets, randomReads } from "../contenders/random-reads.js";
import type { Workload } from "../workload.js";

const [gets, cold, cached] = [randomGets(), randomReads(), randomReads({ cache: true })];
const READ_MS = 3;

export const storeReads: Workload = {
  name: "store-reads",
  title: "Reads at random places of a point that is served from an object store",
  about:
    "The newest point of restore-chain, in Ceph in memory on the same machine; 64 KiB at each of 400 places that have data, one after the other, by our client library over a unix socket. Wall time has the start of the server in it, which reads all tables and digest files; a read is what the last column is about. Each is proven by its digest. With a cache, all places were read once before. The SDK asks for ranges of the full image, and compares nothing.",
  reference: gets.name,
  contenders: [gets, cold, cached],
  targets: [cold, cached].map(({ name }) => ({ contender: name, metric: "read" as const, atMost: READ_MS })),
  setUp: (stage) => storedScene(stage, { digests: DEFAULT_DIGESTS }),
};
