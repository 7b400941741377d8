import { readFile, stat } from "node:fs/promises";
import { deviceNumbers } from "./durable-files.js";

/** The byte that QEMU locks in an image while it may write to it; others stand for what it lets nobody else do. */
const WRITE_BYTE = 101;

const OFD_LOCK = /^\d+: OFDLCK +ADVISORY +\w+ +-?\d+ ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$/;

/**
 * Whether a QEMU of this machine has the file open for writing: a guest that runs on it, say. One of another machine, and one
 * that was told not to lock (`locking=off`), is not seen; nor is any where the system doesn't list locks.
 */
export async function isWrittenByQemu(path: string): Promise<boolean> {
  const { dev, ino } = await stat(path, { bigint: true });
  const { major, minor } = deviceNumbers(dev);
  const locks = await readFile("/proc/locks", "latin1").catch(() => "");
  return locks.split("\n").some((line) => {
    const [, ofMajor = "", ofMinor = "", ofInode = "", first, last] = OFD_LOCK.exec(line) ?? [];
    const isIt =
      BigInt(`0x0${ofMajor}`) === major && BigInt(`0x0${ofMinor}`) === minor && ofInode === String(ino);
    return isIt && Number(first) <= WRITE_BYTE && (last === "EOF" || WRITE_BYTE <= Number(last));
  });
}
