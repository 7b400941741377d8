import { expect, it } from "vitest";
import type { ReadableFile, RemoteOptions } from "../../../src/backup/image/readable-file.js";
import { VerifyThreads } from "../../../src/backup/verify/verify-threads.js";

const MiB = 1024 * 1024;
const geometry = { virtualSize: MiB, clusterSize: 64 * 1024 };
const ended = (signal: AbortSignal | undefined): Promise<never> =>
  new Promise((_, reject) => {
    const end = (): void => reject(new Error("ended"));
    if (signal?.aborted) end();
    else signal?.addEventListener("abort", end);
  });

it.each(["open", "fill"] as const)(
  "reads from a store that never answers end with the verifying: %s",
  async (endless) => {
    const open = async ({ signal }: RemoteOptions = {}): Promise<ReadableFile> => ({
      path: "s3://bucket/vda.raw",
      size: async () => (endless === "open" ? await ended(signal) : MiB),
      read: () => ended(signal),
      fill: () => ended(signal),
      close: async () => undefined,
    });
    const remote = { path: "s3://bucket/vda.raw", open };
    const image = { path: remote.path, remote, format: "raw" as const, geometry, algorithm: undefined };
    const runs = [{ kind: "data" as const, cluster: 0, count: 16, hostOffset: 0 }];
    const threads = new VerifyThreads(MiB, true);
    const asked = threads.ask({ image, runs, digests: new Uint8Array() });
    const cancelled = expect(asked).rejects.toMatchObject({ code: "E_VERIFY_THREAD" });
    await new Promise((resolve) => setTimeout(resolve, 20));
    await threads.close();
    await cancelled;
  },
);
