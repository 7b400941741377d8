import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { expect } from "vitest";
import { BOOT_ID, startIn } from "../../src/backup/host/process-identity.js";

/** A process that was killed, and whose parent never asks what became of it. */
export class ZombieProcess implements AsyncDisposable {
  readonly pid: number;
  /** When it began, in ticks after the boot. */
  readonly start: string;
  readonly boot: string;
  readonly #parent: ChildProcess;

  private constructor(pid: number, start: string, boot: string, parent: ChildProcess) {
    this.pid = pid;
    this.start = start;
    this.boot = boot;
    this.#parent = parent;
  }

  /** @param whileAlive called before it is killed */
  static async start(whileAlive?: (alive: ZombieProcess) => Promise<void>): Promise<ZombieProcess> {
    // `sleep` takes the shell's place.
    const parent = spawn("sh", ["-c", "sleep 60 & echo $!; exec sleep 60"], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    try {
      const [line] = (await once(parent.stdout, "data")) as [Buffer];
      const pid = Number(line.toString());
      const stat = (): Promise<string> => readFile(`/proc/${pid}/stat`, "utf8");
      const boot = (await readFile(BOOT_ID, "utf8")).trim();
      const zombie = new ZombieProcess(pid, startIn(await stat()), boot, parent);
      await whileAlive?.(zombie);
      process.kill(pid, "SIGKILL");
      await expect.poll(stat).toMatch(/\) Z /);
      return zombie;
    } catch (error) {
      parent.kill("SIGKILL");
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#parent.kill("SIGKILL");
  }
}
