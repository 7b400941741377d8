import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Built, build, measure } from "../../bench/measure.js";
import { describeWith } from "../support/tools.js";

describeWith(["cc"], "measuring a command", () => {
  let scratch: string;
  let built: Built;
  const shell = (script: string) =>
    measure(
      { program: "bash", args: ["-c", script] },
      { built, serverPid: undefined, scratch, timeoutMs: 60_000 },
    );
  /** Uses 150 MiB. */
  const large = `"${process.execPath}" -e "Buffer.alloc(150 * 2 ** 20, 1)"`;

  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), "bench-measure-"));
    built = await build(scratch);
  });
  afterAll(async () => {
    await rm(scratch, { recursive: true });
  });

  it("counts the command itself, and the children it waited for", async () => {
    expect((await shell(":")).peakRssKiB).toBeLessThan(50 * 1024);
    expect((await shell(`${large}; :`)).peakRssKiB).toBeGreaterThan(150 * 1024);
  });

  it("says where a client ends before its first request", async () => {
    const ran = await execa(built.untilRequest, [join(scratch, "front.sock"), "/nowhere", "false"], {
      reject: false,
    });
    expect([ran.exitCode, ran.stderr]).toEqual([
      1,
      "until-request: the client ended before its first request",
    ]);
  });

  // A busy machine may need two seconds to start it.
  it("counts the memory but not the time of a daemon that the command leaves behind", {
    retry: 3,
  }, async () => {
    const { peakRssKiB, wallSeconds } = await shell(`(sleep 2; setsid ${large}) & exit 0`);
    expect(peakRssKiB).toBeGreaterThan(150 * 1024);
    expect(wallSeconds).toBeLessThan(2);
  });

  it("ends the command and what it left behind when it is ended", async () => {
    const script = "setsid sleep 1009 & echo $! >&2; exec sleep 1009";
    const running = execa(built.measure, ["--", "bash", "-c", script], { reject: false });
    const [daemon] = await once(running.stderr, "data");
    process.kill(Number(daemon), 0);
    running.kill("SIGTERM");
    expect((await running).exitCode).toBe(1);
    expect(() => process.kill(Number(daemon), 0)).toThrow("ESRCH");
  });

  it("gives up a command that takes longer than it may", async () => {
    const command = { program: "sleep", args: ["1010"] };
    const options = { built, serverPid: undefined, scratch, timeoutMs: 1000 };
    await expect(measure(command, options)).rejects.toThrow("did not end within 1 s");
  });

  it("reports a command that fails, with the end of its output", async () => {
    await expect(shell("echo no luck >&2; exit 3")).rejects.toThrow("exit code 3: no luck");
  });
});
