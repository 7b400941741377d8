import { randomUUID } from "node:crypto";
import { readdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

type Point = BackupJson & { readonly createdAt: string; readonly uuid: string };

await describeWithLibvirt(
  "a domain that was made again under its name, and a clock that was ten years ahead",
  () => {
    it("has points of its own, that no prune or restore of the other touches, and of the right times", async () => {
      await using guest = await BackupLab.start();
      const { lab, repo } = guest;
      const name = lab.domain;

      // As if the first backup had been made ten years ahead: its id and its time.
      await lab.write("vda", 0, 4 * MiB, 0x11);
      const first = await guest.take();
      const ahead = first.id.replace(/^\d{4}/, (year) => String(Number(year) + 10));
      const folder = join(repo, name);
      const path = join(folder, first.id, "point.json");
      const manifest = JSON.parse(await readFile(path, "utf8")) as { createdAt: string };
      const trueTime = manifest.createdAt;
      const wrongTime = `${Number(trueTime.slice(0, 4)) + 10}${trueTime.slice(4)}`;
      await writeFile(path, JSON.stringify({ ...manifest, id: ahead, createdAt: wrongTime }));
      await rename(join(folder, first.id), join(folder, ahead));

      await lab.write("vda", 8 * MiB, MiB, 0x22);
      const second = (await guest.take()) as Point;
      expect(second.warnings).toEqual([expect.stringContaining(`point ${ahead} says that it was made at`)]);
      expect(second.disks[0]?.parent).toBe(ahead);
      expect(second.id > ahead).toBe(true);
      expect(Math.abs(Date.parse(second.createdAt) - Date.now())).toBeLessThan(120_000);
      const doctor = await nbdpull("doctor", name, "--to", repo, "--scratch", guest.scratch);
      expect(doctor.stdout).toContain(`nbdpull points ${repo} ${name} --fix-clock`);
      const mended = await nbdpull("points", repo, name, "--fix-clock", "--json");
      expect(mended.json()).toMatchObject({ mended: [{ id: ahead, was: wrongTime, by: "checkpoint" }] });
      const listed = (await nbdpull("points", repo, name, "--json")).json() as Point[];
      expect(Math.abs(Date.parse(listed[0]?.createdAt ?? "") - Date.parse(trueTime))).toBeLessThan(30_000);

      // The domain is made again: the same name and disks, another UUID.
      const copies = await guest.copyNow();
      const third = (await guest.take()) as Point;
      expect(third.warnings).toEqual([]);
      await lab.powerOff();
      const uuid = randomUUID();
      const xml = (await virsh("dumpxml", "--inactive", name)).replace(lab.uuid, uuid);
      await virsh("undefine", "--checkpoints-metadata", name);
      await writeFile(join(guest.folder, "again.xml"), xml);
      await virsh("define", join(guest.folder, "again.xml"));
      await lab.powerOn();
      const own = `${name}@${uuid.slice(0, 8)}`;
      const again = (await guest.take()) as Point;
      expect([again.level, again.uuid]).toEqual(["full", uuid]);
      expect(again.warnings).toEqual([expect.stringContaining(`go to ${own}`)]);
      await lab.write("vda", 12 * MiB, MiB, 0x33);
      const increment = (await guest.take()) as Point;
      expect([increment.disks[0]?.parent, increment.warnings]).toEqual([again.id, []]);
      const off = await guest.copyNow();
      expect((await readdir(repo)).sort()).toEqual([name, own, "nbdpull.json"].sort());

      const to = join(guest.folder, "which");
      const asked = await nbdpull("restore", repo, name, "--to", to, "--json");
      expectExit(asked, 2);
      expect(asked.json()).toMatchObject({ error: { code: "E_WHICH_DOMAIN", uuids: [lab.uuid, uuid] } });
      expectExit(await nbdpull("prune", repo, name, "--keep-last", "1"), 0);
      const left = (await nbdpull("points", repo, name, "--json")).json() as Point[];
      expect(left.map(({ id, uuid }) => [id, uuid])).toEqual([
        [third.id, lab.uuid],
        [increment.id, uuid],
      ]);
      await guest.expectPoint(third.id, copies);
      await guest.expectPoint(increment.id, off);
      expectExit(await nbdpull("verify", repo), 0);
    }, 480_000);
  },
);
