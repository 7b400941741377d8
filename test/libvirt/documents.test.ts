/** Every command of the pages that need libvirt, run as it stands. */
import { existsSync, readdirSync } from "node:fs";
import { chmod, mkdir, mkdtemp, open, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { DocumentRunner } from "../support/document-runner.js";
import { describeWithLibvirt, Lab, virsh } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

let lab: Lab;
let root: string;
let runner: DocumentRunner;
let damaged: string | undefined;

await describeWithLibvirt("a page of commands", () => {
  beforeAll(async () => {
    root = await mkdtemp("/var/tmp/nbdpull-documents-");
    // QEMU's user has to get to what is restored there.
    await chmod(root, 0o755);
    lab = await Lab.start();
    await lab.write("vda", 0, MiB, 0x11);
    await fileSystemOn("vdb");
    const names = (): [RegExp, string][] => [
      [/\S*\/images\/web\.qcow2/g, lab.image("vda")],
      [/\S*\/images\/web-data\.qcow2/g, lab.image("vdb")],
      // Other domains of this host are none of the test's.
      [/^all = true/gm, `domains = ["${lab.domain}"]`],
      // Nothing runs in the guest that could shut it down.
      [/virsh shutdown/g, "virsh destroy --graceful"],
      [/\bREPO\/DOMAIN\/POINT\b/g, join(root, "srv", "backups", lab.domain, point())],
      [/\bweb\b/g, lab.domain],
      [/\b\d{8}T\d{6}\.\d{3}Z\b/g, point()],
    ];
    const preparations = { "the domain is gone": loseDomain, "a point is damaged": damagePoint };
    runner = await DocumentRunner.start({ root, names, preparations });
    await chmod(join(root, "var/tmp"), 0o1777);
  });
  afterAll(async () => {
    await leaveNothing();
    await runner?.[Symbol.asyncDispose]();
    await lab?.[Symbol.asyncDispose]();
    await rm(root, { recursive: true, force: true });
  });

  it("has what docs/install.md says", () => runner.run("docs/install.md"));
  it("has what README.md says", () => runner.run("README.md"));
  it("has what docs/repository-format.md says", () => runner.run("docs/repository-format.md"));
  it("has what docs/operations.md says", () => runner.run("docs/operations.md"));
  it("has what docs/recipes.md says", () => runner.run("docs/recipes.md"));
});

/** What a page that failed half-way has not come to: its mounts, and the domain beside the lab's. */
async function leaveNothing(): Promise<void> {
  const mounts = (await readFile("/proc/mounts", "utf8")).split("\n").map((line) => line.split(" ")[1] ?? "");
  for (const path of mounts.filter((each) => each.startsWith(`${root}/`)).toReversed()) {
    await execa("umount", ["-l", path], { reject: false });
  }
  const beside = `${lab.domain}-restored`;
  await virsh("destroy", beside).catch(() => undefined);
  await virsh("undefine", beside, "--nvram").catch(() => undefined);
  await rm(`/var/log/libvirt/qemu/${beside}.log`, { force: true });
}

/** Puts a file system with a file into a partition of a disk. */
async function fileSystemOn(disk: "vdb"): Promise<void> {
  const tree = join(root, "tree");
  const image = join(root, "image");
  await mkdir(join(tree, "etc"), { recursive: true });
  await writeFile(join(tree, "etc", "hostname"), `${lab.domain}.example.org\n`);
  await writeFile(image, "");
  await truncate(image, 9 * MiB);
  await execa("/sbin/mke2fs", ["-q", "-t", "ext4", "-d", tree, "-E", `offset=${MiB}`, image, "8m"]);
  await lab.copyInto(disk, image);
}

/** The point that a page means by any id: the damaged one, or the oldest. */
function point(): string {
  const folder = join(root, "srv", "backups", lab.domain);
  const points = existsSync(folder) ? readdirSync(folder).filter((name) => /^\d/.test(name)) : [];
  return damaged ?? points.sort()[0] ?? "";
}

/** As if the host were another one, which has the repository alone. */
async function loseDomain(): Promise<void> {
  await virsh("destroy", lab.domain);
  await virsh("undefine", lab.domain, "--checkpoints-metadata");
}

async function damagePoint(): Promise<void> {
  const repo = join(root, "srv", "backups");
  await lab.write("vda", 0, 65536, 0x99);
  const ran = await nbdpull("backup", lab.domain, "--to", repo, "--json");
  expect(ran.code, ran.stderr).toBe(0);
  damaged = (ran.json() as { id: string }).id;
  const image = await open(join(repo, lab.domain, damaged, "vda.qcow2"), "r+");
  await image.write(Buffer.alloc(512, 1), 0, 512, 65536 + 4096);
  await image.close();
}
