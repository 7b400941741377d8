/**
 * The attack: an image that a thread is to digest becomes a pipe, on which the thread would wait for ever.
 */
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { openPlainNow } from "../../src/backup/host/plain-files.js";

it("is refused by a thread that can't be interrupted, and so are links and folders", async () => {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  try {
    const path = (name: string): string => join(folder, name);
    await execa("mkfifo", [path("pipe")]);
    await writeFile(path("file"), "data");
    await symlink(path("file"), path("link"));
    for (const name of ["pipe", "link", "."]) {
      expect(() => openPlainNow(path(name)), name).toThrow(expect.objectContaining({ code: "E_LINK" }));
    }
    expect(openPlainNow(path("file"))).toBeGreaterThan(2);
  } finally {
    await rm(folder, { recursive: true });
  }
});
