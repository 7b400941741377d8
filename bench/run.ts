/**
 * The bench harness: the same work by nbdpull and by each peer, interleaved in one run, so that a drift of the
 * machine meets them all. Prints a Markdown table; ratios are taken run by run against nbdcopy.
 *
 *     npm run bench -- [--size GIB] [--runs N]
 */

import { randomFillSync } from "node:crypto";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { execa } from "execa";
import { type Measured, measure, median } from "./measure.js";

const MiB = 1024 * 1024;
const NBDPULL = fileURLToPath(new URL("../bin/nbdpull.js", import.meta.url));

interface Contender {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  /** Removed before each run: a backup writes a new file, and so does everyone here. */
  readonly output: string;
}

function contenders(uri: string, folder: string): Contender[] {
  const raw = join(folder, "out.raw");
  const qcow2 = join(folder, "out.qcow2");
  const pull = (name: string, output: string, ...more: string[]): Contender => ({
    name,
    command: process.execPath,
    args: [NBDPULL, "pull", uri, output, "--no-fsync", "--quiet", ...more],
    output,
  });
  return [
    { name: "nbdcopy, raw", command: "nbdcopy", args: [uri, raw], output: raw },
    {
      name: "qemu-img convert, raw",
      command: "qemu-img",
      args: ["convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", uri, raw],
      output: raw,
    },
    {
      name: "qemu-img convert, qcow2",
      command: "qemu-img",
      args: ["convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "16", uri, qcow2],
      output: qcow2,
    },
    pull("nbdpull pull, raw", raw),
    pull("nbdpull pull, qcow2", qcow2),
    pull("nbdpull pull, raw, digests", raw, "--digests"),
    pull("nbdpull pull, qcow2, digests", qcow2, "--digests"),
  ];
}

/** A disk of `gib` GiB, every other MiB of it incompressible data. */
async function makeImage(path: string, gib: number): Promise<void> {
  const raw = `${path}.raw`;
  const file = await open(raw, "w");
  await file.truncate(gib * 1024 * MiB);
  const data = Buffer.alloc(MiB);
  for (let offset = 0; offset < gib * 1024 * MiB; offset += 2 * MiB) {
    await file.write(randomFillSync(data), 0, MiB, offset);
  }
  await file.close();
  await execa("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, path]);
  await rm(raw);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { size: { type: "string", default: "2" }, runs: { type: "string", default: "5" } },
  });
  const gib = Number(values.size);
  const runs = Number(values.runs);
  const folder = await mkdtemp(join(process.env["BENCH_DIR"] ?? tmpdir(), "nbdpull-bench-"));
  const image = join(folder, "disk.qcow2");
  const socket = join(folder, "nbd.sock");
  try {
    await makeImage(image, gib);
    const server = execa(
      "qemu-nbd",
      ["--read-only", "--persistent", "--shared=8", "--format=qcow2", `--socket=${socket}`, image],
      { reject: false },
    );
    await sleep(500);
    const all = contenders(`nbd+unix:///?socket=${socket}`, folder);
    const results = new Map<string, Measured[]>(all.map(({ name }) => [name, []]));
    // The first round is thrown away: it warms the page cache.
    for (let round = 0; round <= runs; round += 1) {
      for (const contender of all) {
        await rm(contender.output, { force: true });
        await rm(`${contender.output}.digests`, { force: true });
        const measured = await measure(contender.command, contender.args);
        if (round > 0) results.get(contender.name)?.push(measured);
        else
          await execa("qemu-img", [
            "compare",
            "-F",
            "qcow2",
            "-f",
            contender.output.endsWith("qcow2") ? "qcow2" : "raw",
            "-U",
            contender.output,
            image,
          ]);
      }
    }
    server.kill();
    await server;
    process.stdout.write(await report(results, gib, runs));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function report(
  results: ReadonlyMap<string, readonly Measured[]>,
  gib: number,
  runs: number,
): Promise<string> {
  const [reference = []] = results.values();
  const { stdout: qemu } = await execa("qemu-img", ["--version"]);
  const { stdout: nbdcopy } = await execa("nbdcopy", ["--version"]);
  const model = /^model name\s*: (.+)$/m.exec(await readFile("/proc/cpuinfo", "utf8"))?.[1] ?? "unknown CPU";
  const lines = [
    `${gib} GiB disk, every other MiB data, qemu-nbd over a Unix socket; medians of ${runs} interleaved runs after a warm-up.`,
    `${cpus().length} × ${model}; Node ${process.version}; ${qemu.split("\n")[0]}; ${nbdcopy.split("\n")[0]}.`,
    "",
    "| | wall s | wall, × nbdcopy | CPU s | CPU, × nbdcopy | peak RSS MiB |",
    "|---|---|---|---|---|---|",
  ];
  for (const [name, measured] of results) {
    const ratio = (of: (m: Measured) => number): string =>
      median(measured.map((m, i) => of(m) / of(reference[i] ?? m))).toFixed(2);
    const cells = [
      name,
      median(measured.map((m) => m.wallSeconds)).toFixed(2),
      ratio((m) => m.wallSeconds),
      median(measured.map((m) => m.cpuSeconds)).toFixed(2),
      ratio((m) => m.cpuSeconds),
      Math.max(...measured.map((m) => m.peakRssMiB)).toFixed(0),
    ];
    lines.push(`| ${cells.join(" | ")} |`);
  }
  return `${lines.join("\n")}\n`;
}

await main();
