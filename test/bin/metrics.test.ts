import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { updateOfFailure, updateOfRun, updateOfSuccess } from "../../bin/metrics.js";
import { MetricsFile } from "../../bin/metrics-file.js";
import type { ReportDocument } from "../../bin/report-document.js";
import { updateOfReport } from "../../bin/report-metrics.js";
import type { BackupResult } from "../../src/backup/take/backup.js";
import { nbdpull } from "../support/nbdpull.js";

const disk: BackupResult["manifest"]["disks"][number] = {
  name: "vda",
  file: "vda.qcow2",
  format: "qcow2",
  mode: "full",
  parent: null,
  virtualSize: 4096,
  clusterSize: 512,
  dirtyBytes: 4096,
  dataBytes: 1000,
  zeroBytes: 0,
  storedBytes: 1000,
  exportName: "vda",
  bitmap: null,
  map: null,
  digests: null,
};

function success(domain: string, level: "full" | "incremental", createdAt: string): BackupResult {
  const increment = { ...disk, name: "vdb", mode: "incremental", parent: "p" } as const;
  return {
    manifest: {
      format: "nbdpull-point",
      version: 1,
      id: "20261120T152216.139Z",
      domain: { name: domain, uuid: null },
      level: level === "full" ? "full" : "incremental",
      checkpoint: null,
      createdAt,
      tool: "test",
      disks: [disk, increment],
    },
    domainFolder: domain,
    folder: "/x",
    proofs: [],
    connections: 1,
    requests: 1,
    extents: 1,
    seconds: 2.5,
    isRunning: true,
    level,
    retired: [],
    leftOut: [],
    plainText: [],
  };
}

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-metrics-"));
  path = join(folder, "nbdpull.prom");
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

describe("a metrics file", () => {
  it("keeps the last success of a domain whose backup fails, and the series of other domains", async () => {
    const file = await MetricsFile.at(path);
    await file.update(updateOfSuccess(success("web", "full", "2026-11-20T00:00:00.500Z"), "/r", 5000));
    await file.update(updateOfSuccess(success("db", "full", "2026-11-21T00:00:00.000Z"), "/r", 6000));
    await file.update(updateOfFailure("web", "/r", 4, 7000));
    await file.update(updateOfFailure("new", "/r", 1, 8000));
    await file.update(updateOfRun("/r", 1, 9000));
    const lines = (await readFile(path, "utf8")).split("\n");
    expect(lines.filter((line) => /^nbdpull_(run|backup_(success|last|exit))/.test(line))).toEqual([
      'nbdpull_run_timestamp_seconds{repository="/r"} 9',
      'nbdpull_run_exit_code{repository="/r"} 1',
      'nbdpull_backup_success{domain="db",repository="/r"} 1',
      'nbdpull_backup_success{domain="new",repository="/r"} 0',
      'nbdpull_backup_success{domain="web",repository="/r"} 0',
      'nbdpull_backup_exit_code{domain="db",repository="/r"} 0',
      'nbdpull_backup_exit_code{domain="new",repository="/r"} 1',
      'nbdpull_backup_exit_code{domain="web",repository="/r"} 4',
      'nbdpull_backup_last_success_timestamp_seconds{domain="db",repository="/r"} 1795219200',
      'nbdpull_backup_last_success_timestamp_seconds{domain="new",repository="/r"} 0',
      'nbdpull_backup_last_success_timestamp_seconds{domain="web",repository="/r"} 1795132800.5',
    ]);
    expect(lines).toContain('nbdpull_backup_stored_bytes{domain="web",repository="/r",level="full"} 2000');
    expect(lines).toContain('nbdpull_backup_full_disks{domain="web",repository="/r",level="full"} 1');
    await file.update(updateOfSuccess(success("web", "incremental", "2026-11-22T00:00:00Z"), "/r", 9000));
    const now = await readFile(path, "utf8");
    expect(now.match(/duration_seconds\{domain="web".*/g)).toEqual([
      'duration_seconds{domain="web",repository="/r",level="incremental"} 2.5',
    ]);
  });

  it("loses nothing when several processes write it at the same time, and is readable by everybody", async () => {
    const umask = process.umask(0o077);
    try {
      const write = async (name: string): Promise<void> => {
        await (await MetricsFile.at(path)).update(updateOfFailure(name, "/r", 1, 1000));
      };
      const names = Array.from({ length: 8 }, (_, i) => `guest${i}`);
      await Promise.all(names.map(write));
      const text = await readFile(path, "utf8");
      expect(text.match(/^nbdpull_backup_success\{/gm)).toHaveLength(names.length);
    } finally {
      process.umask(umask);
    }
    expect((await stat(path)).mode & 0o777).toBe(0o644);
    expect(await readdir(folder)).toEqual(["nbdpull.prom"]);
  });

  it("is refused before the backup begins if the file is foreign or its folder is missing", async () => {
    await writeFile(path, "node_load1 0.5\n");
    for (const wrong of [path, join(folder, "nowhere", "x.prom")]) {
      const args = ["backup", "web", "--to", join(folder, "repo"), "--metrics", wrong, "--json"];
      const ran = await nbdpull(...args);
      expect(ran.code).toBe(2);
      expect(ran.json()).toMatchObject({ error: { code: "E_METRICS" } });
    }
    expect(await readFile(path, "utf8")).toBe("node_load1 0.5\n");
    expect(await readdir(folder)).toEqual(["nbdpull.prom"]);
  });

  it("reports a run that never reached a domain, with its exit code", async () => {
    const connect = ["--connect", "qemu+unix:///system?socket=/nowhere"];
    const ran = await nbdpull("backup", "--all", "--to", join(folder, "repo"), "--metrics", path, ...connect);
    expect(ran.code).toBe(4);
    expect(await readFile(path, "utf8")).toContain(
      `nbdpull_run_exit_code{repository="${join(folder, "repo")}"} 4`,
    );
  });
});

describe("Prometheus' own parser", () => {
  it("reads it, including labels of any characters", async () => {
    const file = await MetricsFile.at(path);
    const [domain, repository] = ['we"b\\\n', "/srv/a {b}"];
    await file.update(updateOfFailure(domain, repository, 4, 5000));
    await file.update(updateOfSuccess(success(domain, "full", "2026-11-20T00:00:00Z"), repository, 6000));
    const parse = `
import json, sys
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
assert all(f.type == "gauge" and f.documentation for f in families)
print(json.dumps([[s.name, s.labels, s.value] for f in families for s in f.samples]))`;
    const { stdout } = await execa("/usr/bin/python3", ["-c", parse], {
      input: await readFile(path, "utf8"),
    });
    const samples = JSON.parse(stdout) as [string, object, number][];
    const of = (name: string): unknown[] =>
      samples.filter(([each]) => each === name).map(([, ...rest]) => rest);
    expect(of("nbdpull_backup_success")).toEqual([[{ domain, repository }, 1]]);
    expect(of("nbdpull_backup_duration_seconds")).toEqual([[{ domain, repository, level: "full" }, 2.5]]);
    expect(samples).toHaveLength(8);
  });
});

it("a report has each series once, whatever its domains are called", () => {
  const domain = (name: string, folderName: string): object => {
    return {
      name,
      folder: folderName,
      uuid: null,
      isMixed: false,
      lastGood: null,
      isLate: false,
      points: [],
    };
  };
  const domains = [domain("web@1a2b3c4d", "odd"), domain("web", "web"), domain("web", "web@1a2b3c4d")];
  const repository = { repository: "/srv/backups", error: null, failed: [], domains };
  const report = { createdAt: "2026-11-28T01:00:00Z", maxAgeSeconds: 1, repositories: [repository] };
  const { samples } = updateOfReport(report as unknown as ReportDocument);
  const series = samples.map(({ metric, labels }) => `${metric}{${labels}}`);
  expect(series.filter((each) => each.startsWith("nbdpull_report_late"))).toHaveLength(3);
  expect(new Set(series).size).toBe(series.length);
});
