import { readlink } from "node:fs/promises";
import { hostname } from "node:os";
import { expect, it } from "vitest";
import {
  isAlive,
  isDead,
  type SystemProcess,
  thisProcess,
  thisSystemProcess,
} from "../../../src/backup/host/process-identity.js";
import { ZombieProcess } from "../../support/zombie-process.js";

/** As a note names it, and as a lease does. */
async function identities({ pid, start, boot }: ZombieProcess) {
  const system = `${boot} ${await readlink("/proc/self/ns/pid")}`;
  return {
    noted: { host: hostname(), pid, startedAt: `${boot} ${start}` },
    leased: { host: hostname(), boot: system, pid, start },
  };
}

it("takes a process for dead that was killed, also while nobody has collected its exit code", async () => {
  expect(await isAlive(await thisProcess())).toBe(true);
  expect(await isDead(await thisSystemProcess())).toBe(false);
  await using zombie = await ZombieProcess.start(async (alive) => {
    const { noted, leased } = await identities(alive);
    expect([await isAlive(noted), await isDead(leased)]).toEqual([true, false]);
  });
  const { noted, leased } = await identities(zombie);
  expect([await isAlive(noted), await isDead(leased)]).toEqual([false, true]);
});

it("takes a later process with the same number for another one", async () => {
  const [noted, leased] = [await thisProcess(), await thisSystemProcess()];
  const [boot] = noted.startedAt.split(" ");
  expect(await isAlive({ ...noted, startedAt: `${boot} 1` })).toBe(false);
  expect(await isDead({ ...leased, start: "1" })).toBe(true);
});

it("takes no process for dead of which this system can't tell", async () => {
  const leased = await thisSystemProcess();
  const gone = { ...leased, pid: 4_000_000 };
  expect(await isDead(gone)).toBe(true);
  const unknown: Partial<SystemProcess>[] = [
    // Another boot, perhaps of another host; another namespace, where numbers mean others.
    { ...gone, boot: "another boot" },
    { ...gone, boot: gone.boot?.replace(/\[\d+\]/, "[1]") ?? "" },
    { host: hostname(), pid: 4_000_000 },
  ];
  for (const each of unknown) expect(await isDead(each)).toBe(false);
  const noted = { ...(await thisProcess()), pid: 4_000_000 };
  expect(await isAlive(noted)).toBe(false);
  expect(await isAlive({ ...noted, host: "other" })).toBe(true);
  // What was noted before this host was started again.
  expect(await isAlive({ ...noted, pid: process.pid, startedAt: "another boot" })).toBe(false);
});
