import type { DigestAlgorithm } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import { nbdpullVerify, sha256sum } from "../contenders/stored.js";
import type { Workload } from "../workload.js";

function verifyOf(name: string, digests: DigestAlgorithm): Workload {
  return {
    name,
    title: `Every byte of eleven points verified, with ${digests} digests`,
    about:
      "The chain of restore-chain, 1.6 GiB of images. sha256sum reads the same files and compares nothing.",
    reference: "sha256sum",
    contenders: [sha256sum(), nbdpullVerify()],
    targets: [],
    setUp: (stage) => storedScene(stage, { digests }),
  };
}

export const verify = verifyOf("verify", "xxh64");
export const verifySha256 = verifyOf("verify-sha256", "sha256");
