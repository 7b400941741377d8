/** A libvirtd that is stopped (SIGSTOP) during a backup of a guest that its clients may not leave. */
import { randomBytes, randomUUID } from "node:crypto";
import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { RateLimit } from "../../src/backup/pull/rate-limit.js";
import { backup } from "../../src/backup/take/backup.js";
import type { BackupOptions } from "../../src/backup/take/backup-options.js";
import { expectExit } from "../support/backup-lab.js";
import { labLog } from "../support/libvirt-daemon.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { domainXml, imagePath, LAB_DISKS, type LabFacts } from "../support/libvirt-lab-xml.js";
import { finished, startNbdpull } from "../support/nbdpull.js";
import { OwnLibvirtd } from "../support/own-libvirtd.js";
import { createImage, qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { restoreRaw } from "../support/restore-disk.js";

const MiB = 1024 * 1024;
const SIZE = 16 * MiB;
/** Bytes per second: both disks take four seconds. */
const RATE = 8 * MiB;
/** QEMU 7.2 may survive everything before its firmware has given up booting. */
const FIRMWARE_MS = 2000;
/** Longer than the disks take, so that the job has to be looked at and ended meanwhile. */
const STOPPED_MS = 6000;
/** For one answer of libvirt, instead of 90 s. */
const ANSWER_MS = 5000;
/** By then the events are deregistered, in vain for 5 s, and a look at the job was not answered. */
const INTERRUPTED_MS = 7000 + ANSWER_MS;

await describeWithLibvirt("a backup during which libvirtd is stopped", () => {
  let libvirtd: OwnLibvirtd;
  let running: OwnLibvirtd | undefined;
  let lab: LabFacts;
  let id: string;
  const scratch = (): string => join(lab.folder, "scratch");
  const repo = (): string => join(lab.folder, "repo");

  beforeEach(async () => {
    libvirtd = await OwnLibvirtd.start();
    running = libvirtd;
    lab = {
      domain: `nbdpull-lab-${process.pid}-${randomBytes(4).toString("hex")}`,
      uuid: randomUUID(),
      folder: libvirtd.folder,
      formats: { vda: "qcow2", vdb: "qcow2" },
      unprivileged: false,
    };
    await mkdir(scratch());
    for (const [i, disk] of LAB_DISKS.entries()) {
      const image = imagePath(lab, disk);
      await createImage(image, { format: "qcow2", size: SIZE });
      await qemuIo(image, "qcow2", `write -P ${i + 1} 0 ${SIZE}`);
    }
    const xml = domainXml(lab)
      .replace("<vcpu>", "<iothreads>1</iothreads><vcpu>")
      .replaceAll("discard='unmap'", "discard='unmap' iothread='1'");
    const file = join(lab.folder, "domain.xml");
    await writeFile(file, xml);
    await libvirtd.virsh("define", file);
    await libvirtd.virsh("start", lab.domain);
    id = await libvirtd.virsh("domid", lab.domain);
    await sleep(FIRMWARE_MS);
  });
  afterEach(async () => {
    // One that did not start has said why.
    if (!running) return;
    await running.virsh("destroy", lab.domain).catch(() => undefined);
    await running[Symbol.asyncDispose]();
    running = undefined;
    await rm(labLog(lab.domain), { force: true });
  });

  /** Resolves when both disks are being stored. */
  async function storing(): Promise<void> {
    const stored = async (): Promise<Set<string>> => {
      const home = join(repo(), lab.domain);
      const partial = (await readdir(home).catch(() => [])).find((name) => name.endsWith(".partial"));
      const names = partial === undefined ? [] : await readdir(join(home, partial)).catch(() => []);
      return new Set(names.flatMap((name) => /^\.?(vd[ab])\./.exec(name)?.[1] ?? []));
    };
    await expect.poll(stored, { interval: 20 }).toEqual(new Set(LAB_DISKS));
  }

  /** Expects that no job runs, nothing of one is left, and the guest lives. */
  async function expectCalm(): Promise<void> {
    await expect(libvirtd.virsh("backup-dumpxml", lab.domain)).rejects.toThrow(/no domain backup job/);
    // libvirt can take a dead QEMU for running for a while, but not without an answer from it.
    const answer = await libvirtd.virsh("qemu-monitor-command", lab.domain, "--hmp", "info status");
    expect([await libvirtd.virsh("domid", lab.domain), answer]).toEqual([
      id,
      expect.stringContaining("running"),
    ]);
    expect(await readdir(scratch())).toEqual([]);
    // Without a point there is no such folder.
    const names = await readdir(join(repo(), lab.domain)).catch(() => []);
    expect(names.filter((name) => name.startsWith("."))).toEqual([]);
  }

  async function expectWhole(point: string): Promise<void> {
    await expectCalm();
    const restored = join(lab.folder, "restored");
    await restoreRaw(repo(), lab.domain, point, restored);
    await libvirtd.virsh("destroy", "--graceful", lab.domain);
    for (const disk of LAB_DISKS) {
      const [raw, image] = [join(restored, `${disk}.raw`), imagePath(lab, disk)];
      await qemuImg("compare", "-f", "raw", "-F", "qcow2", raw, image);
    }
  }

  it("has its whole point, ends its job once it goes on, and the guest lives", async () => {
    const where = ["--to", repo(), "--create", "--scratch", scratch(), "--connect", libvirtd.uri];
    const run = startNbdpull(["backup", lab.domain, ...where, "--limit-rate", String(RATE), "--json"]);
    await storing().catch(async (error: unknown) => {
      run.kill("SIGTERM");
      await run.ended;
      throw error;
    });
    {
      using _ = libvirtd.stop();
      await sleep(STOPPED_MS);
    }
    const ran = await finished(run);
    expectExit(ran, 0);
    await expectWhole((ran.json() as { readonly id: string }).id);
  }, 240_000);

  it("ends the job of one that is interrupted meanwhile, also after longer than any answer is waited for", async () => {
    const stop = new AbortController();
    await using libvirt = new Libvirt({ connect: libvirtd.uri, timeoutMs: ANSWER_MS });
    const settings: BackupOptions = {
      ...{ libvirt, domain: lab.domain, repositoryPath: repo(), scratchParent: scratch() },
      ...{ level: "auto", disks: { include: [], exclude: [] }, stateFolder: join(lab.folder, "state") },
      ...{ format: "qcow2", digests: "sha256", sync: false, tool: "test", connect: {} },
      window: { requestSize: 65_536 },
    };
    const taking = backup({ ...settings, rateLimit: new RateLimit(RATE / 8), signal: stop.signal });
    // What fails before fails the test at once.
    await Promise.race([taking, storing()]).catch(async (error: unknown) => {
      stop.abort(error);
      await Promise.allSettled([taking]);
      throw error;
    });
    const failed = expect(taking).rejects.toThrow("enough");
    {
      using _ = libvirtd.stop();
      stop.abort(new Error("enough"));
      await sleep(INTERRUPTED_MS);
    }
    await failed;
    await expectCalm();
    await expectWhole((await backup(settings)).manifest.id);
  }, 240_000);
});
