import { expect, it } from "vitest";
import { BackupLab } from "../support/backup-lab.js";
import { describeWithLibvirt, Lab } from "../support/libvirt-lab.js";
import { Terminal } from "../support/terminal.js";

const KiB = 1024;
const MiB = 1024 * KiB;

await describeWithLibvirt("several domains on a terminal", () => {
  it("have a row for each disk, and a result takes the place of its rows as soon as it is there", async () => {
    await using guest = await BackupLab.start();
    await using other = await Lab.start({ sizes: { vda: 64 * KiB, vdb: 64 * KiB } });
    await guest.lab.write("vda", 0, 40 * MiB, 0x11);
    await using terminal = await Terminal.open(80);
    const { repo, scratch, lab } = guest;
    const slow = ["--limit-rate", "2M", "--request-size", "64K", "--scratch", scratch];
    await terminal.nbdpull("backup", lab.domain, other.domain, "--to", repo, "--create", ...slow);
    const shown = async (): Promise<boolean> => {
      const rows = await terminal.rows();
      const result = rows.findIndex((row) => row.startsWith(`${other.domain} 2`));
      const live = rows.findIndex((row) => row.startsWith(`${lab.domain}: vda`) && /\d:\d\d left$/.test(row));
      return result >= 0 && live > result && !rows.some((row) => row.startsWith(`${other.domain}: vd`));
    };
    await expect.poll(shown).toBe(true);
    await terminal.interrupt();
    await expect.poll(() => terminal.lines()).toContainEqual("exit 130");
    const lines = await terminal.lines();
    expect(lines.filter((line) => line.startsWith(`${lab.domain}: vd`))).toEqual([]);
    expect(lines).toContainEqual(
      expect.stringContaining(`interrupted by SIGINT: ${other.domain} ended before that (1 of 2 domains)`),
    );
    await guest.expectNothingLeft();
  }, 480_000);
});
