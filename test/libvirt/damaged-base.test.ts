import { open, readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("a backup whose base is damaged", () => {
  it("is a full one that says why, or an increment on the newest point that can be restored", async () => {
    await using guest = await BackupLab.start();
    const { lab, repo } = guest;
    const reasons = (taken: Awaited<ReturnType<BackupLab["take"]>>): unknown[] =>
      taken.disks.map(({ name, mode, parent, reason }) => [name, mode, parent, reason]);
    await lab.write("vda", 0, 4 * MiB, 0x11);
    await lab.write("vdb", 0, 4 * MiB, 0x12);
    const full = await guest.take();
    await lab.write("vda", MiB, MiB, 0x21);
    const second = await guest.take();
    const file = (id: string, name: string): string => join(repo, lab.domain, id, name);

    // Only what a verify finds tells of a flipped byte. The full point's checkpoint is kept, so it can be the
    // base.
    await using image = await open(file(second.id, "vda.qcow2"), "r+");
    await image.write(Buffer.from("damage"), 0, 6, 65_536 + 100);
    expect((await nbdpull("verify", repo)).code).toBe(3);
    const doctor = await nbdpull("doctor", lab.domain, "--to", repo, "--scratch", guest.scratch);
    expect(doctor.stdout).toContain(`point ${second.id} can't be restored`);
    const copies = await guest.copyNow();
    const third = await guest.take();
    expect(reasons(third)).toEqual([
      ["vda", "incremental", full.id, undefined],
      // Its own data is sound there, but no copy would take over a point on a damaged one.
      ["vdb", "incremental", full.id, undefined],
    ]);
    await guest.expectPoint(third.id, copies);

    // A file that is gone is seen by the backup itself.
    await rename(file(full.id, "vda.qcow2"), join(guest.folder, "away"));
    const metrics = join(guest.folder, "nbdpull.prom");
    const fourth = await guest.take("--metrics", metrics);
    expect(reasons(fourth)).toEqual([
      [
        "vda",
        "full",
        null,
        expect.stringMatching(
          new RegExp(`^an increment on ${third.id} could not be restored: .*${full.id}.*missing`),
        ),
      ],
      [
        "vdb",
        "full",
        null,
        expect.stringMatching(
          new RegExp(
            `^an increment on ${third.id} could not be copied to .*: disk vda of point ${full.id} is damaged: .*missing`,
          ),
        ),
      ],
    ]);
    await using text = await open(metrics);
    expect(await text.readFile("utf8")).toMatch(/nbdpull_points_unrestorable\{.*\} 3\n/);
    await guest.expectPoint(fourth.id, copies);
    const asked = await guest.run("--level", "differential", "--include", "vdb");
    expectExit(asked, 0);

    await rename(join(guest.folder, "away"), file(full.id, "vda.qcow2"));
    // The third point was based on the full one, so it has what the second one has lost.
    const repaired = await nbdpull("repair", repo, "--json");
    expectExit(repaired, 0);
    const [told] = (repaired.json() as { domains: { mended: unknown[] }[] }).domains;
    expect(told?.mended).toMatchObject([{ point: second.id, disk: "vda", from: `point ${third.id}` }]);
    expect(await readdir(file(second.id, ""))).not.toContain(".damage.json");
    expectExit(await nbdpull("verify", repo), 0);
    expect(await virsh("domstate", lab.domain)).toMatch(/running/);
  }, 480_000);
});
