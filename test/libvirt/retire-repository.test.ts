import { cp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { finished, type Ran, runNbdpull, startNbdpull } from "../support/nbdpull.js";
import { SshHost } from "../support/ssh-host.js";

interface Finding {
  readonly check: string;
  readonly status: string;
  readonly cause: string;
  readonly mend?: string;
}

/** The order matters: the repository goes in the first test, and its checkpoints in the last. */
await describeWithLibvirt("the checkpoints of a repository that is no more", () => {
  let guest: BackupLab;
  let living: string;
  /** The dead repository's id, and its first eight digits. */
  let id: string;
  let dead: string;
  /** Where this host records whose the checkpoints are. */
  let state: string;
  let left: readonly string[];

  beforeAll(async () => {
    guest = await BackupLab.start();
    state = join(guest.folder, "state");
    guest.start = { env: { NBDPULL_STATE_FOLDER: state } };
    living = join(guest.folder, "living");
    await guest.take();
    await guest.take();
    left = await guest.checkpoints();
    expect(left).toHaveLength(2);
    ({ id } = JSON.parse(await readFile(join(guest.repo, "nbdpull.json"), "utf8")) as { id: string });
    dead = id.slice(0, 8);
    expectExit(await guest.run("--to", living), 0);
  });

  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  function doctor(...more: readonly string[]): Promise<Ran> {
    const args = ["doctor", guest.lab.domain, "--scratch", guest.scratch, "--json", ...more];
    return runNbdpull(args, guest.start);
  }

  async function recorded(of: string): Promise<unknown> {
    const { domain } = guest.lab;
    const uuid = (await virsh("domuuid", domain)).trim();
    return JSON.parse(await readFile(join(state, "repositories", of, `${uuid}.json`), "utf8"));
  }

  async function bitmaps(): Promise<Finding | undefined> {
    const ran = await doctor("--to", living);
    expectExit(ran, 0);
    return (ran.json() as Finding[]).find(({ check }) => check === "bitmaps vda");
  }

  it("stay while the repository is where it was last, or is the one that is given", async () => {
    for (const [given, code, exit, more] of [
      ["x", "E_REPOSITORY_ID", 2, []],
      [`${dead}-0000-4000-8000-00000000000`, "E_REPOSITORY_ID", 2, []],
      [id.toUpperCase(), "E_REPOSITORY_ALIVE", 4, []],
      [dead, "E_REPOSITORY_ALIVE", 4, ["--dry-run"]],
    ] as const) {
      const refused = await doctor("--retire", given, ...more);
      expectExit(refused, exit);
      expect(refused.json()).toMatchObject({ error: { code } });
    }
    const moved = join(guest.folder, "moved");
    await rename(guest.repo, moved);
    const refused = await doctor("--retire", dead.toUpperCase(), "--to", moved);
    expectExit(refused, 4);
    expect(refused.json()).toMatchObject({ error: { code: "E_REPOSITORY_ALIVE" } });
    await rm(moved, { recursive: true });
    expect(await guest.checkpoints()).toHaveLength(3);
  });

  it("are counted in each image, and can't be deleted while the domain is off", async () => {
    await guest.lab.powerOff();
    const whose = `1 this repository's`;
    expect(await bitmaps()).toMatchObject({ status: "pass", cause: expect.stringContaining(whose) });
    expect((await bitmaps())?.cause).toMatch(new RegExp(`^3 dirty bitmaps: .*2 repository ${dead}'s`));
    const off = await doctor("--retire", dead);
    expectExit(off, 4);
    expect(off.json()).toMatchObject({ error: { code: "E_DOMAIN_OFF" } });
    await guest.lab.powerOn();
  });

  it("are a warning once they are old, and once libvirt has forgotten them", async () => {
    const { domain } = guest.lab;
    const definitions: string[] = [];
    for (const name of left) definitions.push(await virsh("checkpoint-dumpxml", domain, name));
    for (const name of left) await virsh("checkpoint-delete", domain, name, "--metadata");
    const forgotten = await bitmaps();
    expect(forgotten).toMatchObject({ status: "warn", cause: expect.stringContaining("2 of no checkpoint") });
    expect(forgotten?.mend).toContain(`qemu-img bitmap --remove ${guest.lab.image("vda")} ${left[0]}`);
    for (const xml of definitions) {
      const file = join(guest.folder, "checkpoint.xml");
      const then = Math.floor(Date.now() / 1000) - 40 * 24 * 60 * 60;
      await writeFile(file, xml.replace(/<creationTime>\d+/, `<creationTime>${then}`));
      await virsh("checkpoint-create", domain, file, "--redefine");
    }
    expect(await bitmaps()).toMatchObject({
      status: "warn",
      cause: expect.stringContaining(`the newest of repository ${dead} is 40 days old`),
      mend: `nbdpull doctor --retire ${dead} --dry-run -- ${domain}`,
    });
  });

  it("are told by --dry-run, without those that another repository's record has", async () => {
    const { domain } = guest.lab;
    const told = async (given: string, ...more: readonly string[]): Promise<unknown> => {
      const ran = await doctor("--retire", given, "--dry-run", ...more);
      expectExit(ran, 0);
      return ran.json();
    };
    const all = {
      version: 1,
      repositoryId: dead,
      dryRun: true,
      domains: [{ domain, checkpoints: left, failed: [] }],
    };
    expect(await told(dead, "--to", living)).toEqual(all);
    // The names of both repositories' checkpoints begin alike.
    const like = join(state, "repositories", `${dead}-0000-4000-8000-000000000000`);
    await cp(join(state, "repositories", id), like, { recursive: true });
    for (const name of await readdir(like)) {
      const text = await readFile(join(like, name), "utf8");
      await writeFile(join(like, name), text.replace(`"${left[0]}",`, ""));
    }
    expect(await told(id)).toMatchObject({ domains: [{ checkpoints: [left[0]] }] });
    await rm(like, { recursive: true });
    expect(await guest.checkpoints()).toHaveLength(3);
    const everywhere = await runNbdpull(["doctor", "--retire", id, "--dry-run", "--json"], guest.start);
    expect(everywhere.json()).toMatchObject({ domains: expect.arrayContaining(all.domains) });
  });

  it("are told through ssh too, with a warning of what is not known here", async () => {
    await using host = await SshHost.start();
    const ran = await doctor("--retire", dead, "--dry-run", "--connect", host.uri);
    expectExit(ran, 0);
    expect(ran.json()).toMatchObject({ domains: [{ checkpoints: left }] });
    expect(ran.stderr).toMatch(/alive is known of this user's backups from this host only/);
    // Nobody else may read the record, or learn of it that no repository is alive.
    const inside = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    const nobody = startNbdpull(["doctor", "--retire", dead, "--json"], { ...guest.start, inside });
    const refused = await finished(nobody);
    expectExit(refused, 4);
    expect(refused.json()).toMatchObject({ error: { code: "E_STATE_FOLDER" } });
  });

  it("go with the next command if the first one was killed, and leave the living one's increments", async () => {
    using front = new LibvirtInFront(guest.folder);
    let deletions = 0;
    const swallowDeletion = (): boolean => {
      deletions += 1;
      if (deletions === 2) killed.kill("SIGKILL");
      return deletions === 2;
    };
    const env = { ...guest.start.env, ...front.env({ swallowDeletion }) };
    const killed = startNbdpull(["doctor", guest.lab.domain, "--retire", dead], { env });
    expect(await killed.ended).toBeUndefined();
    expect(await guest.checkpoints()).toHaveLength(2);
    expectExit(await doctor("--retire", dead), 0);
    expect(await guest.checkpoints()).toHaveLength(1);
    expect(await recorded(id)).toMatchObject({ checkpoints: [] });
    expect(await bitmaps()).toMatchObject({ cause: expect.stringMatching(/: 1 this repository's/) });
    const next = await guest.run("--to", living);
    expect(next.json()).toMatchObject({ level: "incremental" });
  });
});
