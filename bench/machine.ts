import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { benchFile, PROJECT } from "./paths.js";
import { PYTHON } from "./programs.js";
import type { BenchResult } from "./result.js";

export async function describeMachine(folder: string): Promise<BenchResult["machine"]> {
  const model = /^model name\s*: (.+)$/m.exec(await readFile("/proc/cpuinfo", "utf8").catch(() => ""))?.[1];
  return {
    cpu: model ?? "unknown CPU",
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 1024 ** 3),
    // What a distributor has added says nothing to others.
    kernel: release().split("-")[0] ?? "",
    fileSystem: await fileSystemOf(folder),
  };
}

export async function fileSystemOf(folder: string): Promise<string> {
  return (await execa("stat", ["--file-system", "--format=%T", folder])).stdout.trim();
}

/** Of what the figures depend on. */
export async function versions(): Promise<Record<string, string>> {
  const asked: Record<string, readonly string[]> = {
    QEMU: ["qemu-img", "--version"],
    nbdkit: ["nbdkit", "--version"],
    nbdcopy: ["nbdcopy", "--version"],
    "libnbd for Python": [PYTHON, "-c", "import nbd; print(nbd.NBD().get_version())"],
    cc: ["cc", "--version"],
    libvirt: ["virsh", "--version"],
    virtnbdbackup: ["virtnbdbackup", "--version"],
  };
  const found: Record<string, string> = {
    nbdpull: await versionIn(join(PROJECT, "package.json")),
    Node: process.versions.node,
  };
  for (const [name, [program = "", ...args]] of Object.entries(asked)) {
    const { stdout } = await execa(program, args, { reject: false });
    const version = /\d+\.\d+(?:\.\d+)?/.exec(stdout ?? "")?.[0];
    if (version !== undefined) found[name] = version;
  }
  const vates = benchFile("peers", "node_modules", "@vates", "nbd-client", "package.json");
  if (existsSync(vates)) found["@vates/nbd-client"] = await versionIn(vates);
  return found;
}

async function versionIn(packageFile: string): Promise<string> {
  return (JSON.parse(await readFile(packageFile, "utf8")) as { version: string }).version;
}
