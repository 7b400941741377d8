import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { expect } from "vitest";
import { removeLab } from "./libvirt-daemon.js";
import { Lab } from "./libvirt-lab.js";
import { nbdpull, type Running, startNbdpull } from "./nbdpull.js";
import { readingGuest } from "./reading-guest.js";

const MiB = 1024 * 1024;

/** Has the guest of a lab that is off read and write its first disk by itself, as soon as it is started. */
export async function installReadingGuest(lab: Lab): Promise<void> {
  const sector = join(lab.folder, "sector");
  await writeFile(sector, readingGuest());
  await execa("qemu-io", ["-f", "qcow2", "-c", `write -s ${sector} 0 512`, lab.image("vda")]);
  await lab.redefine((xml) => xml.replace("<boot dev='network'/>", "<boot dev='hd'/>"));
}

/** A guest that reads and writes its disk by itself, stopped, and a repository with two points of it. */
export class LiveLab implements AsyncDisposable {
  readonly lab: Lab;
  /** QEMU's user gets to what is in it. */
  readonly folder: string;
  readonly repo: string;
  /** The id of a point that a guest can start from. */
  point = "";
  /** The id of one whose definition can't be started as it is. */
  unstartable = "";
  readonly #names: string[] = [];
  readonly #running: Running[] = [];

  private constructor(lab: Lab, folder: string) {
    this.lab = lab;
    this.folder = folder;
    this.repo = join(folder, "repo");
  }

  static async start(): Promise<LiveLab> {
    // The guest reads half a MiB a second, and must not come to the end before it is stopped.
    const lab = await Lab.start({ sizes: { vda: 32 * MiB, vdb: 3 * MiB } });
    const live = new LiveLab(lab, await mkdtemp(join(tmpdir(), "nbdpull-at-once-")));
    try {
      await live.#takeBoth();
      return live;
    } catch (error) {
      await live[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #takeBoth(): Promise<void> {
    const { lab, folder } = this;
    await chmod(folder, 0o755);
    await lab.write("vda", 0, 32 * MiB, 0x11);
    await lab.write("vdb", MiB, MiB, 0x22);
    await lab.powerOff();
    await installReadingGuest(lab);
    this.point = await this.#take();
    const card = "<interface type='user'><model type='nbdpull-none'/></interface>";
    const screen = "<video><model type='vga'/></video>";
    await lab.redefine((xml) => xml.replace("</devices>", `${card}${screen}</devices>`));
    this.unstartable = await this.#take();
  }

  async #take(): Promise<string> {
    const ran = await nbdpull("backup", this.lab.domain, "--to", this.repo, "--json");
    expect(ran.stderr).toBe("");
    return (ran.json() as { id: string }).id;
  }

  /** A folder for one try of a test. */
  async newFolder(): Promise<string> {
    const path = await mkdtemp(join(this.folder, "try-"));
    await chmod(path, 0o755);
    return path;
  }

  /** The name of a domain that ends with the lab: another one when a test is repeated. */
  newName(suffix: string): string {
    const name = `${this.lab.domain}-${suffix}${this.#names.length}`;
    this.endWith(name);
    return name;
  }

  /** The domain ends with the lab, too. */
  endWith(name: string): void {
    this.#names.push(name);
  }

  /** Starts a command, which is killed with the lab unless it has ended. */
  begin(...all: Parameters<typeof startNbdpull>): Running {
    const run = startNbdpull(...all);
    this.#running.push(run);
    return run;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const run of this.#running) run.kill("SIGKILL");
    for (const name of this.#names) await removeLab(name);
    await this.lab[Symbol.asyncDispose]();
    await rm(this.folder, { recursive: true, force: true });
  }
}
