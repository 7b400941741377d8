import { readFile, stat } from "node:fs/promises";
import { deviceNumbers } from "./durable-files.js";

/**
 * The byte of an image that QEMU locks while it may write to it. Its locks on other bytes stand for what
 * others must not do.
 */
const WRITE_BYTE = 101;

const OFD_LOCK = /^\d+: OFDLCK +ADVISORY +\w+ +-?\d+ ([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$/;

/**
 * Whether a QEMU of this machine has the file open for writing, for instance because a guest runs on it. It
 * can't see a QEMU on another machine or one with `locking=off`, and sees none if the system doesn't list
 * locks.
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
