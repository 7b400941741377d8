import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { makeFolder } from "../nbd/servers.js";
import { beginsWith, hasBytes } from "./same-bytes.js";

/** More than one piece. */
const LENGTH = 1024 * 1024 + 7;

it("finds one other byte wherever it is, and a file that is too long or too short", async () => {
  await using folder = await makeFolder();
  const path = join(folder.path, "file");
  const content = Buffer.alloc(LENGTH, 5);
  await writeFile(path, content);
  expect([hasBytes(path, content), beginsWith(path, content)]).toEqual([true, true]);
  for (const at of [0, 1024 * 1024 - 1, 1024 * 1024, LENGTH - 1]) {
    const other = Buffer.from(content);
    other[at] = 6;
    expect([at, hasBytes(path, other), beginsWith(path, other)]).toEqual([at, false, false]);
  }
  const shorter = content.subarray(0, LENGTH - 1);
  expect([hasBytes(path, shorter), beginsWith(path, shorter)]).toEqual([false, true]);
  const longer = Buffer.alloc(LENGTH + 1, 5);
  expect([hasBytes(path, longer), beginsWith(path, longer)]).toEqual([false, false]);
});
