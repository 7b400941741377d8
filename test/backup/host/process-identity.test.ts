import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { expect, it } from "vitest";
import { BOOT_ID, isAlive, startIn, thisProcess } from "../../../src/backup/host/process-identity.js";

it("takes a process for dead that was killed, also while nobody has collected its exit code", async () => {
  expect(await isAlive(await thisProcess())).toBe(true);
  // `sleep` takes the shell's place, and never asks what became of the shell's child.
  const parent = spawn("sh", ["-c", "sleep 60 & echo $!; exec sleep 60"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  try {
    const [line] = (await once(parent.stdout, "data")) as [Buffer];
    const pid = Number(line.toString());
    const boot = (await readFile(BOOT_ID, "utf8")).trim();
    const stat = (): Promise<string> => readFile(`/proc/${pid}/stat`, "utf8");
    const identity = { host: hostname(), pid, startedAt: `${boot} ${startIn(await stat())}` };
    expect(await isAlive(identity)).toBe(true);
    process.kill(pid, "SIGKILL");
    await expect.poll(stat).toMatch(/\) Z /);
    expect(await isAlive(identity)).toBe(false);
  } finally {
    parent.kill("SIGKILL");
  }
});
