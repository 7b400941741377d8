import { cp, readdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { prune } from "../../../src/backup/prune/prune.js";
import { choosePoint } from "../../../src/backup/repository/choose-point.js";
import { timeOfPointId } from "../../../src/backup/repository/manifest.js";
import {
  type ClockDoubt,
  type MendClockOptions,
  type MendedTime,
  mendClock,
} from "../../../src/backup/repository/mend-clock.js";
import { Repository } from "../../../src/backup/repository/repository.js";
import { ageLocks, leftByPrune } from "../../support/left-by-prune.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { nbdpull } from "../../support/nbdpull.js";

const NAME = MemoryChain.domain;
const DAY_MS = 86_400_000;
/** Noon of a day before the files of these tests are made. */
const NOON = Math.floor(Date.now() / DAY_MS - 30) * DAY_MS + DAY_MS / 2;
const TEN_YEARS = 3653;

let chain: MemoryChain;
beforeEach(async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  chain = await MemoryChain.start(64 * 1024);
});
afterEach(async () => {
  vi.useRealTimers();
  await chain[Symbol.asyncDispose]();
});

const day = (days: number): string => new Date(NOON + days * DAY_MS).toISOString();

/** Takes a point while the clock stands `days` after the first one. */
async function takeAt(days: number): Promise<{ id: string; createdAt: string; warnings: string[] }> {
  vi.setSystemTime(NOON + days * DAY_MS);
  const warnings: string[] = [];
  const { manifest } = await chain.take({ onWarning: (message) => warnings.push(message) });
  return { id: manifest.id, createdAt: manifest.createdAt, warnings };
}

async function at(time: string): Promise<string> {
  return (await choosePoint(chain.repository, NAME, time)).id;
}

function mend(options: Partial<MendClockOptions> = {}): Promise<MendedTime[]> {
  return mendClock(chain.repository, NAME, { dryRun: false, ...options });
}

async function times(): Promise<string[]> {
  const points = await chain.repository.points(NAME, (error) => {
    throw error;
  });
  return points.map(({ createdAt }) => createdAt);
}

/** What tells when a point was made: the times of its files, and its checkpoint's. */
async function leaveTraces(id: string, days: number, checkpointDays?: number): Promise<void> {
  const seconds = (NOON + (checkpointDays ?? days) * DAY_MS) / 1000;
  const checkpoint = checkpointDays === undefined ? null : { name: `cp-${id}`, creationTime: seconds };
  await chain.rewrite(id, { checkpoint });
  const folder = chain.repository.pointFolder(NAME, id);
  for (const name of await readdir(folder)) {
    await utimes(join(folder, name), NOON / 1000, NOON / 1000 + days * 86_400);
  }
}

/**
 * Points of version 0.1: two, one that was made while the clock was ten years ahead, and three after it,
 * whose times were made of the ids. Of the last three one has a checkpoint, one its files' time, and one
 * neither.
 */
async function takeOldPoints(): Promise<string[]> {
  const ids: string[] = [];
  for (const days of [0, 1, TEN_YEARS, 3, 4, 5]) ids.push((await takeAt(days)).id);
  for (const id of ids) await chain.rewrite(id, { createdAt: new Date(timeOfPointId(id)).toISOString() });
  const [first = "", second = "", ahead = "", ...others] = ids;
  await leaveTraces(first, 0);
  await leaveTraces(second, 1);
  await leaveTraces(ahead, TEN_YEARS, TEN_YEARS);
  await leaveTraces(others[0] ?? "", 3.5, 3);
  await leaveTraces(others[1] ?? "", 4);
  await leaveTraces(others[2] ?? "", TEN_YEARS);
  return ids;
}

describe("a point that is made while the clock stands before an older one", () => {
  it("comes after it by its id, is dated by the clock, and tells which is ahead and how to mend it", async () => {
    await takeAt(0);
    const ahead = await takeAt(TEN_YEARS);
    expect(ahead).toMatchObject({ createdAt: day(TEN_YEARS), warnings: [] });
    const next = await takeAt(1);
    expect(timeOfPointId(next.id)).toBe(timeOfPointId(ahead.id) + 1);
    expect(next.createdAt).toBe(day(1));
    expect(next.warnings).toEqual([
      expect.stringMatching(
        new RegExp(
          `^point ${ahead.id} says .* made at ${day(TEN_YEARS)}, .* is ${day(1)} now.* --fix-clock"`,
        ),
      ),
    ]);
    const third = await takeAt(2);
    expect(await at(day(1))).toBe(next.id);
    expect(await at(day(5))).toBe(third.id);
    expect(await at("latest")).toBe(third.id);
  });

  it("does not repeat that once the time was mended, since the id is only a name", async () => {
    const first = await takeAt(0);
    await leaveTraces(first.id, 0);
    const ahead = await takeAt(TEN_YEARS);
    await leaveTraces(ahead.id, TEN_YEARS);
    await takeAt(1);
    expect(await mend()).toMatchObject([{ id: ahead.id, createdAt: day(1), by: "next" }]);
    const last = await takeAt(2);
    expect(last.warnings).toEqual([]);
    expect(last.id > ahead.id).toBe(true);
    expect(await times()).toEqual([day(0), day(1), day(1), day(2)]);
  });

  it("is one of its own day for a prune, and the one that is ahead stays", async () => {
    const ids: string[] = [];
    for (const days of [0, 1, TEN_YEARS, 2, 3, 3.1]) ids.push((await takeAt(days)).id);
    const { points } = await prune({
      repository: chain.repository,
      domain: NAME,
      retention: { daily: 3 },
      dryRun: true,
      sync: false,
    });
    expect(points.map(({ reasons }) => reasons.join())).toEqual([
      "",
      "daily",
      "ahead of the clock",
      "daily",
      "",
      "daily",
    ]);
  });
});

describe("the mend of times", () => {
  it("takes them from checkpoints, then from files, and else the latest that can be; ids stay", async () => {
    const ids = await takeOldPoints();
    const planned = await mend({ dryRun: true });
    expect(await times()).toEqual([
      day(0),
      day(1),
      ...ids.slice(2).map((id) => new Date(timeOfPointId(id)).toISOString()),
    ]);
    expect(await mend()).toEqual(planned);
    expect(planned.map(({ id, createdAt, by }) => [id, createdAt, by])).toEqual([
      [ids[5], day(5), "now"],
      [ids[4], day(4), "files"],
      [ids[3], day(3), "checkpoint"],
      [ids[2], day(3), "next"],
    ]);
    expect(await times()).toEqual([day(0), day(1), day(3), day(3), day(4), day(5)]);
    expect(await chain.repository.pointIds(NAME)).toEqual(ids);
    expect(await mend()).toEqual([]);
    expect(await at(day(4.5))).toBe(ids[4]);
  });

  it("can be repeated if it was killed, and ends as if it had not been", async () => {
    await takeOldPoints();
    await using other = await chain.copy();
    await mend();
    const whole = await times();
    for (let steps = 1; steps <= 4; steps += 1) {
      await using killed = await other.copy();
      let left = steps;
      const onStep = (): void => {
        left -= 1;
        if (left === 0) throw new Error("killed");
      };
      const dying = mendClock(killed.repository, NAME, { dryRun: false, onStep });
      await expect(dying).rejects.toThrow("killed");
      await mendClock(killed.repository, NAME, { dryRun: false });
      const points = await killed.repository.points(NAME, () => undefined);
      expect(points.map(({ createdAt }) => createdAt)).toEqual(whole);
    }
  });

  it("changes nothing else in a manifest, and removes what a killed run left beside it", async () => {
    const first = await takeAt(0);
    const ahead = await takeAt(TEN_YEARS);
    await leaveTraces(first.id, 0);
    await takeAt(1);
    await chain.rewrite(ahead.id, { later: { versions: ["know", "this"] } });
    const folder = chain.repository.pointFolder(NAME, ahead.id);
    const before: object = JSON.parse(await readFile(join(folder, "point.json"), "utf8"));
    await writeFile(join(folder, ".point.json.0f0e7e0a-0000-4000-8000-000000000000"), "{");
    const names = (await readdir(folder)).filter((name) => !name.startsWith("."));
    await mend();
    const after: unknown = JSON.parse(await readFile(join(folder, "point.json"), "utf8"));
    expect(after).toEqual({ ...before, createdAt: day(1) });
    expect(await readdir(folder)).toEqual(names);
  });

  it("finds the point that is older than any can be, as its clock stood where clocks begin", async () => {
    for (const days of [0, 1, -9000, 3]) await leaveTraces((await takeAt(days)).id, days);
    expect(await mend()).toMatchObject([{ was: day(-9000), createdAt: day(3), by: "next" }]);
  });

  it.each([
    ["as many points on either side", [0, 1, 10, 11, 2, 3], [2, 3], [4, 5]],
    ["a clock that was slow for long", [0, 5, 1, 2, 3, 4], [1], [2, 3, 4, 5]],
  ])("changes nothing where it can't be known which clock was wrong: %s", async (_, days, late, early) => {
    const ids: string[] = [];
    for (const each of days) {
      const { id } = await takeAt(each);
      await leaveTraces(id, each);
      ids.push(id);
    }
    vi.setSystemTime(NOON + 20 * DAY_MS);
    const doubts: ClockDoubt[] = [];
    expect(await mend({ onDoubt: (doubt) => doubts.push(doubt) })).toEqual([]);
    expect(doubts).toEqual([{ tooLate: late.map((i) => ids[i]), tooEarly: early.map((i) => ids[i]) }]);
    expect(await times()).toEqual(days.map(day));
    // Then the user says it.
    await mend({ wrong: early.map((i) => ids[i] ?? "") });
    expect(await times()).toEqual(days.map((each, i) => day(early.includes(i) ? 20 : each)));
    await expect(mend({ wrong: ["20260101T000000.000Z"] })).rejects.toMatchObject({ code: "E_NO_POINT" });
  });

  it("goes by another clock, where there is one: that of the hypervisor, or of the host of the files", async () => {
    const ids: string[] = [];
    for (const days of [0, 1, 10, 2, 12, 3]) ids.push((await takeAt(days)).id);
    await leaveTraces(ids[0] ?? "", 0);
    await leaveTraces(ids[1] ?? "", 1);
    await leaveTraces(ids[2] ?? "", 10, 1.5);
    await leaveTraces(ids[3] ?? "", 2);
    await leaveTraces(ids[4] ?? "", 2.5);
    await leaveTraces(ids[5] ?? "", 3);
    vi.setSystemTime(NOON + 20 * DAY_MS);
    expect((await mend()).map(({ id, createdAt, by }) => [id, createdAt, by])).toEqual([
      [ids[4], day(2.5), "files"],
      [ids[2], day(1.5), "checkpoint"],
    ]);
    expect(await mend()).toEqual([]);
  });

  it("is refused while the clock seems to be wrong, or a prune has to be finished", async () => {
    for (const days of [0, 1, 2]) await leaveTraces((await takeAt(days)).id, days);
    vi.setSystemTime(NOON - 3000 * DAY_MS);
    await expect(mend()).rejects.toMatchObject({ code: "E_CLOCK" });
    expect(await times()).toEqual([day(0), day(1), day(2)]);
    const options = {
      repository: chain.repository,
      domain: NAME,
      retention: { last: 1 },
      dryRun: false,
      sync: false,
    };
    vi.setSystemTime(NOON + 3 * DAY_MS);
    const left = await leftByPrune(options, chain.folder);
    const path = left.find(({ step }) => step === "overwrite")?.path ?? "";
    await ageLocks(join(path, NAME));
    const repository = await Repository.open(path);
    await expect(mendClock(repository, NAME, { dryRun: false })).rejects.toMatchObject({
      code: "E_PRUNE_UNFINISHED",
    });
  });

  it("is done by the command, which shows what it would do before", async () => {
    await takeAt(0);
    const ahead = await takeAt(TEN_YEARS);
    const last = await takeAt(1);
    vi.useRealTimers();
    const { path } = chain.repository;
    const shown = await nbdpull("points", path, NAME, "--fix-clock", "--dry-run", "--json");
    expect(shown.json()).toMatchObject({
      dryRun: true,
      mended: [{ domain: NAME, id: ahead.id, was: day(TEN_YEARS) }],
    });
    const done = await nbdpull("points", path, "--fix-clock");
    expect(done.stdout).toMatch(
      new RegExp(`^${NAME}  ${ahead.id}  ${day(TEN_YEARS)} -> ${day(1)}  \\(that of`),
    );
    expect((await nbdpull("points", path, "--fix-clock")).stdout).toBe("all times fit, nothing to mend");
    await chain.rewrite(ahead.id, { createdAt: day(1.5) });
    const unknown = await nbdpull("points", path, "--fix-clock", "--json");
    expect(unknown.json()).toMatchObject({
      mended: [],
      doubtful: [{ domain: NAME, tooLate: [ahead.id], tooEarly: [last.id] }],
    });
    expect(unknown.stderr).toContain(`points ${path} ${NAME} --fix-clock --wrong ID`);
    const said = await nbdpull("points", path, NAME, "--fix-clock", "--wrong", ahead.id, "--json");
    expect(said.json()).toMatchObject({ mended: [{ id: ahead.id, createdAt: day(1) }], doubtful: [] });
    expect((await nbdpull("points", path, "--wrong", ahead.id)).code).toBe(2);
    expect((await nbdpull("points", path, "--dry-run")).code).toBe(2);
  });

  it("mends the points of other domains though those of one can't be", async () => {
    const first = await takeAt(0);
    const ahead = await takeAt(TEN_YEARS);
    vi.useRealTimers();
    const { path } = chain.repository;
    await cp(join(path, NAME), join(path, "early"), { recursive: true });
    // By all that is left of it, the clock is wrong now.
    await rm(join(path, "early", first.id), { recursive: true });
    const folder = join(path, "early", ahead.id);
    const time = new Date(day(TEN_YEARS));
    for (const name of await readdir(folder)) await utimes(join(folder, name), time, time);
    const done = await nbdpull("points", path, "--fix-clock", "--json");
    expect(done.code).toBe(4);
    expect(done.stderr).toMatch(/^nbdpull: E_CLOCK: early: .*clock/);
    expect(done.json()).toMatchObject({
      mended: [{ domain: NAME, id: ahead.id }],
      failed: [{ domain: "early", error: { code: "E_CLOCK" } }],
    });
    const alone = await nbdpull("points", path, "early", "--fix-clock", "--json");
    expect([alone.code, alone.json()]).toMatchObject([4, { error: { code: "E_CLOCK" } }]);
  });
});
