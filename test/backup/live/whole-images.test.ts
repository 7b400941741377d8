import { mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { BackupError, hasCode } from "../../../src/backup/base/errors.js";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import type { LiveState } from "../../../src/backup/live/live-state.js";
import { WholeImages } from "../../../src/backup/live/whole-images.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import type { Repository } from "../../../src/backup/repository/repository.js";
import { type RestoredDisk, restore } from "../../../src/backup/restore/restore.js";

vi.mock("../../../src/backup/restore/restore.js", () => ({ restore: vi.fn() }));

let path: string;
let folder: HeldFolder;
let disk: LiveState["disks"][number];
let made: LiveState["made"];
/** What was written of the disk, and what was told. */
let written: string[];
let told: string[];
let restores: number;
/** How the next restores fail. */
let failures: Error[];
/** Whether all that is restored is compared with digests. */
let isChecked: boolean;

beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), "nbdpull-whole-images-"));
  folder = await HeldFolder.open(path);
  const whole = { file: "vda.qcow2", temporary: ".vda.qcow2.0000.partial" };
  disk = { name: "vda", file: "vda.live.qcow2", whole, policies: {} };
  [made, written, told, restores, failures, isChecked] = [[], [], [], 0, [], true];
});
afterEach(async () => {
  await folder.close();
  await rm(path, { recursive: true });
});

function begin(): { readonly images: WholeImages; readonly ended: () => Promise<void> } {
  // Only what is asked of it: the restore itself is another's.
  const repository = {
    reading: async (_: string, work: () => Promise<void>) => {
      const failure = failures.shift();
      if (failure && !hasCode(failure, "E_PRUNED_MEANWHILE")) throw failure;
      await work();
      if (failure) throw failure;
    },
  } as unknown as Repository;
  vi.mocked(restore).mockImplementation(async () => {
    await writeFile(join(path, ".vda.qcow2.0000.partial"), `restored ${restores++}`);
    return [{ checked: isChecked } as RestoredDisk];
  });
  const write = async (): Promise<void> => void written.push(JSON.stringify(disk));
  let wake = (): void => undefined;
  const images = new WholeImages({
    ...{ repository, domain: "web", point: {} as Manifest, folder, force: false, rate: undefined, write },
    ...{ state: { disks: [disk], made, place: path }, standing: new Set(), signal: undefined },
    waitsMs: [1, 1],
    noteMade: async (more) => {
      made.push(...more);
      await write();
    },
    onProgress: () => undefined,
    onFailure: (message) => void told.push(message),
  });
  images.watch(() => wake());
  const ended = async (): Promise<void> => {
    if (images.of("vda")?.state !== "making") return;
    await new Promise<void>((resolve) => {
      wake = resolve;
    });
  };
  return { images, ended };
}

const content = async (): Promise<string> => await readFile(join(path, "vda.qcow2"), "utf8");

it("notes that a copy begins, and restores again what a copy had begun into, also after it was killed", async () => {
  {
    await using images = begin().images;
    await expect.poll(() => images.of("vda")?.state).toBe("made");
    await images.prepareCopy("vda");
    expect(images.of("vda")?.state).toBe("made");
    expect(written.at(-1)).toContain('"hasBegun":true');
  }
  const { images, ended } = begin();
  await using _ = images;
  await ended();
  // Not before the guest runs on its own image for sure.
  expect([images.of("vda")?.state, await content()]).toEqual(["made", "restored 0"]);
  await images.prepareCopy("vda");
  expect(images.of("vda")?.state).toBe("making");
  await ended();
  expect([images.of("vda")?.state, await content(), disk.hasBegun]).toEqual(["made", "restored 1", false]);
  expect(made.at(-1)?.id).toMatch(new RegExp(`:${(await stat(join(path, "vda.qcow2"))).ino}$`));
  expect(told).toEqual([]);
});

it("has nothing copied into another file, nor a guest switched to it, and leaves it", async () => {
  const { images, ended } = begin();
  await using _ = images;
  await ended();
  expect(await images.maySwitch("vda")).toBe(false);
  await images.prepareCopy("vda");
  expect(await images.maySwitch("vda")).toBe(true);
  expect(written.at(-1)).toContain('"isSwitching":true');
  await rename(join(path, "vda.qcow2"), join(path, "moved"));
  expect(await images.maySwitch("vda")).toBe(false);
  await writeFile(join(path, "vda.qcow2"), "another's");
  expect(await images.maySwitch("vda")).toBe(false);
  await images.prepareCopy("vda");
  expect(images.of("vda")?.state).toBe("failed");
  expect(told).toEqual([expect.stringContaining("moved, removed or replaced")]);
  await images.giveUp("vda");
  expect(await content()).toBe("another's");
});

it("removes the image when QEMU fills the disk, and makes none again, unless the guest may be on it", async () => {
  {
    const { images, ended } = begin();
    await using _ = images;
    await ended();
    await images.giveUp("vda");
    expect([await readdir(path), disk.isLeftToQemu]).toEqual([[], true]);
  }
  expect(begin().images.of("vda")).toBeUndefined();
  expect(restores).toBe(1);

  disk.isLeftToQemu = false;
  const { images, ended } = begin();
  await using _ = images;
  await ended();
  disk.isSwitching = true;
  await images.prepareCopy("vda");
  expect([images.of("vda")?.state, await content()]).toEqual(["failed", "restored 1"]);
  expect(told).toEqual([expect.stringContaining("so that file stays")]);
});

it("begins again when the store was away for long, and leaves the disk to QEMU when it stays away", async () => {
  const away = (): Error => new BackupError("E_S3_UNREACHABLE", "the store cannot be reached");
  failures = [away(), away()];
  {
    const { images, ended } = begin();
    await using _ = images;
    await ended();
    expect([images.of("vda")?.state, await content()]).toEqual(["made", "restored 0"]);
    expect(told).toEqual(Array(2).fill(expect.stringContaining("begun again")));
  }
  await rm(join(path, "vda.qcow2"));
  failures = [away(), away(), away()];
  const { images, ended } = begin();
  await using _ = images;
  await ended();
  expect(images.of("vda")?.state).toBe("failed");
  expect(told.at(-1)).toContain("QEMU fills vda.live.qcow2 instead");
});

it("keeps an image that is proven when other points were pruned meanwhile, and makes any other again", async () => {
  const pruned = (): Error => new BackupError("E_PRUNED_MEANWHILE", "points were pruned");
  failures = [pruned()];
  {
    const { images, ended } = begin();
    await using _ = images;
    await ended();
    expect([images.of("vda")?.state, await content(), told]).toEqual(["made", "restored 0", []]);
  }
  await rm(join(path, "vda.qcow2"));
  // Of what has no digests nobody knows.
  [failures, isChecked] = [[pruned()], false];
  const { images, ended } = begin();
  await using _ = images;
  await ended();
  expect([images.of("vda")?.state, await content()]).toEqual(["made", "restored 2"]);
  expect(told).toEqual([expect.stringContaining("begun again")]);
});
