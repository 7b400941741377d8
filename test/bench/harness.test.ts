/** The whole harness on a few small workloads: tests that it works, not how fast anything is. */

import { chmod, copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { PROJECT } from "../../bench/paths.js";
import type { BenchResult } from "../../bench/result.js";
import { readResult } from "../../bench/result-file.js";
import { describeWith } from "../support/tools.js";

const TOOLS = [
  ...["cc", "qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"],
  ...["nbdkit", "nbdcopy", "nbdinfo", "certtool"],
];
const WORKLOADS = ["full-raw", "tls", "four-disks", "scattered", "huge-map"];

describeWith(TOOLS, "the bench harness", () => {
  let folder: string;
  let result: BenchResult;
  let printed: string;
  const at = (name: string): string => join(folder, name);
  const script = (name: string): string => join(PROJECT, "dist", "bench", `${name}.js`);

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "bench-harness-"));
    const small = ["--scale", "0.005", "--runs", "1", "--only", WORKLOADS.join(",")];
    const { stdout } = await execa(process.execPath, [script("run"), ...small, "--json", at("result.json")], {
      env: { BENCH_DIR: folder },
    });
    printed = stdout;
    result = await readResult(at("result.json"));
  });
  afterAll(async () => {
    await rm(folder, { recursive: true });
  });

  it("runs the chosen workloads, and verifies the output of every contender", () => {
    expect(result.workloads.map(({ name }) => name)).toEqual(WORKLOADS);
    for (const { name, contenders } of result.workloads) {
      for (const contender of contenders) {
        // libnbd for Python need not be installed.
        if (contender.state === "missing") continue;
        expect([name, contender.name, contender.state, contender.reason]).toEqual([
          name,
          contender.name,
          "measured",
          undefined,
        ]);
        expect(contender.verified).toMatch(/./);
        expect(contender.runs).toHaveLength(1);
      }
    }
  });

  it("measures time, memory and requests of nbdpull", () => {
    for (const { name: workload, contenders } of result.workloads) {
      const ours = contenders.find(({ name }) => name.startsWith("nbdpull"));
      expect(ours?.runs[0]?.wallSeconds).toBeGreaterThan(0);
      expect(ours?.runs[0]?.userSeconds).toBeGreaterThan(0);
      expect(ours?.runs[0]?.peakRssKiB).toBeGreaterThan(10_000);
      // The relay can't read TLS.
      if (workload === "tls") continue;
      expect(ours?.traffic?.connections).toBeGreaterThan(0);
      expect(ours?.traffic?.roundTrips).toBeGreaterThan(2);
    }
  });

  it("counts the known requests of the minimal client", () => {
    const scattered = result.workloads.find(({ name }) => name === "scattered");
    const minimal = scattered?.contenders.find(({ name }) => name === "minimal C client");
    // 30 extents, and one block status request for them.
    expect(minimal?.traffic).toMatchObject({
      connections: 1,
      options: 3,
      reads: 30,
      readBytes: 30 * 65536,
      blockStatus: 1,
    });
  });

  it("prints a table for each workload, and the targets", () => {
    expect(printed.match(/^### /gm)).toHaveLength(WORKLOADS.length + 1);
    expect(printed).toContain("| full-raw | nbdpull raw | wall time | nbdcopy | ≤ 0.80 |");
  });

  it("says that QEMU's servers have answered a large read before each run", () => {
    expect(result.settings.usedServers).toBe(true);
    expect(printed).toContain("Before each of them QEMU's server has answered one read of 8 MiB.");
  });

  it("starts each command in turn", async () => {
    const only = [
      "--only",
      `start-node-${process.versions.node}`,
      "--contenders",
      "node -e,64 KiB,first request",
    ];
    const limits = ["--runs", "2", "--json", at("start.json")];
    await execa(process.execPath, [script("run"), ...only, ...limits], { env: { BENCH_DIR: folder } });
    const [start] = (await readResult(at("start.json"))).workloads;
    expect(start?.contenders.map(({ name, state, reason }) => [name, state, reason])).toEqual(
      ["node -e 0", "pull to its first request", "pull of 64 KiB"].map((name) => [
        name,
        "measured",
        undefined,
      ]),
    );
    expect(start?.contenders.map(({ runs }) => runs.length)).toEqual([2, 2, 2]);
  });

  it("is run by the Node that is named, with all other options", async () => {
    await writeFile(at("node"), `#!/bin/sh\necho "$@" > ${at("asked")}\nexec ${process.execPath} "$@"\n`);
    await chmod(at("node"), 0o755);
    const args = ["--only", "tls", "--node", at("node"), "--list"];
    const listed = await execa(process.execPath, [script("run"), ...args]);
    expect(await readFile(at("asked"), "utf8")).toBe(`${script("run")} --only=tls --list\n`);
    expect(listed.stdout).toContain("tls: ");
  });

  it("ends as that Node does", async () => {
    const args = [script("run"), "--node", "/bin/false", "--list"];
    expect((await execa(process.execPath, args, { reject: false })).exitCode).toBe(1);
  });

  it("says at once that its result can't be written", async () => {
    const args = [script("run"), "--only", "full-raw", "--json", at("nowhere/result.json")];
    const refused = await execa(process.execPath, args, { reject: false, env: { BENCH_DIR: folder } });
    expect(refused.exitCode).toBe(1);
    expect(refused.stderr).toContain("nowhere/result.json");
    expect(refused.stderr).not.toContain("full-raw");
  });

  it("leaves no empty file where it fails later", async () => {
    const args = [script("run"), "--only", "full-raw", "--json", at("never.json")];
    const env = { BENCH_DIR: folder, PATH: at("no-programs") };
    expect((await execa(process.execPath, args, { reject: false, env })).exitCode).toBe(1);
    await expect(readFile(at("never.json"))).rejects.toThrow("ENOENT");
  });

  it("compares two results", async () => {
    const { stdout } = await execa(process.execPath, [
      script("compare"),
      at("result.json"),
      at("result.json"),
    ]);
    expect(stdout).toContain("| scattered | nbdpull raw |");
    expect(stdout).not.toContain("Not alike");
  });

  it("publishes a result into the existing page, once it has rounds enough", async () => {
    await copyFile(join(PROJECT, "docs", "performance.md"), at("performance.md"));
    const toPublish = async (file: string): Promise<string> => {
      const args = [script("publish"), "--page", at("performance.md"), `node24=${at(file)}`];
      return (await execa(process.execPath, args)).stderr;
    };
    expect(await toPublish("result.json")).toContain("not published, in node24: full-raw: 1 of 3 rounds");
    expect(await readFile(at("performance.md"), "utf8")).not.toContain("| full-raw |");
    const thrice = result.workloads.map((workload) => ({
      ...workload,
      contenders: workload.contenders.map((each) => ({
        ...each,
        runs: [...each.runs, ...each.runs, ...each.runs],
      })),
    }));
    await writeFile(at("more.json"), JSON.stringify({ ...result, workloads: thrice }));
    expect(await toPublish("more.json")).toBe("");
    const page = await readFile(at("performance.md"), "utf8");
    for (const name of WORKLOADS) {
      expect(page).toContain(`(performance/node24/${name}.svg)`);
      expect(await readFile(at(`performance/node24/${name}.svg`), "utf8")).toContain("</svg>");
    }
  });

  it.each([
    ["another has no section", "elsewhere=more.json", "usage: SECTION="],
    ["another can't be read", "node22=none.json", "none.json"],
    ["a section is given twice", "node20=result.json", "was given twice"],
  ])("replaces nothing of what is published where %s", async (_, other, message) => {
    const args = [script("publish"), "--page", at("performance.md"), "node20=more.json", other];
    const refused = await execa(process.execPath, args, { reject: false, cwd: folder });
    expect([refused.exitCode, refused.stderr]).toEqual([1, expect.stringContaining(message)]);
    await expect(readFile(at("performance/node20/result.json"))).rejects.toThrow("ENOENT");
  });

  it("leaves nothing behind", async () => {
    const { stdout } = await execa("ls", [folder]);
    expect(stdout.split("\n").filter((name) => name.startsWith("nbdpull-bench-"))).toEqual([]);
  });
});
