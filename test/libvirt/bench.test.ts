/** The harness workloads that back up a domain: tests that they work, not how fast anything is. */

import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { PROJECT } from "../../bench/paths.js";
import { readResult } from "../../bench/result-file.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";

const RUN = join(PROJECT, "dist", "bench", "run.js");

/** What the harness process has left. */
async function leftBy(pid: number | undefined, folder: string): Promise<string[]> {
  const name = `nbdpull-bench-${pid}-`;
  const domains = (await virsh("list", "--all", "--name")).split("\n");
  const places = [folder, "/var/log/libvirt/qemu", "/var/lib/libvirt/qemu/checkpoint"];
  const files = await Promise.all(places.map((place) => readdir(place).catch(() => [])));
  return [...domains, ...files.flat()].filter((each) => each.startsWith(name)).concat(files[0] ?? []);
}

await describeWithLibvirt("the bench harness with a domain", () => {
  it("measures backups and restores, verifies each, and leaves nothing behind", async () => {
    const folder = await mkdtemp(join(tmpdir(), "bench-libvirt-"));
    const json = `${folder}.json`;
    try {
      const only = ["libvirt-incremental", "libvirt-restore"];
      const args = ["--only", only.join(","), "--scale", "0.01", "--runs", "1", "--json", json];
      const harness = execa(process.execPath, [RUN, ...args], { env: { BENCH_DIR: folder } });
      await harness;
      const { workloads } = await readResult(json);
      expect(workloads.map(({ name }) => name)).toEqual(only);
      for (const { contenders } of workloads) {
        for (const { name, state, reason, verified, runs, outside } of contenders) {
          // virtnbdbackup need not be installed.
          if (state === "missing" && name.startsWith("virtnbd")) continue;
          expect([name, state, reason]).toEqual([name, "measured", undefined]);
          expect(verified).toContain("qemu-img compare");
          expect(runs).toHaveLength(1);
          if (name.startsWith("nbdpull backup")) expect(outside).toMatchObject({ libvirtConnections: 1 });
        }
      }
      expect(await leftBy(harness.pid, folder)).toEqual([]);
    } finally {
      await rm(folder, { recursive: true });
      await rm(json, { force: true });
    }
  });

  it("leaves nothing behind when it is interrupted", async () => {
    const folder = await mkdtemp(join(tmpdir(), "bench-libvirt-"));
    try {
      const args = ["--only", "libvirt-full", "--contenders", "nbdpull", "--scale", "0.01", "--runs", "9"];
      const harness = execa(process.execPath, [RUN, ...args], { env: { BENCH_DIR: folder }, reject: false });
      const isRunning = async () => (await virsh("list", "--name")).includes(`nbdpull-bench-${harness.pid}-`);
      await expect.poll(isRunning).toBe(true);
      harness.kill("SIGINT");
      expect((await harness).exitCode).toBe(130);
      expect(await leftBy(harness.pid, folder)).toEqual([]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
