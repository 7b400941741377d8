import type { DigestAlgorithm } from "../../src/backup/index.js";
import { storedScene } from "../chains.js";
import { nbdpullVerify, readByAllCores, sha256sum } from "../contenders/stored.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

const [read, proven] = [readByAllCores(), readByAllCores("--sha256")];
const verified = nbdpullVerify();

/** @param yardstick what a verification with these digests is to be as fast as */
function verifyOf(name: string, digests: DigestAlgorithm, yardstick: string): Workload {
  return {
    name,
    title: `Every byte of eleven points verified, with ${digests} digests`,
    about:
      "The chain of restore-chain, 1.6 GiB of images. The others read the same files and compare nothing: sha256sum, with one processor; a program that reads with all processors, 16 MiB at a time; and the same program with SHA-256.",
    reference: read.name,
    contenders: [read, proven, sha256sum(), verified],
    targets: [
      { contender: verified.name, metric: "wall", against: yardstick, atMost: 1 },
      ...boundedMemory(verified.name),
    ],
    setUp: (stage) => storedScene(stage, { digests }),
  };
}

export const verify = verifyOf("verify", "xxh64", read.name);
export const verifySha256 = verifyOf("verify-sha256", "sha256", proven.name);
