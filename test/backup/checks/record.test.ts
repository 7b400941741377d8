import { cp, mkdtemp, readdir, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Found, Subject } from "../../../src/backup/checks/check.js";
import { lookAtRecord } from "../../../src/backup/checks/record.js";
import { CheckpointRecord } from "../../../src/backup/guest/checkpoint-record.js";
import { Repository } from "../../../src/backup/repository/repository.js";

const UUID = "8c2d5f0e-3f0b-4d5c-9a55-4a1c0f0f6a10";
const DOMAIN = { name: "web", uuid: UUID, disks: [], confinedBy: [] };
const before = process.env["NBDPULL_STATE_FOLDER"];

let folder: string;
let stateFolder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-record-"));
  stateFolder = join(folder, "state");
  process.env["NBDPULL_STATE_FOLDER"] = stateFolder;
});
afterEach(async () => {
  if (before === undefined) delete process.env["NBDPULL_STATE_FOLDER"];
  else process.env["NBDPULL_STATE_FOLDER"] = before;
  await rm(folder, { recursive: true });
});

const look = async (repository: Repository | undefined): Promise<readonly Found[]> =>
  await lookAtRecord({ repository, domain: DOMAIN } as unknown as Subject);

async function recorded(path: string): Promise<Repository> {
  const repository = await Repository.openOrCreate(path);
  const record = await CheckpointRecord.open({
    ...{ stateFolder, repository, domainUuid: UUID, moved: false },
    found: async () => ["nbdpull-1", "nbdpull-2"],
  });
  await record.add("nbdpull-3");
  return repository;
}

it("of a repository is named by doctor: none yet, known here, moved, copied, damaged", async () => {
  const path = join(folder, "repo");
  expect(await look(undefined)).toEqual([]);
  expect(await look(await Repository.openOrCreate(path))).toMatchObject([
    { status: "pass", cause: expect.stringContaining("no record") },
  ]);
  expect(await readdir(folder), "looking makes nothing").toEqual(["repo"]);

  const repository = await recorded(path);
  expect(await look(repository)).toMatchObject([
    { status: "pass", cause: expect.stringMatching(/knows it as .*, with 3 checkpoints of web/) },
  ]);

  const copy = join(folder, "copy");
  await cp(path, copy, { recursive: true });
  expect(await look(await Repository.open(copy))).toMatchObject([
    { status: "fail", cause: expect.stringContaining("a copy"), error: { code: "E_REPOSITORY_MOVED" } },
  ]);

  const moved = join(folder, "moved to");
  await rm(copy, { recursive: true });
  await rename(path, moved);
  expect(await look(await Repository.open(moved))).toMatchObject([
    {
      status: "fail",
      cause: expect.stringContaining(path),
      mend: `nbdpull backup web --to '${moved}' --moved`,
      error: { code: "E_REPOSITORY_MOVED" },
    },
  ]);

  await writeFile(join(stateFolder, "repositories", repository.id, "place.json"), "{}");
  await expect(look(await Repository.open(moved))).rejects.toMatchObject({ code: "E_CHECKPOINT_RECORD" });
});
