/** What is made of the end of a program that mounts something. */
import { PassThrough } from "node:stream";
import { expect, it } from "vitest";
import { FuseProcess } from "../../../src/backup/mount/fuse-process.js";

const NOWHERE = "/nonexistent/nbdpull/vda";

type End = { readonly exitCode?: number; readonly signal?: string };

/** A program that ends at once. */
class Ending extends FuseProcess {
  constructor(end: End) {
    const stderr = new PassThrough();
    const child = Object.assign(Promise.resolve(end), { stderr, kill: () => true });
    super(NOWHERE, child, {
      ...{ startMs: 5000, pollMs: 1, endMs: 5000 },
      kill: () => undefined,
      failure: (why) => new Error(`it failed: ${why}`),
      tooLate: "too late",
    });
  }

  async seen(): Promise<void> {
    await this.mounted(undefined);
  }

  async answered(): Promise<void> {
    await this.until(async () => false, undefined);
  }
}

it("a mount that was taken away before anybody here saw it has been there", async () => {
  const program = new Ending({ exitCode: 0 });
  await program.seen();
  await program.ended;
});

it("a program that ends by itself has mounted nothing, or does not what was waited for", async () => {
  await expect(new Ending({ exitCode: 1 }).seen()).rejects.toThrow("it failed: exit code 1");
  await expect(new Ending({ signal: "SIGSEGV" }).seen()).rejects.toThrow("it failed: a signal, SIGSEGV");
  await expect(new Ending({ exitCode: 0 }).answered()).rejects.toThrow("it failed: it ended early");
});
