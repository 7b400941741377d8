import { statfs } from "node:fs/promises";

/** The type of ext2, ext3 and ext4, which by default keep a twentieth of their blocks for root. */
const EXT = 0xef53;

/**
 * Bytes that this process can still write there. What ext4 reserves for root counts for root. Elsewhere free
 * blocks that are not available are nobody's: what btrfs needs itself, or what an NFS server keeps for its
 * own root.
 */
export async function freeBytes(path: string): Promise<number> {
  const { type, bavail, bfree, bsize } = await statfs(path);
  return (type === EXT && process.getuid?.() === 0 ? bfree : bavail) * bsize;
}

/** Bytes that an ordinary user can still write there. */
export async function freeBytesOfUsers(path: string): Promise<number> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
}
