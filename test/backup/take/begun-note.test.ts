import { mkdir, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { type BegunNote, readNote, removeBegunNote, writeNote } from "../../../src/backup/take/begun-note.js";
import { scratch } from "../image/support.js";

const KEY = Buffer.alloc(32, 7);
const NOTE: BegunNote = {
  id: "20261129T181530.706Z",
  createdAt: "2026-11-29T18:15:30.706Z",
  resumed: 0,
  about: { job: "x" },
  kept: { files: [] },
};

it("a note of a point that was begun is believed only as the job's secret has sealed it", async () => {
  const at = (await scratch())("partial");
  await mkdir(at);
  const path = join(at, "begun.json");
  await using folder = await HeldFolder.open(at);
  expect(await readNote(folder, KEY)).toBeUndefined();
  await writeNote(folder, KEY, NOTE);
  expect(await readNote(folder, KEY)).toMatchObject(NOTE);
  expect(await readNote(folder, Buffer.alloc(32, 8))).toBeUndefined();

  const whole = await readFile(path, "utf8");
  const other = whole.replace('resumed\\":0', 'resumed\\":7');
  expect(other).not.toBe(whole);
  for (const forged of [other, whole.slice(0, -20), "", "[]", '{"code":"00","note":"{}"}']) {
    await writeFile(path, forged);
    expect(await readNote(folder, KEY), forged).toBeUndefined();
  }
  await truncate(path, 2 ** 40);
  expect(await readNote(folder, KEY)).toBeUndefined();
  await rm(path);
  await writeFile(join(at, "elsewhere"), whole);
  await symlink("elsewhere", path);
  expect(await readNote(folder, KEY)).toBeUndefined();
  await removeBegunNote(folder);
  expect(await readFile(join(at, "elsewhere"), "utf8")).toBe(whole);
});
