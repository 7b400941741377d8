/** The script that starts Ceph, where Ceph does not come up. */
import { chmod, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { freePorts } from "../../bench/free-ports.js";
import { describeWith, findTool } from "./tools.js";

const SCRIPT = fileURLToPath(new URL("start-store.sh", import.meta.url));

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a store that does not come up", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-no-store-"));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true });
  });

  /**
   * @param daemon which is another program
   * @param makes what is done in place of making it, and of running it
   */
  async function start(
    daemon: string,
    [makes, runs]: readonly [makes: string, runs: string],
    seconds: number,
  ): Promise<string> {
    const bin = join(folder, daemon);
    await writeFile(bin, `#!/bin/sh\ncase "$*" in *--mkfs*) ${makes};; *) ${runs};; esac\n`);
    await chmod(bin, 0o755);
    const [port, monitor] = await freePorts();
    const env = { PATH: `${folder}${delimiter}${process.env["PATH"]}`, START_STORE_SECONDS: `${seconds}` };
    const args = [SCRIPT, join(folder, "store"), `${port}`, `${monitor}`, "guarded"];
    // Its input stays open: nobody tells it to end.
    const ran = await execa("bash", args, { env, stdin: "pipe", reject: false });
    expect(ran.exitCode).toBe(1);
    expect(ran.stdout).not.toContain("ready");
    // The daemons have ended with it, and their folder is gone.
    for (const pid of ran.stdout.split("\n")) expect(() => process.kill(Number(pid), 0)).toThrow("ESRCH");
    expect(await readdir(folder)).toEqual([daemon]);
    return ran.stderr;
  }

  it("is given up at once where a daemon has ended, whose last line is told", async () => {
    const makes = `exec ${findTool("ceph-osd")} "$@"`;
    const ends = "echo starting; echo 'no memory for this'; exit 1";
    const began = performance.now();
    const stderr = await start("ceph-osd", [makes, ends], 300);
    expect(stderr).toMatch(/^start-store\.sh: osd has ended before .*\(after \d+ s\)$/m);
    expect(stderr).toMatch(/^ {2}osd has ended: no memory for this$/m);
    expect(stderr).toMatch(/^ {2}mon lives: /m);
    expect(performance.now() - began).toBeLessThan(150_000);
  });

  it("is given up after its time where a daemon only stands still", async () => {
    const stderr = await start("ceph-mon", ["exit 0", "echo starting; exec sleep 1000"], 5);
    expect(stderr).toMatch(/^start-store\.sh: it takes too long: naming the OSD/m);
    expect(stderr).toMatch(/^ {2}mon lives: starting$/m);
  });
});
