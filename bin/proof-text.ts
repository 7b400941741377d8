import type { DiskProof } from "../src/backup/take/prove-disk.js";
import { counted } from "./sizes.js";

/** How far a disk's base was proven, as the end of the disk's line; empty for a disk without a base. */
export function proofText(proofs: readonly DiskProof[], disk: string): string {
  const proof = proofs.find((each) => each.disk === disk);
  if (proof === undefined) return "";
  const { compared, unread, seed, impossible, differing, changed } = proof;
  if (impossible !== undefined) return `; its base was not proven: ${impossible}`;
  const chosen = seed === undefined ? "" : ` (seed ${seed})`;
  const moved = changed === undefined ? "" : `, more because of another ${changed}`;
  if (differing !== undefined) return `; found among ${counted(compared, "cluster")}${chosen}`;
  if (compared === 0 && unread === 0) return "; its base has no unchanged data to compare";
  const missed = unread === 0 ? "" : `, ${unread} could not be read`;
  return `; its base fits in ${counted(compared, "cluster")}${chosen}${moved}${missed}`;
}
