import { describe, expect, it } from "vitest";
import { tableLines } from "../../../bin/text-table.js";
import { durationText, parseDuration } from "../../../bin/times.js";
import { addRun } from "../../../src/backup/report/change-map.js";
import { factsOf } from "../../../src/backup/report/domain-facts.js";
import { pointsByDomain } from "../../../src/backup/report/domain-points.js";
import type { JudgedPoint } from "../../../src/backup/repository/judged-points.js";
import { type Manifest, timeOfPointId } from "../../../src/backup/repository/manifest.js";

const GiB = 1024 ** 3;
const UUID = "11111111-2222-3333-4444-555555555555";

/** A point of the n-th of November at noon; of one disk, unless it can't be read. */
function point(
  day: number,
  parent: number | null,
  options: { broken?: true; uuid?: string; unread?: true } = {},
): JudgedPoint {
  const idOf = (of: number): string => `202611${String(of).padStart(2, "0")}T120000.000Z`;
  const id = idOf(day);
  const disk = {
    name: "vda",
    mode: parent === null ? "full" : "incremental",
    parent: parent === null ? null : idOf(parent),
    virtualSize: 10 * GiB,
    dirtyBytes: parent === null ? 10 * GiB : GiB,
    storedBytes: parent === null ? 4 * GiB : GiB / 2,
  };
  const manifest = {
    id,
    domain: { name: "web", uuid: options.uuid ?? null },
    level: disk.mode,
    createdAt: new Date(timeOfPointId(id)).toISOString(),
    disks: [disk],
  } as unknown as Manifest;
  const obstacles = options.broken || options.unread ? [{ point: id, message: "broken" }] : [];
  return { id, manifest: options.unread ? undefined : manifest, obstacles };
}

const now = Date.parse("2026-11-10T12:00:00Z");
const facts = (points: readonly JudgedPoint[], maxAgeSeconds?: number) => {
  const [domain] = pointsByDomain("web", points);
  if (!domain) throw new Error("there is no domain");
  return factsOf(domain, { now, maxAgeSeconds });
};

describe("the facts of a domain", () => {
  it("are those of its newest point that can be restored", () => {
    const all = [point(1, null), point(3, 1), point(5, 3), point(9, 5, { broken: true })];
    const told = facts(all, 26 * 3600);
    expect(told).toMatchObject({
      state: "damaged",
      unrestorable: 1,
      ageSeconds: 5 * 86400,
      isLate: true,
      chainLength: 3,
    });
    expect(told.points.map(({ chainLength }) => chainLength)).toEqual([1, 2, 3, 4]);
    // Three increments of 1 GiB in eight days, which stored half of it.
    expect(told.changedPerDay).toBe((3 * GiB) / 8);
    expect(told.growthPerDay).toBe((1.5 * GiB) / 8);
    expect(told).toMatchObject({ logicalBytes: 40 * GiB, storedBytes: 5.5 * GiB, ratio: 40 / 5.5 });
    expect(facts(all.slice(0, 3), 26 * 3600).state).toBe("late");
    expect(facts(all.slice(0, 3)).state).toBe("good");
    expect(facts([point(1, null, { unread: true })])).toMatchObject({
      state: "lost",
      name: "web",
      ratio: null,
    });
  });

  it("tell no rate of a single point, and say when a clock was wrong", () => {
    expect(facts([point(1, null)])).toMatchObject({ growthPerDay: null, changedPerDay: null, isLate: false });
    expect(facts([point(12, null)], 3600)).toMatchObject({
      ageSeconds: -2 * 86400,
      isLate: false,
      state: "good",
    });
  });

  it("are told of each domain in a folder, and a point that can't be read counts to the newest one's", () => {
    const mixed = [
      point(1, null, { uuid: UUID }),
      point(2, null, { unread: true }),
      point(3, null, { uuid: UUID.replaceAll("1", "9") }),
    ];
    const domains = pointsByDomain("web", mixed);
    expect(domains.map(({ points, isMixed }) => [points.map(({ id }) => id.slice(6, 8)), isMixed])).toEqual([
      [["01"], true],
      [["02", "03"], true],
    ]);
    expect(pointsByDomain("web", [])).toEqual([]);
  });
});

it("the change map adds what a run defines to the cells that it lies in, up to the end of the disk", () => {
  const size = { cellBytes: 128 * 1024, virtualSize: 300 * 1024 };
  const geometry = { clusterSize: 64 * 1024 };
  const cells = [0, 0, 0];
  addRun(cells, { kind: "zero", cluster: 1, count: 4 }, geometry, size);
  addRun(
    cells,
    { kind: "partial", cluster: 0, count: 1, hostOffset: 0, dataMask: 0b11, zeroMask: 0x8000_0000 },
    geometry,
    size,
  );
  expect(cells).toEqual([(64 + 6) * 1024, 128 * 1024, 44 * 1024]);
});

it("spans of time are read and told", () => {
  expect(["90m", "26h", "7d", "1.5h", "2w", "30s"].map(parseDuration)).toEqual([
    5400, 93600, 604800, 5400, 1209600, 30,
  ]);
  for (const text of ["", "26", "h", "0h", "-1h", "1 h", "1y", "1e3h"])
    expect(() => parseDuration(text)).toThrow(/span of time/);
  expect([30, 120, 93600, 7 * 86400, -7200].map(durationText)).toEqual([
    "30 s",
    "2 min",
    "26 h",
    "7 days",
    "-2 h",
  ]);
});

it("a table counts characters as terminals show them, and keeps within its width", () => {
  const columns = [
    { head: "NAME", cut: true },
    { head: "SIZE", right: true },
    { head: "MORE", spare: 1 },
  ] as const;
  const rows = [
    ["サーバー", "1 GiB", "x"],
    ["a\u001bb", "20 GiB", "y"],
    ["very long name", "3 B", "z"],
  ];
  const text = (width?: number): string[] =>
    tableLines(columns, rows, width).map((line) =>
      typeof line === "string"
        ? line
        : line.map((span) => (typeof span === "string" ? span : span.text)).join(""),
    );
  expect(text()).toEqual([
    "NAME              SIZE  MORE",
    "サーバー         1 GiB  x",
    "a\\u{1b}b        20 GiB  y",
    "very long name     3 B  z",
  ]);
  expect(text(18)).toEqual([
    "NAME          SIZE",
    "サーバー     1 GiB",
    "a\\u{1b}b    20 GiB",
    "very long…     3 B",
  ]);
});
