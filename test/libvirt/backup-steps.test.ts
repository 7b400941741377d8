import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit, ofCalmLibvirt } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, Lab, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull, type Running, runNbdpull, startNbdpull } from "../support/nbdpull.js";

const KiB = 1024;
const MiB = 1024 * KiB;

await describeWithLibvirt("a backup with --freeze", () => {
  let guest: BackupLab;
  let front: LibvirtInFront;
  beforeEach(async () => {
    guest = await BackupLab.start();
    front = new LibvirtInFront(guest.folder);
  });
  afterEach(async () => {
    front[Symbol.dispose]();
    await guest[Symbol.asyncDispose]();
  });

  function start(env: Record<string, string>, ...args: readonly string[]): Running {
    return startNbdpull(guest.arguments(...args), { env });
  }

  it("freezes before the job begins, and thaws right after", async () => {
    expectExit(await finished(start(front.env(), "--freeze=/,/srv")), 0);
    const frozen = ["begin", "thaw", "abort"];
    expect(front.asked).toEqual(["freeze / /srv", ...frozen]);
    expectExit(await finished(start(front.env(), "--freeze")), 0);
    expect(front.asked.slice(4)).toEqual(["freeze", ...frozen]);
    expectExit(await finished(start(front.env(), "--freeze", "auto")), 0);
    expect(front.asked.slice(8)).toEqual(["freeze", ...frozen]);
  });

  it("thaws if the job can't begin, and if freezing fails half-way", async () => {
    expectExit(await finished(start(front.env({ fail: "begin" }), "--freeze")), 1);
    expect(front.asked).toEqual(["freeze", "begin", "thaw"]);
    expectExit(await finished(start(front.env({ fail: "freeze" }), "--freeze")), 1);
    expect(front.asked.slice(3)).toEqual(["freeze", "thaw"]);
    await guest.expectNothingLeft();
  });

  it.each([
    ["the agent refuses it", "refused", /`virsh domfsthaw/],
    [
      "it is paused",
      "Requested operation is not valid: domain is not running",
      /the guest is paused.*`virsh resume \S+; virsh domfsthaw/,
    ],
  ])(
    "gives up if the guest can't be thawed since %s, and the next backup thaws it",
    async (_, said, advice) => {
      const ran = await finished(start(front.env({ fail: "thaw", said }), "--freeze"));
      expectExit(ran, 1);
      expect(ran.json()).toMatchObject({
        error: { code: "E_STILL_FROZEN", message: expect.stringMatching(advice) },
      });
      await expect(virsh("backup-dumpxml", guest.lab.domain)).rejects.toThrow(/no domain backup job/);
      const before = front.asked.length;
      expectExit(await finished(start(front.env())), 0);
      expect(front.asked[before]).toBe("thaw");
      expect(await guest.checkpoints()).toHaveLength(1);
      await guest.expectNothingLeft();
    },
  );

  it("first thaws a guest that a killed backup left frozen", async () => {
    const run = start(front.env({ hang: "begin" }), "--freeze");
    await expect.poll(() => front.asked).toContain("begin");
    run.kill("SIGKILL");
    await run.ended;
    expect(front.asked).toEqual(["freeze", "begin"]);
    expect(front.isFrozen).toBe(true);
    expectExit(await finished(start(front.env(), "--freeze")), 0);
    const thawed = ["thaw", "freeze", "begin", "thaw", "abort"];
    expect(front.asked.slice(2)).toEqual(thawed);
    await guest.expectNothingLeft();
  }, 480_000);

  it("leaves a guest frozen that was started anew after a killed backup, and frozen by somebody else", async () => {
    const run = start(front.env({ hang: "begin" }), "--freeze");
    await expect.poll(() => front.asked).toContain("begin");
    run.kill("SIGKILL");
    await run.ended;
    await guest.lab.powerOff();
    await guest.lab.powerOn();
    // libvirt's daemon counts runs from 1 again if it starts while none is there.
    const [left = ""] = await readdir(guest.scratch);
    const mark = join(guest.scratch, left, "frozen");
    const id = (await virsh("domid", guest.lab.domain)).trim();
    await writeFile(mark, (await readFile(mark, "utf8")).replace(/^\d+/, id));
    const ran = await finished(start(front.env(), "--freeze"));
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_GUEST_FROZEN" } }]);
    expectExit(await finished(start(front.env())), 0);
    expect(front.asked.slice(2)).toEqual(["begin", "abort"]);
    expect(front.isFrozen).toBe(true);
    await guest.expectNothingLeft();
  }, 480_000);

  it("never thaws what somebody else froze, and freezes no mountpoint that isn't there", async () => {
    const frozenLater =
      "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state";
    const late = await finished(start(front.env({ fail: "freeze", said: frozenLater }), "--freeze"));
    expect([late.code, late.json()]).toMatchObject([4, { error: { code: "E_GUEST_FROZEN" } }]);
    expect(front.asked).toEqual(["freeze"]);

    const nowhere = await finished(start(front.env(), "--freeze=/,/nonexistent"));
    expect([nowhere.code, nowhere.json()]).toMatchObject([4, { error: { code: "E_NO_MOUNTPOINT" } }]);
    expect(nowhere.stderr).toMatch(/nothing mounted at \/nonexistent .* It has \/, \/srv\./);

    front.isFrozen = true;
    const ran = await finished(start(front.env(), "--freeze"));
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_GUEST_FROZEN" } }]);
    const doctor = ["doctor", guest.lab.domain, "--to", guest.repo, "--scratch", guest.scratch, "--json"];
    const looked = await runNbdpull(doctor, { env: front.env() });
    expect(looked.json()).toContainEqual(
      expect.objectContaining({
        check: "guest agent",
        status: "warn",
        cause: expect.stringContaining("file systems are frozen"),
        mend: `virsh domfsthaw ${guest.lab.domain}`,
      }),
    );
    // Without --freeze the backup is as good as the freeze.
    expectExit(await finished(start(front.env())), 0);
    expect(front.asked).toEqual(["freeze", "begin", "abort"]);
    expect(front.isFrozen).toBe(true);
    await guest.expectNothingLeft();
  });
});

await describeWithLibvirt("a backup that is ended while libvirt begins its job", () => {
  it.each(["SIGTERM", "SIGKILL"] as const)(
    "leaves no checkpoint without a point, and leaves nothing once the next backup has run: %s",
    async (signal) => {
      await using guest = await BackupLab.start();
      using front = new LibvirtInFront(guest.folder);
      const run = startNbdpull(guest.arguments(), { env: front.env({ late: "begin" }) });
      await expect.poll(() => front.asked).toContain("begin done");
      run.kill(signal);
      await Promise.race([run.ended, sleep(3000)]);
      front.release();
      const ran = await run.ended;
      if (signal === "SIGTERM") {
        expect(ran?.code).toBe(143);
        expect(await guest.checkpoints()).toEqual([]);
        await guest.expectNothingLeft();
      }
      const next = await guest.take();
      expect(next).toMatchObject({ level: "full" });
      expect(await guest.checkpoints()).toEqual([next.checkpoint]);
      expect(await guest.points()).toHaveLength(1);
      await guest.expectNothingLeft();
    },
  );
});

await describeWithLibvirt("a backup whose point is committed", () => {
  it("is the base of the next one, even if it was killed before its job ended", async () => {
    await using guest = await BackupLab.start();
    using front = new LibvirtInFront(guest.folder);
    const run = startNbdpull(guest.arguments(), { env: front.env({ hang: "abort" }) });
    await expect.poll(() => front.asked).toContain("abort");
    run.kill("SIGKILL");
    await run.ended;
    const [killed] = await guest.points();
    expect(killed?.level).toBe("full");
    await guest.lab.write("vda", 0, 1024 * 1024, 0x31);
    const next = await guest.take();
    expect(next.disks.map(({ parent }) => parent)).toEqual([killed?.id, killed?.id]);
    await guest.expectNothingLeft();
    await guest.expectPoint(next.id, await guest.copyNow());
  }, 480_000);

  it("succeeds with a warning if its job can't be ended, and no signal makes it fail", async () => {
    await using guest = await BackupLab.start();
    using front = new LibvirtInFront(guest.folder);
    const run = startNbdpull(guest.arguments(), { env: front.env({ hang: "abort" }) });
    await expect.poll(() => front.asked).toContain("abort");
    run.kill("SIGTERM");
    await Promise.race([run.ended, sleep(3000)]);
    front.release();
    const ran = await finished(run);
    expectExit(ran, 0);
    expect(ran.json()).toMatchObject({
      level: "full",
      warnings: [expect.stringContaining("not everything was cleared away")],
    });
    await guest.take();
    await guest.expectNothingLeft();
  }, 480_000);
});

await describeWithLibvirt("a backup of all domains", () => {
  it("backs up the running ones, and reports for each what was done and why", async () => {
    await using guest = await BackupLab.start();
    const { lab, repo, scratch } = guest;
    using front = new LibvirtInFront(guest.folder);
    const args = ["backup", "--all", "--to", repo, "--scratch", scratch];
    const run = (...more: readonly string[]): Running =>
      startNbdpull([...args, ...more], { env: front.env({ running: [lab.domain] }) });
    const metrics = join(guest.folder, "nbdpull.prom");
    const first = await finished(run("--json", "--exclude", "vdb", "--metrics", metrics));
    expectExit(first, 0);
    const told = ofCalmLibvirt(first.json() as BackupJson);
    expect(told).toMatchObject({ domains: [{ domain: lab.domain, level: "full" }], warnings: [] });
    const second = await finished(run());
    expectExit(second, 0);
    expect(second.stdout).toMatch(
      new RegExp(
        `^${lab.domain} \\S+: incremental restore point in .* s; checkpoint nbdpull-.*\\n` +
          " {2}vda: 64 MiB, 0 B changed since .*\\n" +
          " {2}vdb: .*, full \\(no point with a checkpoint has this disk\\), .* stored$",
      ),
    );
    expect(await readFile(metrics, "utf8")).toMatch(/^nbdpull_backup_success\{domain=".*",.*\} 1$/m);
    const failing = front.env({ running: [lab.domain], fail: "begin" });
    expectExit(await runNbdpull([...args, "--metrics", metrics], { env: failing }), 1);
    const text = await readFile(metrics, "utf8");
    expect(text).toMatch(/^nbdpull_backup_exit_code\{domain=".*",.*\} 1$/m);
    expect(text).toMatch(/^nbdpull_run_exit_code\{.*\} 1$/m);
    expect(text).toMatch(/^nbdpull_backup_last_success_timestamp_seconds\{.*\} 1\d{9}/m);
    expect(text).toMatch(/^nbdpull_backup_full_disks\{.*,level="full"\} 1$/m);
    const typo = await finished(run("--exclude", "vbd"));
    expectExit(typo, 4);
    expect(typo.stderr).toContain("E_NO_SUCH_DISK: --exclude vbd: no domain has a disk vbd");
    expect(typo.stderr).toMatch(/\(Did you mean vd[ab]\?\)/);
    const unknown = await finished(run("--skip", `${lab.domain}x`));
    expectExit(unknown, 4);
    expect(unknown.stderr).toMatch(new RegExp(`E_NO_SUCH_DOMAIN: .*\\(Did you mean ${lab.domain}\\?\\)`));
    // Of several that are named each has its own hint.
    const several = [`${lab.domain}x`, "no domain is called like this"];
    const named = await nbdpull("backup", ...several, "--to", repo, "--json");
    expectExit(named, 4);
    expect(named.json()).toMatchObject({
      domains: [
        { domain: several[0], error: { hint: `(Did you mean ${lab.domain}?)` } },
        { domain: several[1], error: { code: "E_NO_SUCH_DOMAIN" } },
      ],
    });
    expect(named.stderr).toMatch(new RegExp(`${lab.domain}x: .*\\(Did you mean ${lab.domain}\\?\\)`));
    expect(named.stderr.match(/Did you mean/g)).toHaveLength(1);
    const skipped = await finished(run("--json", "--skip", lab.uuid));
    expectExit(skipped, 0);
    expect(skipped.json()).toMatchObject({ domains: [] });
    const both = await finished(run(lab.domain));
    expectExit(both, 2);
    expect(both.stderr).toContain("not both");
  }, 480_000);

  it("and prunes, verifies and reports what the configuration file says, with one exit code and one metrics file", async () => {
    await using guest = await BackupLab.start();
    const { lab, repo, scratch, folder } = guest;
    expectExit(await nbdpull("init", repo), 0);
    const metrics = join(folder, "nbdpull.prom");
    const config = join(folder, "nbdpull.toml");
    const report = join(folder, "backups.html");
    const settings = { repository: repo, scratch, metrics, report, domains: [lab.domain] };
    const lines = Object.entries(settings).map(([key, value]) => `${key} = ${JSON.stringify(value)}`);
    await writeFile(
      config,
      [...lines, "keep-last = 1", "verify-share = 1", "freeze = 'auto'", "exclude = ['vdz']"].join("\n"),
    );
    const run = (...args: string[]) => nbdpull("run", "--config", config, "--json", ...args);
    expectExit(await run(), 0);
    // There is no disk vdz, which is a warning.
    const second = await run("--strict");
    expectExit(second, 5);
    expect(second.json()).toMatchObject({
      backup: { domain: lab.domain, level: "incremental" },
      prune: { domains: [{ domain: lab.domain }] },
      verify: { damaged: false, points: [{ domain: lab.domain, restorable: true }] },
      report: { repositories: [{ domains: [{ name: lab.domain, state: "good" }] }] },
      exitCode: 5,
    });
    expect(await guest.points()).toHaveLength(1);
    const text = await readFile(metrics, "utf8");
    for (const [job, code] of Object.entries({ run: 5, prune: 0, verify: 0 }))
      expect(text).toMatch(new RegExp(`^nbdpull_${job}_exit_code{.*} ${code}$`, "m"));
    expect(text).toMatch(new RegExp(`^nbdpull_report_late{domain="${lab.domain}",.*} 0$`, "m"));
    expect(await readFile(report, "utf8")).toContain(lab.domain);

    // A step that fails keeps no later one from being done, and the exit code is the worst.
    const gone = await nbdpull("run", "--config", config, "--json", "nosuchdomain");
    expectExit(gone, 4);
    expect(gone.json()).toMatchObject({
      backup: { error: { code: "E_NO_SUCH_DOMAIN" } },
      prune: { domains: [] },
      verify: { damaged: false, points: [{ domain: lab.domain }] },
      exitCode: 4,
    });
    const [point] = await guest.points();
    await writeFile(join(repo, lab.domain, point?.id ?? "", "point.json"), "{}");
    const damaged = await nbdpull("run", "--config", config, "--json");
    expectExit(damaged, 3);
    expect(damaged.json()).toMatchObject({
      backup: { level: "full" },
      verify: { damaged: true },
      exitCode: 3,
    });
  }, 480_000);

  it("backs several up side by side, and after a signal says which are done", async () => {
    await using guest = await BackupLab.start();
    const small = { vda: 64 * KiB, vdb: 64 * KiB };
    await using other = await Lab.start({ sizes: small });
    await guest.lab.write("vda", 0, 40 * MiB, 0x11);
    const { repo, scratch } = guest;
    const args = ["backup", guest.lab.domain, other.domain, "--to", repo, "--scratch", scratch];
    const slow = ["--limit-rate", "256K", "--request-size", "64K"];
    const run = startNbdpull([...args, ...slow]);
    // The first one takes minutes, and the second doesn't wait for it.
    await expect
      .poll(async () => (await nbdpull("points", repo, other.domain)).code, { interval: 500 })
      .toBe(0);
    run.kill("SIGTERM");
    const ended = await finished(run);
    expectExit(ended, 143);
    expect(ended.stdout).toMatch(new RegExp(`^${other.domain} \\S+: full restore point in `));
    expect(ended.stderr).toContain(`SIGTERM: ${other.domain} ended before that (1 of 2 domains)`);
    await guest.expectNothingLeft();

    const both = await runNbdpull([...args, "nosuchdomain", "--jobs", "3", "--json"]);
    expectExit(both, 4);
    expect(both.json()).toMatchObject({
      domains: [
        { domain: guest.lab.domain, level: "full" },
        { domain: other.domain, level: "incremental" },
        { domain: "nosuchdomain", error: { code: "E_NO_SUCH_DOMAIN" } },
      ],
    });
    expectExit(await nbdpull(...args, "--jobs", "2", "--server", "tcp:127.0.0.1:10999"), 2);
  });
});
