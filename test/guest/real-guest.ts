/**
 * A guest with an operating system, for the trial: two disks with ext4, on each an SQLite database under
 * load, one with PostgreSQL on XFS on LVM, and the guest's agent. build-guest.sh makes it, and init.sh is
 * what runs in it.
 */
import { randomBytes } from "node:crypto";
import { copyFile, mkdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { expect } from "vitest";
import { ensureLibvirt, labFolder, removeLab } from "../support/libvirt-daemon.js";
import { virsh } from "../support/libvirt-lab.js";
import { qemuImg } from "../support/qemu-nbd.js";

export const DISKS = ["vda", "vdb", "vdc"] as const;
export type Disk = (typeof DISKS)[number];

const BUILT = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "nbd-client-ts", "guest");
/** KVM is faster, except in some virtual machines: TCG works everywhere. */
const TYPE = process.env["GUEST_TYPE"] ?? "qemu";
const PATIENCE_MS = 240_000;

/** Where the data of the volume begin on the disk that LVM has to itself. */
const VOLUME_OFFSET = 1024 * 1024;
/**
 * What `xfs_repair -n` says of a file system that is frozen: its log has a record, and its counters are
 * behind.
 */
const FROZEN_XFS =
  /^( *- |Phase|ALERT|ignored because|which may be|sb_fdblocks|sb_ifree|sb_icount|No modify|destroyed because)/;

/** What the guest told of a database at its start. */
export interface Started {
  readonly integrity: string;
  readonly rows: number;
  readonly wrong: number;
}

export class RealGuest implements AsyncDisposable {
  readonly domain: string;
  readonly folder: string;

  private constructor() {
    // A name that the lab's cleanup recognizes.
    this.domain = `nbdpull-lab-${process.pid}-${randomBytes(4).toString("hex")}`;
    this.folder = labFolder(this.domain);
  }

  static async start(): Promise<RealGuest> {
    const obstacle = await ensureLibvirt();
    if (obstacle !== undefined) throw new Error(obstacle);
    const guest = new RealGuest();
    await mkdir(guest.folder);
    for (const file of ["vmlinuz", "initrd.img", ...DISKS.map((disk) => `${disk}.qcow2`)]) {
      await copyFile(join(BUILT, file), join(guest.folder, file));
    }
    const xml = join(guest.folder, "domain.xml");
    await writeFile(xml, guest.#definition());
    await virsh("define", xml);
    await guest.powerOn();
    return guest;
  }

  /** Where the guest's serial line goes: a folder of libvirt's. */
  get serialLog(): string {
    return `/var/lib/libvirt/qemu/${this.domain}.serial.log`;
  }

  image(disk: Disk): string {
    return join(this.folder, `${disk}.qcow2`);
  }

  /** Starts it, and waits until all databases are written to and its agent answers. */
  async powerOn(): Promise<void> {
    await writeFile(this.serialLog, "");
    await virsh("start", this.domain);
    await startsOf(this.serialLog);
    await this.hasAgent();
  }

  async hasAgent(): Promise<void> {
    await until("answer by its agent", async () => {
      const there = await virsh("domfsinfo", this.domain).catch(() => "");
      return DISKS.every((disk) => there.includes(`/${disk} `));
    });
  }

  /** The last row of each disk that the guest has acknowledged. */
  acknowledged(): Promise<Record<Disk, number>> {
    return acknowledgedIn(this.serialLog);
  }

  /** Waits until the guest has written more than so many rows to each disk. */
  async work(rows: number): Promise<void> {
    const before = await this.acknowledged();
    await until("new rows", async () => {
      const now = await this.acknowledged();
      return DISKS.every((disk) => now[disk] > before[disk] + rows);
    });
  }

  async crash(): Promise<void> {
    process.kill(Number(await readFile(`/run/libvirt/qemu/${this.domain}.pid`, "utf8")), "SIGKILL");
    while ((await virsh("domstate", this.domain)).trim() !== "shut off") await sleep(100);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await removeLab(this.domain);
    await execa("rm", ["-f", this.serialLog]);
  }

  #definition(): string {
    const disks = DISKS.map(
      (disk) =>
        `<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='${this.image(disk)}'/><target dev='${disk}' bus='virtio'/></disk>`,
    );
    return `<domain type='${TYPE}'><name>${this.domain}</name><memory unit='MiB'>768</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>${this.folder}/vmlinuz</kernel><initrd>${this.folder}/initrd.img</initrd><cmdline>console=ttyS0 quiet mitigations=off no_timer_check tsc=nowatchdog</cmdline></os>
  <features><acpi/><apic/></features>
  <devices>${disks.join("")}
    <serial type='file'><source path='${this.serialLog}'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='unix'><target type='virtio' name='trial.0'/></channel>
    <memballoon model='none'/><controller type='usb' model='none'/>
  </devices>
  <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>
</domain>`;
  }
}

/** Waits until a guest has told of all databases in the log of its serial line. */
export async function startsOf(serialLog: string): Promise<Record<Disk, Started>> {
  const told = async (): Promise<string[][]> => {
    const text = await readFile(serialLog, "latin1").catch(() => "");
    return [...text.matchAll(/START (vd[abc]) (\S+) (\d+) (\d+)/g)].map((match) => match.slice(1));
  };
  await until("word of its databases", async () => {
    const lines = await told();
    return DISKS.every((disk) => lines.some(([name]) => name === disk));
  });
  const all = await told();
  const of = (disk: Disk): Started => {
    const [, integrity = "", rows, wrong] = all.findLast(([name]) => name === disk) ?? [];
    return { integrity, rows: Number(rows), wrong: Number(wrong) };
  };
  return { vda: of("vda"), vdb: of("vdb"), vdc: of("vdc") };
}

async function acknowledgedIn(serialLog: string): Promise<Record<Disk, number>> {
  const text = await readFile(serialLog, "latin1");
  const last = (disk: Disk): number =>
    Number(
      text
        .match(new RegExp(`ACK ${disk} \\d+(?=\\r?\\n)`, "g"))
        ?.at(-1)
        ?.slice(8) ?? 0,
    );
  return { vda: last("vda"), vdb: last("vdb"), vdc: last("vdc") };
}

/** What is in a restored disk, which is raw. */
export interface Inspected extends Started {
  /** Whether the file system needs nothing, not even that its log is replayed. */
  readonly clean: boolean;
  /** Whether it needs nothing once its log was replayed. */
  readonly sound: boolean;
}

/** What is in the database of a restored disk, and what `e2fsck` or `xfs_repair` says of its file system. */
export async function inspect(disk: Disk, raw: string, folder: string): Promise<Inspected> {
  return disk === "vdc" ? await inspectPostgres(raw) : await inspectSqlite(raw, folder);
}

async function inspectSqlite(raw: string, folder: string): Promise<Inspected> {
  const check = async (): Promise<boolean> =>
    (await execa("e2fsck", ["-fn", raw], { reject: false })).exitCode === 0;
  const header = await execa("dumpe2fs", ["-h", raw]);
  const clean = !header.stdout.includes("needs_recovery") && (await check());
  const mountpoint = join(folder, `mnt-${randomBytes(4).toString("hex")}`);
  await mkdir(mountpoint);
  const found = await mounted(["-o", "loop", raw], mountpoint, async () => {
    const ask = async (sql: string): Promise<string> =>
      (await execa(join(BUILT, "sqlite3"), [join(mountpoint, "db.sqlite"), sql])).stdout.trim();
    const integrity = await ask("pragma integrity_check");
    const rows = Number(await ask("select count(*) from t"));
    const value = "replace(hex(zeroblob(400)), '00', printf('%09d', n))";
    const wrong = Number(await ask(`select count(*) from t where v <> ${value}`));
    return { integrity, rows, wrong };
  });
  return { ...found, clean, sound: await check() };
}

/**
 * PostgreSQL recovers in a copy of the guest's programs, on this host: checks of indexes, a dump, sums,
 * checksums.
 */
async function inspectPostgres(raw: string): Promise<Inspected> {
  const loop = (await execa("losetup", ["--find", "--show", "-o", String(VOLUME_OFFSET), raw])).stdout.trim();
  const check = () => execa(join(BUILT, "xfs_repair"), ["-n", loop], { reject: false, all: true });
  try {
    const before = await check();
    const said = before.all.split("\n").filter((line) => line !== "" && !FROZEN_XFS.test(line));
    const tree = join(BUILT, "tree");
    const name = `mnt-${randomBytes(4).toString("hex")}`;
    const mountpoint = join(tree, name);
    await mkdir(mountpoint);
    const judged = await mounted([loop], mountpoint, () =>
      execa("chroot", ["--userspec=999:999", tree, "/bin/sh", "/postgres.sh", "judge", `/${name}/data`], {
        all: true,
      }),
    );
    await rmdir(mountpoint);
    const [integrity = "", rows, wrong] = judged.stdout.trim().split("\n").at(0)?.split(" ") ?? [];
    expect(judged.all).not.toContain("BAD");
    const after = await check();
    const isClean = before.exitCode === 0 || said.length === 0;
    return {
      ...{ integrity, rows: Number(rows), wrong: Number(wrong) },
      ...{ clean: isClean, sound: after.exitCode === 0 },
    };
  } finally {
    await execa("losetup", ["-d", loop]);
  }
}

/** Mounting replays the log. */
async function mounted<T>(what: readonly string[], mountpoint: string, work: () => Promise<T>): Promise<T> {
  await execa("mount", [...what, mountpoint]);
  try {
    return await work();
  } finally {
    await execa("umount", [mountpoint]);
  }
}

/** Compares a restored disk with an image by QEMU's own reader. */
export async function expectSame(raw: string, image: string): Promise<void> {
  await qemuImg("compare", "-f", "raw", "-F", "qcow2", raw, image);
}

/** Waits for a guest that may be slow; `expect.poll` works in tests only. */
export async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  while (!(await isSo())) {
    if (Date.now() > deadline) throw new Error(`the guest gave no ${what} in ${PATIENCE_MS / 1000} s`);
    await sleep(500);
  }
}
