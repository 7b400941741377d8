import { writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import {
  refuseShortScratch,
  type ScratchSettings,
  whileScratchLasts,
} from "../../../src/backup/guest/scratch-guard.js";
import { describeWithMounts, mountSmall } from "../../support/small-file-system.js";

const MiB = 1024 ** 2;

describeWithMounts("scratch files on a file system of 16 MiB", () => {
  let folder: string;
  let mounted: AsyncDisposable;
  let scratch: string;
  let warnings: string[];
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-scratch-"));
    mounted = await mountSmall(folder, 16 * MiB);
    scratch = join(folder, "vda");
    warnings = [];
  });
  afterEach(async () => {
    await mounted[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  });

  function settings(reserve?: number): ScratchSettings {
    const files = [scratch, join(folder, "vdb")];
    return { domain: "web", files, reserve, remedy: "Do.", onWarning: (message) => warnings.push(message) };
  }

  const fill = (bytes: number) => writeFileSync(scratch, Buffer.alloc(bytes));

  it("are given up once, while the work still runs, and the error reports their usage", async () => {
    fill(2 * MiB);
    let flushed = (): void => undefined;
    const flushing = new Promise<void>((resolve) => {
      flushed = resolve;
    });
    const events: string[] = [];
    const giveUp = async (): Promise<void> => {
      events.push("given up");
      flushed();
    };
    const guarded = whileScratchLasts({ ...settings(), giveUp }, async (signal) => {
      fill(15 * MiB);
      await flushing;
      events.push(signal.aborted ? "aborted" : "not aborted");
      signal.throwIfAborted();
    });
    await expect(guarded).rejects.toMatchObject({
      code: "E_SCRATCH_FULL",
      message: expect.stringMatching(
        /of web in .* take 15 MiB, and 1 MiB is left there, going by 13 MiB a second: .* Do\.$/,
      ),
      details: { domain: "web", folder, used: 15 * MiB, left: MiB },
    });
    expect(events).toEqual(["given up", "aborted"]);
  });

  it("cause one warning, and with a reserve of 0 are never given up", async () => {
    const giveUp = async (): Promise<void> => expect.unreachable();
    const result = await whileScratchLasts({ ...settings(0), giveUp }, async () => {
      fill(13 * MiB);
      await expect.poll(() => warnings.length).toBe(1);
      fill(16 * MiB);
      await new Promise((resolve) => setTimeout(resolve, 600));
      return "done";
    });
    expect(result).toBe("done");
    expect(warnings).toEqual([expect.stringMatching(/take 13 MiB, and 3 MiB is left there/)]);
  });

  it("change neither error nor result of the work while there is room", async () => {
    const giveUp = async (): Promise<void> => expect.unreachable();
    const own = new Error("its own");
    await expect(whileScratchLasts({ ...settings(), giveUp }, () => Promise.reject(own))).rejects.toBe(own);
    // A missing folder, as after the end of a job, is ignored.
    const nowhere = { ...settings(), files: [join(folder, "gone", "vda")] };
    expect(await whileScratchLasts({ ...nowhere, giveUp }, async () => 1)).toBe(1);
  });

  it("are refused before the job begins if less space is left than the reserve", () => {
    expect(() => refuseShortScratch(settings(15 * MiB))).not.toThrow();
    expect(() => refuseShortScratch(settings(17 * MiB))).toThrow(
      expect.objectContaining({ code: "E_SCRATCH_FULL" }),
    );
  });
});
