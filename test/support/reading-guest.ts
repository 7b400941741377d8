/** A guest of one sector that reads and writes its disk by itself, as long as it runs. */

/** Where it counts, as two bytes. */
export const COUNTER_OFFSET = 512;
/** From where on it reads, and how far it goes each time. */
export const READ_STEP = 64 * 1024;

/**
 * A boot sector for a PC's BIOS. Some nine times a second it reads a sector, 64 KiB behind the last one, from
 * 64 KiB on. Where it can read it, it counts in the disk's second sector. It prints `.` on the first serial
 * line, `E` if the read failed, and `W` if the write did.
 */
export function readingGuest(): Buffer {
  const code = Buffer.from(
    [
      "fa 31c0 8ed8 8ec0 8ed0 bc007c fb 8816777c", // cli; ds = es = ss = 0; sp = 0x7c00; sti; [0x7c77] = dl
      "be577c b442 8a16777c cd13 b045 7216", // extended read by 0x7c57; 'E' if it failed
      "ff06007e be677c b80043 8a16777c cd13 b057 7202 b02e", // [0x7e00] += 1; extended write by 0x7c67; 'W' or '.'
      "baf803 ee", // out 0x3f8, al
      "81065f7c8000 8316617c00", // the sector to be read += 128
      "8b0e6c04 83c102 fb f4 a16c04 29c8 78f7 ebba", // wait for two ticks of 55 ms, and again
      "10000100 00800000 8000000000000000", // 0x7c57: one sector to 0000:8000, from sector 128 on
      "10000100 007e0000 0100000000000000", // 0x7c67: one sector from 0000:7e00, to sector 1
      "00", // 0x7c77: the drive
    ]
      .join("")
      .replaceAll(" ", ""),
    "hex",
  );
  const sector = Buffer.alloc(512);
  code.copy(sector);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}
