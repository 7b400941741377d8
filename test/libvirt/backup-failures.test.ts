import { readdir, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Packet } from "../../src/backup/libvirt/rpc/packets.js";
import { type BackupJson, BackupLab, expectExit, ofCalmLibvirt } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { finished, runNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("a backup that fails", () => {
  let guest: BackupLab;
  beforeEach(async () => {
    guest = await BackupLab.start();
    await guest.lab.write("vda", 0, 16 * MiB, 0x11);
    await guest.lab.write("vdb", 0, 4 * MiB, 0x11);
  });
  afterEach(async () => {
    await guest[Symbol.asyncDispose]();
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const)(
    "leaves nothing after %s, and the next backup is based on the last good point",
    async (signal, code) => {
      const good = await guest.take("--include", "vda", "--include", "vdb");
      await guest.lab.write("vda", 0, 12 * MiB, 0x12);
      const run = await guest.startSlowly();
      expect(await guest.checkpoints()).toHaveLength(2);
      run.kill(signal);
      expectExit(await finished(run), code);
      await guest.expectNothingLeft();
      expect(await guest.checkpoints()).toEqual([good.checkpoint]);
      const copies = await guest.copyNow();
      const next = await guest.take();
      expect(next.disks[0]).toMatchObject({ parent: good.id, dirtyBytes: 12 * MiB });
      await guest.expectPoint(next.id, copies);
    },
    480_000,
  );

  it("is cleared away after SIGKILL by the next backup, which is based on the last good point", async () => {
    const good = await guest.take();
    await guest.lab.write("vda", 0, 12 * MiB, 0x13);
    const run = await guest.startSlowly();
    run.kill("SIGKILL");
    await run.ended;
    expect(await readdir(guest.scratch)).toHaveLength(1);
    expect(await guest.checkpoints()).toHaveLength(2);
    const next = await guest.take();
    expect(next.disks[0]).toMatchObject({ parent: good.id, dirtyBytes: 12 * MiB });
    expect(await guest.checkpoints()).toEqual([good.checkpoint, next.checkpoint]);
    await guest.expectNothingLeft();
    await guest.expectPoint(next.id, await guest.copyNow());
  }, 480_000);

  it("is cleared away after SIGKILL even if the next backup has another scratch folder", async () => {
    const run = await guest.startSlowly();
    run.kill("SIGKILL");
    await run.ended;
    const next = await guest.take("--scratch", guest.folder);
    expect(next.level).toBe("full");
    await guest.expectNothingLeft();
  }, 480_000);

  it("commits nothing when the guest dies during the backup, and the next backup clears up after both", async () => {
    const run = await guest.startSlowly();
    await guest.lab.crash();
    const ran = await finished(run);
    expect([ran.code, ran.json()]).toMatchObject([1, { error: { code: "E_GUEST_ENDED" } }]);
    expect(ran.stderr).toContain("ended during the backup (libvirt: shut off (crashed))");
    expect(ran.stderr).not.toContain("warning");
    expect(await guest.points()).toEqual([]);
    await guest.expectNothingLeft();
    await guest.lab.powerOn();
    const next = await guest.take();
    expect(await guest.checkpoints()).toEqual([next.checkpoint]);
  }, 480_000);

  it("knows a broken bitmap when the job begins, and a lost one later, in whatever language libvirt says so", async () => {
    const full = await guest.take();
    await guest.lab.write("vda", 0, MiB, 0x14);
    await guest.lab.write("vdb", 0, MiB, 0x14);
    const [BEGIN, DELETE_CHECKPOINT] = [421, 417];
    const base = full.checkpoint ?? "";
    // As libvirt says it, each once; the second is of an internal error.
    const refusals = new Map([
      [BEGIN, { number: 109, said: `Prüfpunkt inkonsistent: Bitmap „${base}“ für Platte „vda“ fehlt` }],
      [
        DELETE_CHECKPOINT,
        { number: 1, said: `erreur interne : bitmap « ${base} » introuvable pour « vda »` },
      ],
    ]);
    const refuse = ({ procedure }: Packet) => {
      const refusal = refusals.get(procedure);
      refusals.delete(procedure);
      return refusal;
    };
    const copies = await guest.copyNow();
    using front = new LibvirtInFront(guest.folder);
    const ran = await runNbdpull(guest.arguments(), { env: front.env({ refuse }) });
    expectExit(ran, 0);
    const next = ofCalmLibvirt(ran.json() as BackupJson);
    expect(next.disks).toMatchObject([
      { name: "vda", mode: "full", reason: expect.stringMatching(/lost or broken/) },
      { name: "vdb", mode: "incremental", parent: full.id, dirtyBytes: MiB },
    ]);
    await guest.expectPoint(next.id, copies);
    const then = await runNbdpull(guest.arguments("--level", "full"), { env: front.env({ refuse }) });
    expectExit(then, 0);
    const last = await runNbdpull(guest.arguments(), { env: front.env({ refuse }) });
    expectExit(last, 0);
    expect(refusals.size).toBe(0);
    expect(await guest.checkpoints()).not.toContain(base);
    for (const each of [ran, then, last])
      expect(ofCalmLibvirt(each.json() as BackupJson).warnings).toEqual([]);
    await guest.expectNothingLeft();
  }, 480_000);

  it("refuses a second backup at once while it runs", async () => {
    const run = await guest.startSlowly();
    const second = await guest.run();
    expectExit(second, 4);
    // It would be E_LOCKED if it had waited for the lock.
    expect(second.json()).toMatchObject({ error: { code: "E_BACKUP_RUNNING" } });
    const elsewhere = await guest.run("--to", join(guest.folder, "other"));
    expectExit(elsewhere, 4);
    expect(elsewhere.json()).toMatchObject({
      error: { code: "E_FOREIGN_JOB", message: expect.stringContaining("nbdpull's, of another repository") },
    });
    run.kill("SIGTERM");
    expectExit(await finished(run), 143);
    await guest.expectNothingLeft();
  }, 480_000);

  it("deletes no checkpoint but its own if a manifest can't be read", async () => {
    const damaged = await guest.take();
    const good = await guest.take();
    await writeFile(join(guest.repo, guest.lab.domain, damaged.id, "point.json"), "{");
    const run = await guest.startSlowly("--level", "full");
    run.kill("SIGTERM");
    expectExit(await finished(run), 143);
    await guest.expectNothingLeft();
    expect(await guest.checkpoints()).toEqual([damaged.checkpoint, good.checkpoint]);
    const next = await guest.take();
    expect(next.disks[0]).toMatchObject({ mode: "full", reason: expect.stringContaining("not be restored") });
    expect(await guest.checkpoints()).toEqual([damaged.checkpoint, good.checkpoint, next.checkpoint]);
  }, 480_000);

  it("never touches a foreign job, and says whose it seems to be", async () => {
    await using theirs = await guest.lab.beginBackup({ checkpoint: "theirs" });
    const ran = await guest.run();
    expectExit(ran, 4);
    expect(ran.json()).toMatchObject({
      error: { code: "E_FOREIGN_JOB", message: expect.stringContaining(guest.lab.folder) },
    });
    expect(await theirs.referenceCopy("vda")).toMatch(/raw$/);
    expect(await guest.checkpoints()).toEqual(["theirs"]);
  });

  it("leaves nothing if the job can't begin: the port is taken, the scratch folder is missing", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = server.address() as AddressInfo;
      const ran = await guest.run("--server", `tcp:${port}`);
      expectExit(ran, 4);
      expect(ran.json()).toMatchObject({ error: { code: "E_ADDRESS_IN_USE" } });
    } finally {
      server.close();
    }
    expect(await guest.checkpoints()).toEqual([]);
    await guest.expectNothingLeft();
    const nowhere = await guest.run("--scratch", join(guest.folder, "nowhere"));
    expectExit(nowhere, 2);
    expect(nowhere.json()).toMatchObject({ error: { code: "E_SCRATCH_PATH" } });
    await guest.expectNothingLeft();
  });

  it("reports a missing agent or a paused guest for --freeze, and begins nothing", async () => {
    const ran = await guest.run("--freeze");
    expectExit(ran, 4);
    expect(ran.json()).toMatchObject({ error: { code: "E_NO_AGENT" } });
    expect(ran.stderr).toContain("has no channel to a guest agent");
    const auto = await guest.run("--freeze=auto", "--level", "copy");
    expectExit(auto, 0);
    expect(auto.stderr).toContain("no agent answers in the guest, so its file systems are not frozen");
    await virsh("suspend", guest.lab.domain);
    const paused = await guest.run("--freeze");
    expectExit(paused, 4);
    expect(paused.json()).toMatchObject({ error: { code: "E_GUEST_PAUSED" } });
    expect(paused.stderr).toContain(`\`virsh resume ${guest.lab.domain}\``);
    expectExit(await guest.run("--level", "copy"), 0);
    expect(await guest.checkpoints()).toEqual([]);
    await guest.expectNothingLeft();
  });
});
