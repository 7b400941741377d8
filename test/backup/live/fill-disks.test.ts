import { expect, it } from "vitest";
import type { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import { type FillEvent, fillDisks } from "../../../src/backup/live/fill-disks.js";
import type { WholeImage } from "../../../src/backup/live/whole-images.js";

/** Images that all are what was made. */
const STEADY = {
  watch: (): void => undefined,
  prepareCopy: async (): Promise<void> => undefined,
  maySwitch: async (): Promise<boolean> => true,
  giveUp: async (): Promise<void> => undefined,
};

it("fills the other disks though one fails again and again", async () => {
  const filled = new Set<string>();
  let ring = (): void => undefined;
  const end = new AbortController();
  // Only what is asked of it. No libvirt has one damaged cluster at will.
  const run = {
    watch: async (wake: () => void) => {
      ring = wake;
      return { [Symbol.asyncDispose]: async () => undefined };
    },
    runState: async () => "runs",
    standsAlone: async (disk: string) => filled.has(disk),
    filling: async () => undefined,
    fill: async (disk: string) => {
      ring();
      if (disk === "vda") throw new Error("damaged");
      filled.add(disk);
    },
  } as unknown as DomainRun;
  const events: FillEvent[] = [];
  const onEvent = (event: FillEvent): void => {
    events.push(event);
    if (event.type === "filled" && event.disk === "vdc") end.abort(new Error("enough"));
  };
  const disks = ["vda", "vdb", "vdc"].map((disk) => ({ disk, image: `/${disk}.qcow2` }));
  const options = {
    ...{ run, name: "web", disks, socket: "/none", rate: undefined, signal: end.signal, onEvent },
    ...{ wholes: { ...STEADY, of: () => undefined }, onAlone: async () => undefined },
  };
  await expect(fillDisks(options)).rejects.toThrow("enough");
  expect(events.flatMap((event) => (event.type === "filled" ? event.disk : []))).toEqual(["vdb", "vdc"]);
});

it("has QEMU fill a disk of which somebody has made a snapshot, and ends a copy of its image alone", async () => {
  const filled = new Set<string>();
  const asked: string[] = [];
  let ring = (): void => undefined;
  // Only what is asked of it. No libvirt makes a snapshot just between two calls.
  const run = {
    watch: async (wake: () => void) => {
      ring = wake;
      return { [Symbol.asyncDispose]: async () => undefined };
    },
    runState: async () => "runs",
    standsAlone: async () => filled.has("vda"),
    isOnlyOn: async () => false,
    filling: async () => (asked.length === 0 ? { done: 1, total: 1 } : undefined),
    merging: async () => ({ image: "/whole.qcow2", isReady: true }),
    endCopy: async () => {
      asked.push("end");
      ring();
    },
    fill: async () => {
      asked.push("fill");
      filled.add("vda");
      ring();
    },
  } as unknown as DomainRun;
  await fillDisks({
    ...{ run, name: "web", socket: "/none", rate: undefined, onEvent: () => undefined },
    signal: AbortSignal.timeout(120_000),
    disks: [{ disk: "vda", image: "/vda.live.qcow2" }],
    wholes: {
      ...STEADY,
      of: () => ({ state: "made", path: "/whole.qcow2" }),
      giveUp: async () => void asked.push("give up"),
    },
    onAlone: async () => undefined,
  });
  expect(asked).toEqual(["end", "give up", "fill"]);
});

it("switches no guest to a path that leads to another file by now, and settles one disk though another can't be", async () => {
  let whole: WholeImage = { state: "made", path: "/whole.qcow2" };
  let isCopying = true;
  const alone = new Set(["vdb", "vdc"]);
  const asked: string[] = [];
  let ring = (): void => undefined;
  // Only what is asked of it. No libvirt has a file replaced just between two calls.
  const run = {
    watch: async (wake: () => void) => {
      ring = wake;
      return { [Symbol.asyncDispose]: async () => undefined };
    },
    runState: async () => "runs",
    standsAlone: async (disk: string) => alone.has(disk),
    isOnlyOn: async () => true,
    filling: async () => (isCopying ? { done: 1, total: 1 } : undefined),
    merging: async () => ({ image: "/whole.qcow2", isReady: true }),
    endCopy: async () => {
      asked.push("end");
      isCopying = false;
      ring();
    },
    fill: async () => {
      asked.push("fill");
      alone.add("vda");
      ring();
    },
  } as unknown as DomainRun;
  const events: FillEvent[] = [];
  let refusals = 1;
  await fillDisks({
    ...{ run, name: "web", socket: "/none", rate: undefined, signal: AbortSignal.timeout(120_000) },
    onEvent: (event) => void events.push(event),
    disks: ["vdb", "vda", "vdc"].map((disk) => ({ disk, image: `/${disk}.live.qcow2` })),
    wholes: {
      ...STEADY,
      of: (disk) => (disk === "vda" ? whole : undefined),
      maySwitch: async () => false,
      prepareCopy: async () => {
        whole = { state: "failed" };
      },
    },
    onAlone: async (disk) => {
      if (disk === "vdb" && refusals-- > 0) throw new Error("it is another file");
      asked.push(`settle ${disk}`);
    },
  });
  expect(asked).toEqual(["end", "settle vdb", "settle vdc", "fill", "settle vda"]);
  expect(events).toContainEqual({ type: "trouble", message: "it is another file" });
});

it("copies into whole images once they are made, switches only to those, and has QEMU fill the rest", async () => {
  const made: WholeImage = { state: "made", path: "/whole.qcow2" };
  const wholes: Record<string, WholeImage> = { vda: { state: "making" }, vdb: made, vdc: made };
  const mirrors: Record<string, string> = {};
  // Somebody else's copy, for two looks.
  const others = ["/other.qcow2", "/other.qcow2"];
  const alone = new Set<string>();
  const asked: string[] = [];
  const end = AbortSignal.timeout(120_000);
  let ring = (): void => undefined;
  // Only what is asked of it. No libvirt refuses a copy at will.
  const run = {
    watch: async () => ({ [Symbol.asyncDispose]: async () => undefined }),
    runState: async () => "runs",
    standsAlone: async (disk: string) => alone.has(disk),
    filling: async (disk: string) => {
      ring();
      if (disk === "vdc") wholes["vdc"] = made;
      const isBusy = mirrors[disk] !== undefined || (disk === "vdc" && others.length > 0);
      return isBusy ? { done: 1, total: 1 } : undefined;
    },
    isOnlyOn: async () => true,
    merging: async (disk: string) => ({ image: mirrors[disk] ?? others.pop(), isReady: true }),
    mergeInto: async (disk: string, image: string) => {
      asked.push(`copy ${disk}`);
      if (disk === "vda") throw new Error("refused");
      mirrors[disk] = image;
    },
    switchOver: async (disk: string) => {
      asked.push(`switch ${disk}`);
      delete mirrors[disk];
      alone.add(disk);
      wholes["vda"] = made;
    },
    fill: async (disk: string) => {
      asked.push(`fill ${disk}`);
      alone.add(disk);
      ring();
    },
  } as unknown as DomainRun;
  const settled: string[] = [];
  const prepared: string[] = [];
  await fillDisks({
    ...{ run, name: "web", socket: "/none", rate: undefined, signal: end, onEvent: () => undefined },
    disks: ["vda", "vdb", "vdc"].map((disk) => ({ disk, image: `/${disk}.qcow2` })),
    wholes: {
      ...STEADY,
      of: (disk) => wholes[disk],
      prepareCopy: async (disk) => {
        prepared.push(disk);
        // It is restored again, and that takes a while.
        if (prepared.filter((each) => each === "vdc").length === 1 && disk === "vdc") {
          wholes["vdc"] = { state: "making" };
        }
      },
      giveUp: async (disk) => void asked.push(`give up ${disk}`),
      watch: (wake) => {
        ring = wake;
      },
    },
    onAlone: async (disk) => void settled.push(disk),
  });
  expect(asked).toEqual([
    // The first one is refused twice, and the last one restored again meanwhile.
    ...["copy vdb", "switch vdb", "copy vda", "copy vda", "copy vdc", "switch vdc"],
    ...["give up vda", "fill vda"],
  ]);
  expect(settled).toEqual(["vdb", "vdc", "vda"]);
});
