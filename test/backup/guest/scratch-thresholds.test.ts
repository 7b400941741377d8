/** QEMU's thresholds on scratch images, as libvirt sets them and tells of them. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { whileScratchLasts } from "../../../src/backup/guest/scratch-guard.js";
import type { ScratchRoom } from "../../../src/backup/guest/scratch-thresholds.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { readDomain } from "../../../src/backup/libvirt/rpc/wire-objects.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { type Script, ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const MiB = 1024 ** 2;
const [REGISTER, DEREGISTER, STATS, SET_THRESHOLD, PASSED] = [316, 317, 344, 386, 385];
const DEVICE: ScratchRoom = { path: "/dev/vg/scratch", images: [{ target: "vda", index: 5 }] };
const INT = 1;
const ULLONG = 4;
const STRING = 7;

class Watched {
  /** `vda[5] 75`: the device, and the threshold in MiB. */
  readonly thresholds: string[] = [];
  readonly warnings: string[] = [];
  /** What libvirt says of the images: target, index, and MiB of allocation and of the device. */
  images: (readonly [string, number, number, number])[] = [
    ["vda", 1, 900, 1000],
    ["vda", 5, 0, 100],
  ];
  refuse: number | undefined;
  readonly script: Script = {
    [REGISTER]: () => new XdrWriter().int(7),
    [DEREGISTER]: () => new XdrWriter(),
    [STATS]: () => this.#stats(),
    [SET_THRESHOLD]: (args) => {
      if (this.refuse !== undefined) return { refuse: this.refuse, message: "not now" };
      readDomain(args);
      const device = args.string();
      this.thresholds.push(`${device} ${args.size("a threshold") / MiB}`);
      return new XdrWriter();
    },
  };

  #stats(): XdrWriter {
    const out = new XdrWriter().int(1);
    // The domain of the record, as it is spelled in all answers.
    out
      .string("lab")
      .fixed(Buffer.from(UUID.replaceAll("-", ""), "hex"))
      .int(1);
    out
      .int(1 + this.images.length * 4)
      .string("block.count")
      .int(2)
      .int(this.images.length);
    for (const [at, [target, index, allocation, physical]] of this.images.entries()) {
      out.string(`block.${at}.name`).int(STRING).string(target);
      out.string(`block.${at}.backingIndex`).int(INT).int(index);
      out
        .string(`block.${at}.allocation`)
        .int(ULLONG)
        .size(allocation * MiB);
      out
        .string(`block.${at}.physical`)
        .int(ULLONG)
        .size(physical * MiB);
    }
    return out;
  }

  /** Runs work that lasts until it is given up, or `ends`. */
  async while(
    rooms: readonly ScratchRoom[],
    check: (server: ScriptedLibvirt, end: () => void) => Promise<void>,
    reserve?: number,
    restMs?: number,
  ): Promise<unknown> {
    await using server = await ScriptedLibvirt.start(this.script);
    await using libvirt = new Libvirt({ connect: server.uri });
    let end = (): void => undefined;
    const ended = new Promise<string>((resolve) => {
      end = () => resolve("done");
    });
    const outcome = whileScratchLasts(
      {
        ...{ domain: "web", files: [], remedy: "Do.", reserve },
        onWarning: (message) => this.warnings.push(message),
        thresholds: { libvirt, domain: { name: "lab", uuid: UUID }, rooms, restMs },
        giveUp: async () => end(),
      },
      async (signal) => {
        await ended;
        signal.throwIfAborted();
        return "done";
      },
    ).catch((error: unknown) => error);
    await check(server, end);
    // An event that nobody heard would be waited for without end.
    return await Promise.race([outcome, sleep(30_000, "goes on", { ref: false })]);
  }
}

/** Says that a write ended `past` MiB beyond a threshold. */
function pass(server: ScriptedLibvirt, device: string, threshold: number, past = 0): void {
  const event = new XdrWriter().int(7);
  event
    .string("lab")
    .fixed(Buffer.from(UUID.replaceAll("-", ""), "hex"))
    .int(1);
  event.string(device).optionalString("/dev/vg/scratch");
  server.clients.at(-1)?.tell(PASSED, event.size(threshold * MiB).size(past * MiB));
}

/** One at once, and one for each second since then; the last one may just have begun. */
function mostLooks(began: number): number {
  return 2 + Math.floor((performance.now() - began) / 1000);
}

it("warns when three quarters of a device are written, and sets a threshold anew after each event", async () => {
  const watched = new Watched();
  const check = async (server: ScriptedLibvirt, end: () => void): Promise<void> => {
    await expect.poll(() => watched.thresholds).toEqual(["vda[5] 75"]);
    // It was extended meanwhile, and an event told of before is about something else.
    watched.images = [["vda", 5, 75, 200]];
    pass(server, "vda[1]", 950);
    pass(server, "vda[5]", 74);
    await expect.poll(() => watched.thresholds).toEqual(["vda[5] 75", "vda[5] 175"]);
    expect(watched.warnings).toEqual([]);
    watched.images = [["vda", 5, 180, 200]];
    pass(server, "vda[5]", 175, 5);
    await expect
      .poll(() => watched.warnings)
      .toEqual([
        expect.stringMatching(/of web in \/dev\/vg\/scratch take 180 MiB, and 20 MiB is left there/),
      ]);
    end();
  };
  expect(await watched.while([DEVICE], check, 0)).toBe("done");
});

it("gives the job up by what an event tells, even if libvirt answers nothing meanwhile", async () => {
  const watched = new Watched();
  const error = await watched.while([DEVICE], async (server) => {
    await expect.poll(() => watched.thresholds).toEqual(["vda[5] 75"]);
    server.say({ ...watched.script, [STATS]: () => "silence" });
    pass(server, "vda[5]", 75, 20);
  });
  expect(error).toMatchObject({ code: "E_SCRATCH_FULL", details: { used: 95 * MiB, left: 5 * MiB } });
});

it("divides what is free in a folder between its images, and counts what others take there", async () => {
  const watched = new Watched();
  watched.images = [
    ["vda", 5, 4, 4],
    ["vdb", 6, 0, 0],
  ];
  let free = 80;
  const images = ["vda", "vdb"].map((target, at) => ({ target, index: 5 + at }));
  const folder = { before: Promise.resolve(100 * MiB), free: async () => free * MiB };
  const check = async (server: ScriptedLibvirt, end: () => void): Promise<void> => {
    // 96 MiB are left, so the line is 71 MiB away.
    await expect.poll(() => watched.thresholds).toEqual(["vda[5] 39.5", "vdb[6] 35.5"]);
    free = 20;
    pass(server, "vdb[6]", 10);
    await expect.poll(() => watched.warnings).toHaveLength(1);
    expect(watched.warnings[0]).toContain("in /scratch take 4 MiB, and 20 MiB is left there");
    end();
  };
  expect(await watched.while([{ path: "/scratch", images, folder }], check, 0)).toBe("done");
});

it("sees what other jobs write into the folder, which raises no alarm", async () => {
  const watched = new Watched();
  watched.images = [["vda", 5, 0, 0]];
  let free = 100;
  const folder = { before: Promise.resolve(100 * MiB), free: async () => free * MiB };
  const room = { path: "/scratch", images: [{ target: "vda", index: 5 }], folder };
  const check = async (): Promise<void> => {
    await expect.poll(() => watched.thresholds).toEqual(["vda[5] 75"]);
    free = 5;
  };
  expect(await watched.while([room], check, undefined, 100)).toMatchObject({
    code: "E_SCRATCH_FULL",
    details: { used: 0, left: 5 * MiB },
  });
  expect(watched.warnings).toEqual([]);
});

it("looks every second where a threshold can't be set, and goes on after a restart of libvirt", async () => {
  const watched = new Watched();
  watched.refuse = 68;
  const began = performance.now();
  const error = await watched.while([DEVICE], async (server) => {
    const looks = (): number => server.calls.filter((call) => call === STATS).length;
    await expect.poll(looks).toBeGreaterThanOrEqual(2);
    expect(looks()).toBeLessThanOrEqual(mostLooks(began));
    expect(watched.thresholds).toEqual([]);
    await server.down();
    watched.refuse = undefined;
    await server.up(watched.script);
    await expect.poll(() => watched.thresholds).toEqual(["vda[5] 75"]);
    // The look that fell into the restart sets it too, before anybody listens again.
    await expect
      .poll(() => server.calls.filter((call) => call === REGISTER).length)
      .toBeGreaterThanOrEqual(2);
    const listens = server.calls.filter((call) => call === REGISTER).length;
    expect(listens).toBeLessThanOrEqual(mostLooks(began));
    pass(server, "vda[5]", 75, 20);
  });
  expect(error).toMatchObject({ code: "E_SCRATCH_FULL" });
});

it("says that it can't watch, and the work goes on, and so does the watching once it can", async () => {
  const watched = new Watched();
  let asked = 0;
  const free = async (): Promise<number> => {
    asked += 1;
    if (asked === 1) throw new Error("no ssh");
    return 24 * 1024 ** 3;
  };
  const folder = { free };
  const began = performance.now();
  const check = async (_: ScriptedLibvirt, end: () => void): Promise<void> => {
    await expect.poll(() => watched.warnings).toHaveLength(1);
    expect(watched.warnings[0]).toMatch(/scratch space of web can't be watched now.*: no ssh/);
    await expect.poll(() => asked).toBeGreaterThanOrEqual(2);
    expect(asked).toBeLessThanOrEqual(mostLooks(began));
    end();
  };
  expect(await watched.while([{ ...DEVICE, folder }], check)).toBe("done");
});
