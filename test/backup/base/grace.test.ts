import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { Grace } from "../../../src/backup/base/grace.js";
import { anySignal } from "../../../src/nbd/index.js";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

it("counts from the signal on, and has its reason", () => {
  const stop = new AbortController();
  using one = new Grace(stop.signal, 10_000);
  using derived = new Grace(anySignal(stop.signal, new AbortController().signal), 10_000);
  vi.advanceTimersByTime(60_000);
  stop.abort(new Error("enough"));
  vi.advanceTimersByTime(9_999);
  expect([one, derived].map(({ late }) => late.aborted)).toEqual([false, false]);
  vi.advanceTimersByTime(1);
  expect([one, derived].map(({ late }) => late.aborted)).toEqual([true, true]);
  expect(one.late.reason).toMatchObject({ message: "enough" });
});

it("has the reason say that something may be left, if it says such things", () => {
  const tellLeft = vi.fn();
  using _ = new Grace(AbortSignal.abort({ tellLeft }), 5_000);
  vi.advanceTimersByTime(4_999);
  expect(tellLeft).not.toHaveBeenCalled();
  vi.advanceTimersByTime(1);
  expect(tellLeft).toHaveBeenCalledExactlyOnceWith(expect.stringContaining("left to the next run"));
});

it("counts from when it is asked for where the signal has fired before", () => {
  using grace = new Grace(AbortSignal.abort(new Error("enough")), 5_000);
  vi.advanceTimersByTime(4_999);
  expect(grace.late.aborted).toBe(false);
  vi.advanceTimersByTime(1);
  expect(grace.late.reason).toMatchObject({ message: "enough" });
});

it("keeps no process alive when it is over, nor listens any more", () => {
  const stop = new AbortController();
  const [before, after] = [new Grace(stop.signal, 5_000), new Grace(stop.signal, 5_000)];
  before[Symbol.dispose]();
  stop.abort(new Error("enough"));
  expect(vi.getTimerCount()).toBe(1);
  after[Symbol.dispose]();
  expect(vi.getTimerCount()).toBe(0);
  expect(new Grace(undefined, 5_000).late.aborted).toBe(false);
});
