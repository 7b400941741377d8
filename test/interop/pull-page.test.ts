/** Every command of the page of `pull`, run as it stands. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, it } from "vitest";
import { hasCode } from "../../src/backup/base/errors.js";
import { DocumentRunner } from "../support/document-runner.js";
import { qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

let root: string;
let runner: DocumentRunner;

/** `disk.qcow2` has a bitmap of what was written since `sunday.qcow2`, a copy of it. */
async function imageWithBitmap(): Promise<void> {
  await endServer();
  const [disk, sunday] = [join(root, "home", "disk.qcow2"), join(root, "home", "sunday.qcow2")];
  await qemuImg("create", "-q", "-f", "qcow2", disk, "64M");
  await qemuIo(disk, "qcow2", "write -P 7 0 3M");
  await qemuImg("convert", "-O", "qcow2", disk, sunday);
  await qemuImg("bitmap", "--add", disk, "monday");
  await qemuIo(disk, "qcow2", "write -P 1 10M 256k");
}

/** If the page failed before it did. */
async function endServer(): Promise<void> {
  const pid = Number(await readFile(join(root, "tmp", "disk.pid"), "utf8").catch(() => ""));
  try {
    if (pid > 0) process.kill(pid);
  } catch (error) {
    if (!hasCode(error, "ESRCH")) throw error;
  }
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "a page of commands", () => {
  beforeAll(async () => {
    // Short, as the path of a socket in it has 107 characters at most.
    root = await mkdtemp("/tmp/nbdpull-page-");
    const preparations = { "an image has a bitmap": imageWithBitmap };
    runner = await DocumentRunner.start({ root, names: () => [], preparations });
  });
  afterAll(async () => {
    await endServer();
    await runner?.[Symbol.asyncDispose]();
    await rm(root, { recursive: true, force: true });
  });

  it("has what docs/cli/pull.md says", () => runner.run("docs/cli/pull.md"));
});
