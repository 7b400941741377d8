import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { finished, type Ran, startNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;
const LIVING = "the living disk";

await describeWithLibvirt("nbdpull repair --from-domain", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start();
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  function repair(...more: readonly string[]): Promise<Ran> {
    const args = ["repair", guest.repo, guest.lab.domain, "--json", ...more];
    return finished(startNbdpull(args, guest.start));
  }

  /** Changes one byte of the image at a guest offset; these images are raw. */
  async function damage(path: string, at: number): Promise<void> {
    await using image = await open(path, "r+");
    await image.write(Buffer.from("X"), 0, 1, at);
  }

  it("mends what the running guest still has, leaves what it has overwritten, and ends its job", async () => {
    const { lab, repo, scratch } = guest;
    await lab.write("vda", 0, 4 * MiB, 0x11);
    await guest.take("--format", "raw");
    const { id = "" } = (await guest.points())[0] ?? {};
    const path = join(repo, lab.domain, id, "vda.raw");
    const sound = await readFile(path);
    await damage(path, MiB);
    // Stands still while it is read; what is written before is not what the point has.
    await lab.write("vda", 3 * MiB, 65_536, 0x22);
    await damage(path, 3 * MiB);
    const checkpoints = await guest.checkpoints();

    const place = (from: number) => ({ disk: "vda", what: "cluster", guestOffset: from, from: LIVING });
    const mended = await repair("--from-domain", "--scratch", scratch);
    expectExit(mended, 3);
    expect(mended.json()).toMatchObject({
      domains: [{ mended: [place(MiB)], left: [{ guestOffset: 3 * MiB }], unrestorable: [{ id }] }],
    });
    const now = await readFile(path);
    now[3 * MiB] = 0x11;
    expect(now.equals(sound)).toBe(true);
    expect(await guest.checkpoints()).toEqual(checkpoints);
    await guest.expectNothingLeft();

    await lab.write("vda", 3 * MiB, 65_536, 0x11);
    expectExit(await repair("--from-domain", "--scratch", scratch), 0);
    expect((await readFile(path)).equals(sound)).toBe(true);
    expect((await guest.take()).level).toBe("incremental");
  });
});
