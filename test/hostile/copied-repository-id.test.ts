/**
 * The attack: a repository with the id of another, or one that begins like it, has that one's checkpoints
 * deleted.
 */
import { chmod, mkdtemp, readdir, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CheckpointRecord } from "../../src/backup/guest/checkpoint-record.js";
import { retireCheckpoints } from "../../src/backup/guest/guest.js";
import { retireDomain } from "../../src/backup/guest/retire-domain.js";
import { checkpointPrefix } from "../../src/backup/libvirt/checkpoints.js";
import type { DomainDefinition } from "../../src/backup/libvirt/documents/domain-xml.js";
import type { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { Repository } from "../../src/backup/repository/repository.js";

const domain = { name: "web", uuid: "f00dcafe-0000-4000-8000-000000000000" } as DomainDefinition;

let folder: string;
let repository: Repository;
let present: string[];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  repository = await Repository.openOrCreate(join(folder, "repo"));
  present = [];
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** Libvirt as far as its list of checkpoints goes. */
const libvirt = {
  checkpointNames: async () => [...present],
  deleteCheckpoint: async (_: unknown, name: string) => {
    present = present.filter((other) => other !== name);
  },
} as unknown as Libvirt;

async function recordOf(of: Repository, moved = false): Promise<CheckpointRecord> {
  const prefix = checkpointPrefix(of.id);
  const found = async (): Promise<string[]> => present.filter((name) => name.startsWith(prefix));
  const stateFolder = join(folder, "state");
  return await CheckpointRecord.open({ stateFolder, repository: of, domainUuid: domain.uuid, moved, found });
}

async function takeCheckpoint(of: Repository, name: string): Promise<void> {
  const record = await recordOf(of);
  await record.add(name);
  present.push(name);
}

async function forged(name: string, id: string): Promise<Repository> {
  const copy = await Repository.openOrCreate(join(folder, name));
  await writeFile(
    join(copy.path, "nbdpull.json"),
    JSON.stringify({ format: "nbdpull-repository", version: 1, id }),
  );
  return await Repository.open(copy.path);
}

describe("a repository with the id of another", () => {
  it("is refused before anything of the other is touched, and taken for it if the user says so", async () => {
    const name = `${checkpointPrefix(repository.id)}1`;
    await takeCheckpoint(repository, name);
    const copy = await forged("copy", repository.id);
    await expect(recordOf(copy)).rejects.toMatchObject({
      code: "E_REPOSITORY_MOVED",
      message: expect.stringContaining(repository.path),
    });
    await rm(copy.path, { recursive: true });
    await rename(repository.path, copy.path);
    const moved = await Repository.open(copy.path);
    await expect(recordOf(moved)).rejects.toMatchObject({ code: "E_REPOSITORY_MOVED" });
    expect((await recordOf(moved, true)).has(name)).toBe(true);
    expect((await recordOf(moved)).has(name)).toBe(true);
  });

  it("deletes nothing of the other if only the beginning is the same, which names the checkpoints", async () => {
    const name = `${checkpointPrefix(repository.id)}1`;
    await takeCheckpoint(repository, name);
    const like = await forged("like", `${repository.id.slice(0, 8)}-0000-4000-8000-000000000000`);
    expect(checkpointPrefix(like.id)).toBe(checkpointPrefix(repository.id));
    const deleted = await retireCheckpoints({ libvirt, domain }, await recordOf(like), () => true);
    expect([deleted.retired, present]).toEqual([[], [name]]);
    // The repository itself does what it always did.
    const retired = await retireCheckpoints({ libvirt, domain }, await recordOf(repository), () => true);
    expect([retired.retired, present]).toEqual([[name], []]);
    expect((await recordOf(repository)).has(name)).toBe(false);
  });
});

it("has no checkpoints of a domain whose UUID, as a manifest says, is the name of another file", async () => {
  await takeCheckpoint(repository, "one");
  const retire = async (uuid: string): Promise<readonly string[]> => {
    const connect = (): Libvirt => {
      throw new Error("libvirt is asked");
    };
    const options = { repository, connect, dryRun: false, stateFolder: join(folder, "state") };
    return (await retireDomain({ ...options, uuid })).checkpoints;
  };
  for (const uuid of ["place", "a/b", "../../x", "", domain.uuid.slice(0, 8)]) {
    expect([uuid, await retire(uuid)]).toEqual([uuid, []]);
  }
  for (const uuid of [domain.uuid, domain.uuid.toUpperCase()]) {
    await expect(retire(uuid)).rejects.toThrow("libvirt is asked");
  }
});

describe("the record of a repository's checkpoints", () => {
  it("takes over what an earlier version has made", async () => {
    present = [`${checkpointPrefix(repository.id)}1`, "virtnbdbackup.0", "nbdpull-00000000-1"];
    const { retired } = await retireCheckpoints({ libvirt, domain }, await recordOf(repository), () => true);
    expect(retired).toEqual([`${checkpointPrefix(repository.id)}1`]);
  });

  it("is for its owner only, and an error that names it if it makes no sense", async () => {
    await takeCheckpoint(repository, "one");
    const state = join(folder, "state", "repositories", repository.id);
    expect((await readdir(state)).sort()).toEqual([`${domain.uuid}.json`, "place.json"]);
    for (const file of await readdir(state)) {
      const kept = join(state, file);
      await chmod(kept, 0o600);
      await rename(kept, `${kept}.good`);
      await writeFile(kept, "{}");
      await expect(recordOf(repository)).rejects.toMatchObject({
        code: "E_CHECKPOINT_RECORD",
        message: expect.stringContaining(kept),
      });
      await rename(`${kept}.good`, kept);
    }
  });

  it("is not needed for a backup: where it can't be kept, nothing but what it made itself is deleted", async () => {
    await writeFile(join(folder, "state"), "");
    present = [`${checkpointPrefix(repository.id)}1`];
    const record = await recordOf(repository);
    await record.add("mine");
    present.push("mine");
    const { retired } = await retireCheckpoints({ libvirt, domain }, record, () => true);
    expect([retired, present]).toEqual([["mine"], [`${checkpointPrefix(repository.id)}1`]]);
  });
});

it("keeps a checkpoint in the record that one of two first runs makes while the other opens it", async () => {
  const prefix = checkpointPrefix(repository.id);
  const stateFolder = join(folder, "state");
  const options = { stateFolder, repository, domainUuid: domain.uuid, moved: false };
  // The slower one has looked for a record, and now asks libvirt; the other one is done with that.
  const slow = await CheckpointRecord.open({
    ...options,
    found: async () => {
      await (await recordOf(repository)).add(`${prefix}1`);
      return [];
    },
  });
  expect(slow.has(`${prefix}1`)).toBe(true);
  expect((await recordOf(repository)).has(`${prefix}1`)).toBe(true);
});
