import { describe, expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import type { Level } from "../../../src/backup/guest/levels.js";
import { neededCheckpoints } from "../../../src/backup/guest/needed-checkpoints.js";
import { type DiskPlan, type History, planDisk } from "../../../src/backup/guest/plan-disk.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";

const MiB = 1024 * 1024;
const UUID = "8a1b0c7e-0d2e-4b6f-9c1a-3f5d7e9b1c2d";

/** A point of the given day; `disks` maps each name to the day of its parent, 0 for a full one. */
function point(day: number, disks: Record<string, number>, facts: Partial<Manifest> = {}): Manifest {
  const id = (n: number): string => `202611${String(n).padStart(2, "0")}T000000.000Z`;
  return {
    format: "nbdpull-point",
    version: 1,
    id: id(day),
    domain: { name: "web", uuid: UUID },
    level: "full",
    checkpoint: { name: `cp${day}`, creationTime: day },
    createdAt: "2026-11-01T00:00:00.000Z",
    tool: "test",
    disks: Object.entries(disks).map(([name, parent]) => ({
      name,
      file: `${name}.qcow2`,
      format: "qcow2",
      mode: parent === 0 ? "full" : "incremental",
      parent: parent === 0 ? null : id(parent),
      virtualSize: MiB,
      clusterSize: 65_536,
      dirtyBytes: 0,
      dataBytes: 0,
      zeroBytes: 0,
      storedBytes: 0,
      exportName: name,
      bitmap: null,
      map: null,
      digests: null,
    })),
    ...facts,
  };
}

const POINTS = [point(1, { vda: 0 }), point(2, { vda: 1 }), point(3, { vda: 2, vdb: 0 })];

const BROKEN = new Map([
  ["vda cp3", "is broken"],
  ["vda cp2", "is broken"],
]);

function history(facts: Partial<History> = {}): History {
  return {
    domainUuid: UUID,
    points: POINTS,
    checkpoints: [1, 2, 3].map((day) => ({
      name: `cp${day}`,
      creationTime: day,
      disks: [
        { name: "vda", bitmap: `cp${day}` },
        { name: "vdb", bitmap: day === 3 ? "cp3" : undefined },
      ],
    })),
    broken: new Map(),
    prove: async () => undefined,
    ...facts,
  };
}

const plan = (level: Level, facts: Partial<History> = {}, size = MiB): Promise<DiskPlan> =>
  planDisk({ name: "vda", format: "qcow2", size }, { level, format: "qcow2" }, history(facts));

describe("the plan of a disk", () => {
  it("bases an increment on the newest point, a differential on the last full one, and full and copy on none", async () => {
    expect(await plan("auto")).toMatchObject({ bitmap: true, base: { checkpoint: "cp3" } });
    expect(await plan("incremental")).toMatchObject({ base: { checkpoint: "cp3" } });
    expect(await plan("differential")).toMatchObject({
      base: { checkpoint: "cp1", parent: { id: POINTS[0]?.id } },
    });
    expect(await plan("full")).toEqual({ name: "vda", bitmap: true });
    expect(await plan("copy")).toEqual({ name: "vda", bitmap: false });
  });

  it("skips points with an unusable checkpoint and uses an older one", async () => {
    const { checkpoints } = history();
    const without = checkpoints.filter(({ name }) => name !== "cp3");
    expect(await plan("auto", { checkpoints: without })).toMatchObject({ base: { checkpoint: "cp2" } });
    const anew = checkpoints.map((each) => (each.name === "cp3" ? { ...each, creationTime: 9 } : each));
    expect(await plan("auto", { checkpoints: anew })).toMatchObject({ base: { checkpoint: "cp2" } });
    expect(await plan("auto", { broken: BROKEN })).toMatchObject({
      base: { checkpoint: "cp1" },
    });
    const copied = [...POINTS, point(4, { vda: 0 }, { checkpoint: null })];
    expect(await plan("auto", { points: copied })).toMatchObject({ base: { checkpoint: "cp3" } });
  });

  it.each<[string, Partial<History>, number, RegExp]>([
    ["resized", {}, 2 * MiB, /resized from 1048576 to 2097152/],
    ["without checkpoints", { checkpoints: [] }, MiB, /cp3 of point .* is gone/],
    ["of another domain", { domainUuid: "00000000-0000-4000-8000-000000000000" }, MiB, /another domain/],
    ["never backed up before", { points: [point(1, { vdb: 0 })] }, MiB, /no point with a checkpoint/],
    [
      "with a damaged chain",
      { prove: () => Promise.reject(new DamageError("E_CHAIN", "point 1 is missing")) },
      MiB,
      /could not be restored: point 1 is missing/,
    ],
  ])("is full, with the reason, for a disk %s", async (_, facts, size, reason) => {
    const planned = await plan("auto", facts, size);
    expect(planned.base).toBeUndefined();
    expect(planned.reason).toMatch(reason);
  });

  it("gives no reason for the first full backup, but gives one for a raw image", async () => {
    expect(await plan("auto", { points: [] })).toEqual({ name: "vda", bitmap: true, reason: undefined });
    const raw = await planDisk(
      { name: "vda", format: "raw", size: MiB },
      { level: "auto", format: "qcow2" },
      history(),
    );
    expect(raw).toMatchObject({ bitmap: false, reason: expect.stringContaining("raw") });
  });

  it("is full for a qcow2 image of version 2, with the command that mends it", async () => {
    const planned = async (version: number): Promise<DiskPlan> =>
      planDisk(
        { name: "vda", format: "qcow2", size: MiB, version },
        { level: "auto", format: "qcow2" },
        history(),
      );
    expect(await planned(3)).toMatchObject({ bitmap: true, base: { checkpoint: "cp3" } });
    expect(await planned(2)).toEqual({
      name: "vda",
      bitmap: false,
      reason: expect.stringContaining("qemu-img amend -f qcow2 -o compat=v3"),
    });
  });
});

describe("the checkpoints that are needed", () => {
  it("are those of each disk's newest point and last full point", () => {
    expect([...neededCheckpoints(POINTS, ["vda"])].sort()).toEqual(["cp1", "cp3"]);
    const later = [...POINTS, point(4, { vda: 0 })];
    expect([...neededCheckpoints(later, ["vda"])]).toEqual(["cp4"]);
    expect([...neededCheckpoints(later, ["vda", "vdb"])].sort()).toEqual(["cp3", "cp4"]);
    expect([...neededCheckpoints([], ["vda"])]).toEqual([]);
  });
});
