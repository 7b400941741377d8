import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { finished, startNbdpull } from "../support/nbdpull.js";
import { findTool } from "../support/tools.js";

/**
 * A virsh in front of the real one: the lab's guest has no agent, so it answers for that, and notes in which order it
 * was asked. `BEGIN` fails or hangs the begin of a job.
 */
const WRAPPER = `#!/bin/sh
for arg in "$@"; do case "$arg" in
  domfsfreeze|domfsthaw) echo "$*" | sed 's/.*domfs/domfs/; s/--domain=[^ ]* *//; s/ *$//' >> "$ASKED"; exit 0;;
  backup-begin)
    echo "$arg" >> "$ASKED"
    case "$BEGIN" in fail) echo "error: refused" >&2; exit 1;; hang) sleep 4; exit 1;; esac;;
esac; done
exec "$VIRSH" "$@"
`;

await describeWithLibvirt("a backup with --freeze", () => {
  let guest: BackupLab;
  beforeEach(async () => {
    guest = await BackupLab.start();
    const folder = join(guest.folder, "bin");
    await mkdir(folder);
    await writeFile(join(folder, "virsh"), WRAPPER);
    await chmod(join(folder, "virsh"), 0o755);
  });
  afterEach(async () => {
    await guest[Symbol.asyncDispose]();
  });

  function start(begin: string, ...args: readonly string[]): ReturnType<typeof startNbdpull> {
    const path = `${join(guest.folder, "bin")}${delimiter}${process.env["PATH"]}`;
    const VIRSH = findTool("virsh") ?? "";
    const ASKED = join(guest.folder, "asked");
    return startNbdpull(guest.arguments(...args), { env: { PATH: path, VIRSH, ASKED, BEGIN: begin } });
  }

  async function asked(): Promise<string[]> {
    const text = await readFile(join(guest.folder, "asked"), "utf8").catch(() => "");
    return text.split("\n").filter((line) => line !== "");
  }

  it("freezes before the job begins and thaws as soon as it has", async () => {
    expectExit(await finished(start("", "--freeze=/,/srv")), 0);
    expect(await asked()).toEqual([
      "domfsfreeze --mountpoint / --mountpoint /srv",
      "backup-begin",
      "domfsthaw",
    ]);
    expectExit(await finished(start("", "--freeze")), 0);
    expect((await asked()).slice(3)).toEqual(["domfsfreeze", "backup-begin", "domfsthaw"]);
  });

  it("thaws where the job can't begin", async () => {
    expectExit(await finished(start("fail", "--freeze")), 1);
    expect(await asked()).toEqual(["domfsfreeze", "backup-begin", "domfsthaw"]);
    await guest.expectNothingLeft();
  });

  it("thaws what a killed one left frozen, before anything else", async () => {
    const run = start("hang", "--freeze");
    await expect.poll(asked).toContain("backup-begin");
    run.kill("SIGKILL");
    await run.ended;
    expect(await asked()).toEqual(["domfsfreeze", "backup-begin"]);
    expectExit(await finished(start("")), 0);
    expect((await asked()).slice(2)).toEqual(["domfsthaw", "backup-begin"]);
    await guest.expectNothingLeft();
  }, 120_000);
});
