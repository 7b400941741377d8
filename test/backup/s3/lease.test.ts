import { setTimeout as sleep } from "node:timers/promises";
import { beforeEach, expect, it, vi } from "vitest";
import { thisSystemProcess } from "../../../src/backup/host/process-identity.js";
import type { Bucket } from "../../../src/backup/s3/bucket.js";
import { takeLease } from "../../../src/backup/s3/lease.js";
import type { BreakingStore } from "../../support/breaking-store.js";
import { describeWith } from "../../support/tools.js";
import { withTwoWriters } from "../../support/two-writers.js";

const TERM = 1_500;
/**
 * A lease is lost when the store or this process stands still for a second, which is right: on a busy machine a test of
 * its times may be tried again.
 */
const TIMED = { retry: 3 };
const KEY = "lease/vm/.lease";

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a lease in Ceph", () => {
  let line: BreakingStore;
  let mine: Bucket;
  let other: Bucket;

  withTwoWriters((writers) => {
    ({ line, mine, other } = writers);
  });
  beforeEach(async () => {
    line.fault = () => undefined;
    await other.remove([KEY]);
  });

  const abilities = { conditionalCreate: true, conditionalReplace: true };
  const options = { of: "vm", waitMs: 0, termMs: TERM, abilities };

  it("is one process's, and another's after it was given back", async () => {
    const long = { ...options, termMs: 10 * TERM };
    const taken = await Promise.allSettled([1, 2, 3, 4].map(() => takeLease(other, KEY, long)));
    const held = taken.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    expect(held).toHaveLength(1);
    await expect(takeLease(mine, KEY, long)).rejects.toMatchObject({
      name: "PreconditionError",
      code: "E_LOCKED",
    });
    await expect(takeLease(mine, KEY, long)).rejects.toThrow(`process ${process.pid}`);
    held[0]?.assertHeld();
    await held[0]?.release();
    expect(await other.find(KEY)).toBeUndefined();
    const next = await takeLease(mine, KEY, options);
    await next.release();
  });

  it("stays its holder's for longer than a term, while others wait", TIMED, async () => {
    const held = await takeLease(mine, KEY, options);
    await expect(takeLease(other, KEY, { ...options, waitMs: 2 * TERM })).rejects.toMatchObject({
      code: "E_LOCKED",
    });
    held.assertHeld();
    expect(held.lost.aborted).toBe(false);
    await held.release();
  });

  it("is taken from a holder that is cut off from the store, who learns of it first", TIMED, async () => {
    const held = await takeLease(mine, KEY, options);
    line.fault = () => "never answer";
    const cutOff = performance.now();
    let lostAt = Number.POSITIVE_INFINITY;
    held.lost.addEventListener("abort", () => {
      lostAt = performance.now();
    });
    const next = await takeLease(other, KEY, { ...options, waitMs: 4 * TERM });
    const takenAt = performance.now();
    expect(() => held.assertHeld()).toThrow(expect.objectContaining({ code: "E_LEASE_LOST" }));
    expect(held.lost.aborted).toBe(true);
    expect(lostAt).toBeLessThanOrEqual(takenAt);
    expect(takenAt - cutOff).toBeGreaterThan(TERM - TERM / 5);
    // What it has lost it must not give back.
    line.fault = () => undefined;
    await held.release();
    next.assertHeld();
    expect(await other.find(KEY)).toBeDefined();
    await next.release();
  });

  it("is asked for in the store too, for a host that has slept", TIMED, async () => {
    const held = await takeLease(mine, KEY, options);
    await held.confirm();
    await other.put(KEY, Buffer.from("another"));
    held.assertHeld();
    await expect(held.confirm()).rejects.toMatchObject({ code: "E_LEASE_LOST" });
    expect(held.lost.aborted).toBe(true);
    await held.release();
  });

  it("is not renewed with another one's, which was put in the moment of a renewal", TIMED, async () => {
    const held = await takeLease(mine, KEY, { ...options, abilities: NONE });
    // The other one's comes between our own and the look after it.
    const put = mine.put.bind(mine);
    const between = vi.spyOn(mine, "put").mockImplementation(async (...args) => {
      const etag = await put(...args);
      await other.put(KEY, Buffer.from("another"));
      return etag;
    });
    try {
      await expect.poll(() => held.lost.aborted, { timeout: 2 * TERM }).toBe(true);
    } finally {
      between.mockRestore();
    }
    await held.release();
    expect((await other.get(KEY, 1000))?.bytes.toString()).toBe("another");
  });

  it("is never given back later than it is held, nor another one's", TIMED, async () => {
    const held = await takeLease(mine, KEY, options);
    line.fault = ({ method }) => (method === "DELETE" ? { answer: 503, code: "SlowDown" } : undefined);
    const began = performance.now();
    await held.release();
    expect(performance.now() - began).toBeLessThan(TERM);
    line.fault = () => undefined;
    await other.remove([KEY]);
    const next = await takeLease(mine, KEY, options);
    await other.put(KEY, Buffer.from("another"));
    await next.release();
    expect((await other.get(KEY, 100))?.bytes.toString()).toBe("another");
  });

  it("is lost when somebody else's lies in its place", async () => {
    const held = await takeLease(mine, KEY, options);
    await other.put(KEY, Buffer.from("another"));
    await expect.poll(() => held.lost.aborted).toBe(true);
    await held.release();
    expect((await other.get(KEY, 100))?.bytes.toString()).toBe("another");
  });

  it("is taken at once from a process of this host that was killed", TIMED, async () => {
    await other.put(KEY, Buffer.from(JSON.stringify({ ...(await thisSystemProcess()), pid: 4_000_000 })));
    const began = performance.now();
    const held = await takeLease(mine, KEY, options);
    expect(performance.now() - began).toBeLessThan(TERM / 2);
    held.assertHeld();
    await held.release();
    // A number may have been given to another process since.
    await other.put(KEY, Buffer.from(JSON.stringify({ ...(await thisSystemProcess()), start: "1" })));
    await (await takeLease(mine, KEY, options)).release();
  });

  it("is held by one of two also where the store takes no notice of conditions", async () => {
    line.fault = () => "ignore conditions";
    const without = {
      ...options,
      termMs: 10 * TERM,
      abilities: { conditionalCreate: false, conditionalReplace: false },
    };
    const taken = await Promise.allSettled([1, 2, 3].map(() => takeLease(mine, KEY, without)));
    const held = taken.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    expect(held).toHaveLength(1);
    held[0]?.assertHeld();
    await held[0]?.release();
  });

  it("is not relied on where the store takes no notice of conditions any more, and that is told", async () => {
    line.fault = () => "ignore conditions";
    const long = { ...options, termMs: 10 * TERM };
    const taken = await Promise.allSettled([1, 2, 3].map(() => takeLease(mine, KEY, long)));
    const held = taken.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    expect(held).toHaveLength(1);
    expect(held[0]?.abilities).toEqual({ conditionalCreate: false, conditionalReplace: false });
    await held[0]?.confirm();
    await held[0]?.release();
    line.fault = () => undefined;
    const kept = await takeLease(mine, KEY, long);
    expect(kept.abilities).toEqual(abilities);
    await kept.confirm();
    await kept.release();
  });

  const CREATE = { conditionalCreate: true, conditionalReplace: false };
  const REPLACE = { conditionalCreate: false, conditionalReplace: true };
  const NONE = { conditionalCreate: false, conditionalReplace: false };

  it.each([CREATE, REPLACE])("is held with what a store of half of the conditions does: %o", async (half) => {
    const held = await takeLease(mine, KEY, { ...options, termMs: 10 * TERM, abilities: half });
    expect(held.abilities).toEqual(half);
    await held.confirm();
    await held.release();
    expect(await other.find(KEY)).toBeUndefined();
  });

  it.each([
    [CREATE, "ignore conditions"],
    [CREATE, "refuse conditions"],
    [REPLACE, "ignore conditions"],
    [REPLACE, "refuse conditions"],
  ] as const)("counts on no half that a store does not keep any more: %o, %s", TIMED, async (half, fault) => {
    line.fault = ({ conditions }) => (conditions === undefined ? undefined : fault);
    const held = await takeLease(mine, KEY, { ...options, abilities: half });
    expect(held.abilities).toEqual(NONE);
    await sleep(TERM);
    await held.confirm();
    await held.release();
    expect(await other.find(KEY)).toBeUndefined();
  });

  it.each([
    ["If-None-Match", "ignore conditions", REPLACE],
    ["If-Match", "ignore conditions", CREATE],
    ["If-None-Match", "refuse conditions", REPLACE],
    ["If-Match", "refuse conditions", CREATE],
  ] as const)("tells each of the conditions from the other: %s, %s", TIMED, async (name, fault, half) => {
    line.fault = ({ conditions }) => (conditions?.includes(name) ? fault : undefined);
    const held = await takeLease(mine, KEY, options);
    expect(held.abilities).toEqual(half);
    // It is renewed by what the store does.
    await sleep(TERM);
    await held.confirm();
    await held.release();
    expect(await other.find(KEY)).toBeUndefined();
  });

  it(
    "is not lost where a store refuses every If-Match, and takes no notice of If-None-Match",
    TIMED,
    async () => {
      line.fault = ({ conditions }) => {
        if (conditions?.includes("If-None-Match")) return "ignore conditions";
        return conditions?.includes("If-Match") ? { answer: 412, code: "PreconditionFailed" } : undefined;
      };
      const held = await takeLease(mine, KEY, options);
      expect(held.abilities).toEqual(NONE);
      await sleep(TERM);
      await held.confirm();
      await held.release();
    },
  );

  it("is one process's also where a store does not know conditions any more", async () => {
    line.fault = () => "refuse conditions";
    const long = { ...options, termMs: 10 * TERM };
    const taken = await Promise.allSettled([1, 2, 3].map(() => takeLease(mine, KEY, long)));
    const held = taken.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    expect(held.map((each) => each.abilities)).toEqual([NONE]);
    await held[0]?.confirm();
    await held[0]?.release();
    expect(await other.find(KEY)).toBeUndefined();
  });

  it.each([
    ["a failure", { answer: 403, code: "AccessDenied" }],
    ["a signal", "never answer"],
  ] as const)("is given back after %s that comes when it was taken", async (what, fault) => {
    const stop = new AbortController();
    let puts = 0;
    line.fault = ({ method }) => {
      if (method !== "PUT") return undefined;
      puts += 1;
      if (puts === 1) return undefined;
      if (what === "a signal") setTimeout(() => stop.abort(new Error("enough")), 100);
      return fault;
    };
    await expect(takeLease(mine, KEY, { ...options, signal: stop.signal })).rejects.toThrow();
    expect(puts).toBeGreaterThan(1);
    expect(await other.find(KEY)).toBeUndefined();
  });

  it("is not taken any more after a signal, though the store has become silent", async () => {
    const stop = new AbortController();
    line.fault = ({ method }) => (method === "PUT" ? "never answer" : undefined);
    setTimeout(() => stop.abort(new Error("enough")), 100);
    await expect(takeLease(mine, KEY, { ...options, signal: stop.signal })).rejects.toThrow("enough");
  });

  it("is waited for while it may be a dead process's", async () => {
    await other.put(KEY, Buffer.from("left behind, and no JSON"));
    const held = await takeLease(mine, KEY, { ...options, waitMs: 4 * TERM });
    held.assertHeld();
    await held.release();
  });

  it("is refused, and not asked for without end, where the store contradicts itself", async () => {
    line.fault = ({ method }) =>
      method === "GET" ? { answer: 404, code: "NoSuchKey" } : { answer: 412, code: "PreconditionFailed" };
    const asked = line.seen.length;
    await expect(takeLease(mine, KEY, { ...options, termMs: 100 })).rejects.toMatchObject({
      code: "E_LOCKED",
      message: expect.stringContaining(`s3://backups/${KEY}`),
    });
    expect(line.seen.length - asked).toBeLessThan(20);
  });

  it("is taken, and all conditions counted on, though it vanishes while they are tried", TIMED, async () => {
    const create = mine.putIfAbsent.bind(mine);
    const trial = vi.spyOn(mine, "putIfAbsent").mockImplementation(async (...args) => {
      // As whoever was taken for dead gives its own back late.
      if (trial.mock.calls.length === 2) await other.remove([KEY]);
      return await create(...args);
    });
    try {
      const held = await takeLease(mine, KEY, options);
      expect(trial.mock.calls.length).toBeGreaterThan(1);
      expect(held.abilities).toEqual(abilities);
      // It is renewed with what lies there now.
      await sleep(TERM);
      await held.confirm();
      await held.release();
    } finally {
      trial.mockRestore();
    }
    expect(await other.find(KEY)).toBeUndefined();
  });

  it("of a dead process is told how to be removed where the store refuses each condition on it", async () => {
    await other.put(KEY, Buffer.from("left behind"));
    // As Ceph does when versions were switched on.
    line.fault = ({ method }) => (method === "PUT" ? { answer: 412, code: "PreconditionFailed" } : undefined);
    await expect(takeLease(mine, KEY, { ...options, termMs: 100 })).rejects.toMatchObject({
      code: "E_LOCKED",
      message: expect.stringMatching(/versions switched on .* remove that object and try again/),
    });
    // Nothing is taken without a condition that was promised: what refuses it may show something old.
    expect((await other.get(KEY, 100))?.bytes.toString()).toBe("left behind");
    line.fault = () => undefined;
    await other.remove([KEY]);
    await (await takeLease(mine, KEY, options)).release();
  });

  it("is not taken when the wait is aborted", async () => {
    await other.put(KEY, Buffer.from("{}"));
    const stop = new AbortController();
    setTimeout(() => stop.abort(new Error("enough")), 100);
    await expect(takeLease(mine, KEY, { ...options, waitMs: 60_000, signal: stop.signal })).rejects.toThrow(
      "enough",
    );
  });
});
