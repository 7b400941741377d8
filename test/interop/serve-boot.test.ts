/** The boot sector of a PC, read from a served point by QEMU. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { NbdClient } from "../../src/nbd/index.js";
import { MemoryChain } from "../support/memory-chain.js";
import { startServing } from "../support/serving.js";
import { describeWith } from "../support/tools.js";

const CLUSTER = 64 * 1024;
const SIZE = 40 * CLUSTER;

let chain: MemoryChain;
let out: string;
beforeEach(async () => {
  chain = await MemoryChain.start(SIZE);
  out = await mkdtemp(join(tmpdir(), "nbdpull-boot-"));
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
  await rm(out, { recursive: true });
});

/** The sector from which the boot program reads its message, in a cluster of its own. */
const MESSAGE_LBA = (7 * CLUSTER) / 512 + 3;

/**
 * A boot sector for a PC's BIOS. It reads a sector by the address packet at 0x7d00, and writes the boot
 * sector over it. Only if both succeed, it prints what it has read on QEMU's debug port and makes QEMU exit
 * with 1.
 */
function bootSector(): Buffer {
  const code = Buffer.from(
    [
      "fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc", // cli; ds = es = ss = 0; sp = 0x7c00; sti; cld
      "be007d b442 cd13 721d", // si = 0x7d00; extended read of drive dl; on failure halt
      "c706047d007c b80043 cd13 7210", // from 0x7c00: extended write; on failure halt
      "be007e", // si = 0x7e00
      "ac 84c0 7404 e6e9 ebf7", // until the zero: out 0xe9, [si++]
      "b000 e6f4", // out 0xf4, 0
      "f4 ebfd", // hlt, for ever
    ]
      .join("")
      .replaceAll(" ", ""),
    "hex",
  );
  const sector = Buffer.alloc(512);
  code.copy(sector);
  // Address packet: its size, one sector, to 0000:7e00, and the sector's number.
  sector.set([16, 0, 1, 0, 0x00, 0x7e, 0, 0], 0x100);
  sector.writeBigUInt64LE(BigInt(MESSAGE_LBA), 0x108);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

describeWith(["qemu-system-x86_64"], "a guest that boots from nbdpull serve", () => {
  const messageOf = (text: string): Buffer =>
    Buffer.concat([Buffer.from(text), Buffer.alloc(512)]).subarray(0, 512);

  it.each([
    ["qcow2", {}],
    ["compressed qcow2", { compress: "deflate" }],
  ] as [string, Parameters<MemoryChain["take"]>[0]][])(
    "finds each point as it was, and may write to QEMU's snapshot: %s",
    async (_, form) => {
      const repository = chain.repository.path;
      chain.disk.write(0, bootSector());
      chain.disk.write(MESSAGE_LBA * 512, messageOf("before the change"));
      await chain.take(form);
      chain.disk.write(MESSAGE_LBA * 512, messageOf("after the change"));
      await chain.take(form);
      for (const [index, message] of ["before the change", "after the change"].entries()) {
        const id = chain.points[index]?.id ?? "";
        const said = join(out, id);
        await using server = await startServing(repository, "--at", id, "--socket", join(out, "nbd.sock"));
        const uri = server.uris[0] ?? "";
        const ran = await execa(
          "qemu-system-x86_64",
          [
            ...["-machine", "pc,accel=tcg", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot"],
            ...["-drive", `file=${uri},format=raw,if=ide,snapshot=on`],
            ...["-chardev", `file,id=said,path=${said}`, "-device", "isa-debugcon,iobase=0xe9,chardev=said"],
            ...["-device", "isa-debug-exit,iobase=0xf4,iosize=4"],
          ],
          { reject: false, timeout: 50_000, stdin: "ignore" },
        );
        expect([ran.exitCode, ran.stderr, await readFile(said, "utf8")]).toEqual([1, "", message]);
        // The guest's write exists only in QEMU's snapshot.
        await using client = await NbdClient.connect(uri);
        const sector = Buffer.alloc(512);
        await client.read(MESSAGE_LBA * 512, sector);
        expect(sector.equals(messageOf(message))).toBe(true);
      }
    },
  );
});
