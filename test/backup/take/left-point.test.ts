import { expect, it } from "vitest";
import type { LeftJob } from "../../../src/backup/guest/claim.js";
import type { Guest } from "../../../src/backup/guest/guest.js";
import type { BackupOptions } from "../../../src/backup/take/backup-options.js";
import { judgeLeftPoint } from "../../../src/backup/take/left-point.js";

it("a left point that can't be read is lost, and ends no backup but one that is interrupted", async () => {
  const stop = new AbortController();
  const secret = async (): Promise<never> => {
    throw Object.assign(new Error("EACCES: permission denied, open"), { code: "EACCES" });
  };
  const left = { folder: { secret } } as unknown as LeftJob;
  const judge = () =>
    judgeLeftPoint({} as Guest, left, [], { signal: stop.signal } as unknown as BackupOptions);
  expect(await judge()).toEqual({
    because: "it can't be judged (EACCES: permission denied, open)",
    createdAt: undefined,
  });
  stop.abort(new Error("Ctrl-C"));
  await expect(judge()).rejects.toThrow("Ctrl-C");
});
