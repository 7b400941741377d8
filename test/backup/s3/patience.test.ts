import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, vi } from "vitest";
import { patiently } from "../../../src/backup/s3/patience.js";

const reset = Object.assign(new Error("socket hang up"), { code: "ECONNRESET" });

it("repeats a request that has lasted longer than the patience before it failed", async () => {
  const request = vi.fn(async () => {
    await sleep(250);
    if (request.mock.calls.length === 1) throw reset;
    return "done";
  });
  expect(await patiently(request, { patienceMs: 200 })).toBe("done");
});

it("gives up what fails again and again, the patience after the first failure", async () => {
  const request = vi.fn(async () => {
    throw reset;
  });
  await expect(patiently(request, { patienceMs: 200 })).rejects.toBe(reset);
  expect(request.mock.calls.length).toBeGreaterThan(1);
  expect(request.mock.calls.length).toBeLessThan(6);
});
