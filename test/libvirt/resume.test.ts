import { rmSync } from "node:fs";
import { readdir, readFile, rm, stat, statfs, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import type { Packet } from "../../src/backup/libvirt/rpc/packets.js";
import { type BackupJson, BackupLab, expectExit, ofCalmLibvirt } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, LAB_DISKS, virsh } from "../support/libvirt-lab.js";
import { nbdpull, type Ran, runNbdpull, type StartOptions, startNbdpull } from "../support/nbdpull.js";
import { SshHost } from "../support/ssh-host.js";

const MiB = 1024 * 1024;
/** What a run that is killed may have read in vain, and what a server and a plan may add. */
const SPARE = 64 * MiB;
const SCRATCH = 160 * MiB;
/** DOMAIN_BLOCK_JOB_SET_SPEED: the last question before a point is gone on with. */
const SET_SPEED = 239;
/** Of a journal, in bytes: a longer one says of something that it is stored. */
const ABOVE_HEADER = 1024;

type ResumedJson = Omit<BackupJson, "disks"> & {
  readonly createdAt: string;
  readonly resumed: { readonly times: number; readonly keptBytes: number; readonly readBytes: number };
  readonly disks: readonly { readonly dataBytes: number }[];
};

interface Case {
  readonly options: readonly string[];
  readonly start?: StartOptions;
}

await describeWithLibvirt("a backup that was killed", () => {
  let guest: BackupLab;
  let host: SshHost;
  let base: BackupJson;
  beforeAll(async () => {
    host = await SshHost.start();
    guest = await BackupLab.start({ sizes: { vda: 96 * MiB } }, SCRATCH);
    for (const disk of LAB_DISKS) {
      for (let at = 0; at < 40; at += 8) await guest.lab.write(disk, at * MiB, 7 * MiB, 0x21 + at);
    }
    base = await guest.take();
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
    await host[Symbol.asyncDispose]();
  });

  /** Starts a slow backup, and kills it when a journal says what it has stored. */
  async function killed({ options, start = {} }: Case): Promise<string> {
    const run = startNbdpull(guest.arguments("--limit-rate", "4M", ...options), start);
    await expect.poll(journalBytes, { interval: 50 }).toBeGreaterThan(ABOVE_HEADER);
    run.kill("SIGKILL");
    expect(await run.ended).toBeUndefined();
    // A dead run's lock expires after ten seconds, which other tests wait for.
    await rm(join(guest.repo, guest.lab.domain, ".lock"), { recursive: true });
    return (await partial())?.slice(1, -".partial".length) ?? "";
  }

  async function partial(): Promise<string | undefined> {
    return (await guest.beside()).find((name) => name.endsWith(".partial"));
  }

  /** The path of a file of the point that was begun. */
  async function begun(name: string): Promise<string> {
    return join(guest.repo, guest.lab.domain, (await partial()) ?? "", name);
  }

  async function journalBytes(): Promise<number> {
    const paths = await Promise.all(LAB_DISKS.map((disk) => begun(`${disk}.journal`)));
    const sizes = await Promise.all(
      paths.map((path) =>
        stat(path).then(
          ({ size }) => size,
          () => 0,
        ),
      ),
    );
    return Math.max(...sizes);
  }

  /** What a restart of the host that the killed run was on leaves of its traces: another boot, empty /tmp. */
  async function restartPuller(): Promise<void> {
    const [folder = ""] = await readdir(guest.scratch);
    const note = join(guest.scratch, folder, "owner.json");
    const owner = JSON.parse(await readFile(note, "utf8")) as { startedAt: string };
    const startedAt = owner.startedAt.replace(/^[^ ]+/, "f00dcafe-0000-4000-8000-000000000000");
    await writeFile(note, JSON.stringify({ ...owner, startedAt }));
    await rm(join(tmpdir(), `${folder}-way`), { recursive: true, force: true });
  }

  it.each<[string, () => Promise<Case>]>([
    ["an increment", async () => ({ options: [] })],
    [
      "compressed, over TCP",
      async () => ({ options: ["--level", "full", "--compress", "--server", `tcp:${await freePort()}`] }),
    ],
    [
      "raw, over ssh, after a restart of its own host",
      async () => ({
        options: ["--level", "full", "--format", "raw", "--connect", host.uri],
        start: { inside: host.inside(guest.scratch) },
      }),
    ],
  ])(
    "goes on with its point: %s",
    async (_, how) => {
      const { options, start = {} } = await how();
      await guest.lab.write("vda", MiB, 48 * MiB, 0x5a);
      const frozen = await guest.copyNow();
      const id = await killed({ options, start });
      if (options.includes(host.uri)) await restartPuller();
      // The guest goes on, and the point is still that of the job.
      await guest.lab.write("vda", 2 * MiB, 40 * MiB, 0x77);
      // The first time two at once: one of them takes it over.
      const runs = Array.from({ length: options.length === 0 ? 2 : 1 }, () =>
        runNbdpull(guest.arguments(...options), start),
      );
      const [ran, rival] = (await Promise.all(runs)).sort((one) => (hasResumed(one) ? -1 : 1));
      if (!ran) throw new Error("there was one");
      expectExit(ran, 0);
      // The other one is refused, or waits for the lock and makes a point of its own.
      if (rival && rival.code !== 0) {
        const refused = { code: expect.stringMatching(/^(?:E_BACKUP_RUNNING|E_LOCKED)$/) };
        expect(rival.json()).toMatchObject({ error: refused });
      } else if (rival) expect(rival.json()).toMatchObject({ resumed: null });
      const point = ofCalmLibvirt(ran.json() as ResumedJson);
      expect(point).toMatchObject({ id, warnings: [], resumed: { times: 1 } });
      expect(id.replaceAll(/[-:]/g, "")).toContain(point.createdAt.replaceAll(/[-:]/g, ""));
      const dataBytes = point.disks.reduce((sum, disk) => sum + disk.dataBytes, 0);
      const { keptBytes, readBytes } = point.resumed;
      expect(keptBytes).toBeGreaterThan(0);
      expect(readBytes).toBeLessThan(dataBytes - keptBytes + SPARE);
      expect(keptBytes + readBytes).toBeGreaterThanOrEqual(dataBytes);
      await guest.expectNothingLeft();
      await guest.expectPoint(id, frozen);
      expect(await readdir(join(guest.repo, guest.lab.domain, id))).not.toContainEqual(
        expect.stringMatching(/journal|begun/),
      );
      expectExit(await nbdpull("verify", guest.repo, guest.lab.domain), 0);
    },
    480_000,
  );

  it.each([
    ["goes on, as what its scratch files take is no loss of room", 50 * MiB, undefined],
    ["is cleared away, if they leave too little room", 4 * MiB, "too little room"],
  ])(
    "over ssh: %s",
    async (_, freeBytes, because) => {
      const options = ["--level", "full", "--connect", host.uri];
      const start = { inside: host.inside(guest.scratch) };
      const id = await killed({ options, start });
      await guest.lab.write("vda", MiB, 39 * MiB, 0x5b);
      await guest.lab.write("vdb", MiB, 39 * MiB, 0x5b);
      const { bavail, bsize } = await statfs(guest.scratch);
      // Others leave that much beside them.
      const filler = join(guest.scratch, "filler");
      await writeFile(filler, Buffer.alloc(bavail * bsize - freeBytes, 1));
      const ran = await runNbdpull(guest.arguments(...options), start).finally(() => rm(filler));
      expectExit(ran, 0);
      expect(ofCalmLibvirt(ran.json() as BackupJson)).toMatchObject({
        ...(because === undefined ? { id, resumed: { times: 1 } } : { resumed: null }),
        warnings: because === undefined ? [] : [expect.stringContaining(because)],
      });
      await guest.expectNothingLeft();
    },
    480_000,
  );

  it.each<[string, () => Promise<readonly string[]>, string | undefined]>([
    ["with --no-resume", async () => ["--no-resume"], undefined],
    ["for another compression", async () => ["--compress"], "other compression"],
    [
      "if its host has crashed, the job is gone, and the guest runs anew",
      async () => {
        await restartPuller();
        await guest.lab.crash();
        await guest.lab.powerOn();
        return [];
      },
      undefined,
    ],
    [
      "if its definition was changed",
      async () => {
        await writeFile(await begun("domain.xml"), "<domain/>");
        return [];
      },
      "its domain.xml was changed",
    ],
    [
      "if its scratch files leave too little room, which is there without them",
      async () => {
        await guest.lab.write("vda", 2 * MiB, 40 * MiB, 0x78);
        return ["--scratch-reserve", `${(SCRATCH - 35 * MiB) / MiB}M`];
      },
      "too little room",
    ],
  ])(
    "is cleared away %s",
    async (_, change, because) => {
      const id = await killed({ options: ["--level", "full"] });
      const more = await change();
      const point = await guest.take("--level", "full", ...more);
      expect(point).toMatchObject({
        resumed: null,
        warnings: because === undefined ? [] : [expect.stringContaining(because)],
      });
      expect(point.id).not.toBe(id);
      expect(await guest.checkpoints()).toContain(point.checkpoint);
      expect(await guest.checkpoints()).not.toContain(base.checkpoint);
      await guest.expectNothingLeft();
    },
    480_000,
  );

  it("is begun anew when another run clears it away in the last moment", async (context) => {
    if (!(await virsh("version")).includes("API: QEMU 9."))
      context.skip("libvirt does not ask for the speed");
    const id = await killed({ options: ["--level", "full"] });
    const left = await begun("");
    using front = new LibvirtInFront(guest.folder);
    const spoil = ({ procedure }: Packet): undefined => {
      if (procedure === SET_SPEED) rmSync(left, { recursive: true, force: true });
    };
    const ran = await runNbdpull(guest.arguments("--level", "full"), { env: front.env({ spoil }) });
    expectExit(ran, 0);
    const warnings = [expect.stringMatching(/^a new point is begun: .* another run has cleared it away/)];
    expect(ran.json()).toMatchObject({ resumed: null, warnings });
    expect((await guest.points()).map((point) => point.id)).not.toContain(id);
    await guest.expectNothingLeft();
  }, 480_000);
});

function hasResumed(ran: Ran): boolean {
  return ran.code === 0 && (ran.json() as { readonly resumed: unknown }).resumed !== null;
}
