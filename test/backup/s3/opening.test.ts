import type { AddressInfo, Socket } from "node:net";
import { createServer } from "node:net";
import { afterEach, expect, it, vi } from "vitest";
import { onWaiting, type Waiting } from "../../../src/backup/base/waiting.js";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { hasAnswered, Opening, waitedInVain } from "../../../src/backup/s3/opening.js";
import { restoreEnvironment } from "../../support/environment.js";

const before = { ...process.env };
afterEach(() => {
  restoreEnvironment(before);
  vi.useRealTimers();
});

const failure = (cause: unknown): Error => new Error("given up", { cause });
const named = (name: string, status?: number): Error =>
  Object.assign(new Error(name), { name, ...(status && { $metadata: { httpStatusCode: status } }) });

it.each([
  [undefined, "has not answered yet"],
  [named("ECONNREFUSED"), "does not answer (ECONNREFUSED)"],
  [named("SlowDown", 503), "answers SlowDown"],
  [named("ENOTFOUND"), undefined],
])("tells after 2 s of a store that is waited for: %s", async (failed, because) => {
  vi.useFakeTimers();
  const told: Waiting[] = [];
  const stop = onWaiting((waiting) => told.push(waiting));
  try {
    using opening = new Opening("store", { patienceMs: 60_000, failure });
    if (failed) await opening.watch(Promise.reject(failed)).catch(() => undefined);
    await vi.advanceTimersByTimeAsync(1_900);
    expect(told).toEqual([]);
    await vi.advanceTimersByTimeAsync(200);
    expect(told).toEqual(because === undefined ? [] : [{ store: "store", because, seconds: 60 }]);
    await vi.advanceTimersByTimeAsync(600_000);
    expect(opening.late.aborted).toBe(false);
    expect(told.length).toBeLessThan(2);
  } finally {
    stop();
  }
});

it("tells nothing of one that has answered by then", async () => {
  vi.useFakeTimers();
  const told: Waiting[] = [];
  const stop = onWaiting((waiting) => told.push(waiting));
  {
    using opening = new Opening("store", { patienceMs: 60_000, failure });
    await opening.watch(Promise.resolve());
  }
  await vi.advanceTimersByTimeAsync(10_000);
  expect(told).toEqual([]);
  stop();
});

it("waits for seconds where this process has waited in vain, until the store has answered", async () => {
  vi.useFakeTimers();
  waitedInVain("away");
  using again = new Opening("away", { patienceMs: 60_000, failure });
  using other = new Opening("other", { patienceMs: 60_000, failure });
  await vi.advanceTimersByTimeAsync(5_100);
  expect(again.late.reason).toMatchObject({ message: "given up" });
  expect(other.late.aborted).toBe(false);
  hasAnswered("away");
  using later = new Opening("away", { patienceMs: 60_000, failure });
  await vi.advanceTimersByTimeAsync(59_000);
  expect(later.late.aborted).toBe(false);
});

it("is what a bucket waits by", async () => {
  const keys = { AWS_ACCESS_KEY_ID: "AKID", AWS_SECRET_ACCESS_KEY: "secret", AWS_CONFIG_FILE: "/dev/null" };
  Object.assign(process.env, keys);
  const sockets: Socket[] = [];
  let isSilent = false;
  const server = createServer((socket) => {
    if (isSilent) sockets.push(socket);
    else socket.destroy();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  const address = { bucket: "backups", prefix: "", endpoint: `http://127.0.0.1:${port}` };
  await expect(Bucket.open(address, { patienceMs: 200 })).rejects.toMatchObject({ code: "E_S3_UNREACHABLE" });
  isSilent = true;
  const at = performance.now();
  await expect(Bucket.open(address)).rejects.toMatchObject({
    code: "E_S3_UNREACHABLE",
    message: expect.stringContaining("it was waited for in vain before"),
  });
  expect(performance.now() - at).toBeLessThan(20_000);
  for (const socket of sockets) socket.destroy();
  server.close();
});
