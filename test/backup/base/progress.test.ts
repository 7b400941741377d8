import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Progress } from "../../../src/backup/base/progress.js";

describe("progress", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["performance"] });
    vi.advanceTimersByTime(60_000);
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  function recorded(): { progress: Progress<number>; told: number[] } {
    const told: number[] = [];
    return { progress: new Progress<number>((state) => told.push(state)), told };
  }

  it("reports the first state at once, then the latest state at intervals", () => {
    const { progress, told } = recorded();
    for (let state = 0; state < 1000; state += 1) {
      progress.note(state);
      vi.advanceTimersByTime(1);
    }
    expect(told).toEqual([0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
  });

  it("reports every state if states come more slowly than the interval", () => {
    const { progress, told } = recorded();
    for (let state = 0; state < 4; state += 1) {
      progress.note(state);
      vi.advanceTimersByTime(150);
    }
    expect(told).toEqual([0, 1, 2, 3]);
  });

  it("reports the last state once at the end", () => {
    const { progress, told } = recorded();
    for (const state of [1, 2, 3]) progress.note(state);
    progress.finish();
    progress.finish();
    expect(told).toEqual([1, 3]);
  });

  it("doesn't repeat the last state at the end, and reports nothing if there was none", () => {
    const { progress, told } = recorded();
    progress.note(1);
    progress.finish();
    expect(told).toEqual([1]);
    const silent = recorded();
    silent.progress.finish();
    expect(silent.told).toEqual([]);
  });

  it("works without a listener", () => {
    const progress = new Progress<number>(undefined);
    progress.note(1);
    progress.finish();
  });

  it("throws what its listener throws", () => {
    const progress = new Progress<number>(() => {
      throw new Error("no terminal");
    });
    expect(() => progress.note(1)).toThrow("no terminal");
  });
});
