import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { removeDeadTrials } from "../../../src/backup/guest/dead-trials.js";
import { JobFolder } from "../../../src/backup/guest/job-folder.js";

const DEAD = { host: hostname(), pid: 2 ** 22 + 1, startedAt: "x" };
const AN_HOUR_AGO = Date.now() / 1000 - 3601;

describe("the folders that a killed process made only to try", () => {
  let parent: string;
  beforeEach(async () => {
    parent = await mkdtemp(join(tmpdir(), "nbdpull-trials-"));
  });
  afterEach(() => rm(parent, { recursive: true, force: true }));

  async function made(name: string, note?: string): Promise<string> {
    const path = join(parent, name);
    await mkdir(join(path, "qemu"), { recursive: true });
    await writeFile(join(path, "qemu", "probe.scratch.qcow2"), "");
    if (note !== undefined) await writeFile(join(path, "owner.json"), note);
    return path;
  }

  it("are removed, also those that were not finished", async () => {
    await made("nbdpull-trial-0123456789abcde", JSON.stringify(DEAD));
    await made(".nbdpull-aB3xYz", JSON.stringify(DEAD));
    // Its process was killed while it removed the folder.
    await made("nbdpull-trial-aaaaaaaaaaaaaaa");
    const unnoted = [await made(".nbdpull-qwerty"), await made(".nbdpull-torn12", '{"host":')];
    for (const path of unnoted) await utimes(path, AN_HOUR_AGO, AN_HOUR_AGO);
    await removeDeadTrials(parent);
    expect(await readdir(parent)).toEqual([]);
  });

  it("stay as long as their process lives, or may be about to write its note, and so does everything else", async () => {
    const trial = JobFolder.trial(parent);
    await trial.claim(undefined);
    expect(trial.path.length).toBe(
      JobFolder.at(parent, { repositoryId: "12345678", domainUuid: "" }).path.length,
    );
    await made("nbdpull-trial-fedcba987654321", JSON.stringify({ ...DEAD, host: "another" }));
    await made(".nbdpull-justmd");
    await made("nbdpull-1a2b3c4d-0123456789ab", JSON.stringify(DEAD));
    await made("nbdpull-trial-of-mine", JSON.stringify(DEAD));
    const before = await readdir(parent);
    await removeDeadTrials(parent);
    expect(await readdir(parent)).toEqual(before);
    expect(before).toHaveLength(5);
  });

  it("are no reason to fail where there is no such folder", async () => {
    await removeDeadTrials(join(parent, "nowhere"));
  });
});
