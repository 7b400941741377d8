import { cp, readdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { NBDPULL } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

/** More than the main thread digests by itself. */
const DIGESTED_BY_THREADS = 12 * MiB;

/**
 * What pulls is loaded while libvirt begins the job. By then the program's files may be gone, or those of
 * another version.
 */
await describeWithLibvirt("a backup that can't load a file of its own once its job has begun", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start();
    await guest.lab.write("vda", 0, 2 * DIGESTED_BY_THREADS, 0x11);
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  it.each(["take-point-", "writer-", "journal-file-", "digest-threads-", "digest-worker"])(
    "ends the job without its files %s, leaves nothing, and the next backup has the same base",
    async (missing) => {
      const good = await guest.take();
      await guest.lab.write("vda", 0, DIGESTED_BY_THREADS, 0x12);
      const checkpoints = await guest.checkpoints();
      await using program = await programWithout(missing, guest.folder);
      const ran = await execa(process.execPath, [program.path, ...guest.arguments()], { reject: false });
      expect({ code: ran.exitCode, stderr: ran.stderr }).toEqual({
        code: 1,
        stderr: expect.stringMatching(new RegExp(`MODULE_NOT_FOUND: .*${missing}`)),
      });
      await guest.expectNothingLeft();
      expect(await guest.checkpoints()).toEqual(checkpoints);
      expect((await guest.points()).at(-1)?.id).toBe(good.id);
      const next = await guest.take();
      expect(next.disks[0]).toMatchObject({ parent: good.id, dirtyBytes: DIGESTED_BY_THREADS });
    },
    480_000,
  );
});

/** A copy of the built program without the files that are called so. */
async function programWithout(
  missing: string,
  folder: string,
): Promise<AsyncDisposable & { readonly path: string }> {
  const root = join(folder, `without-${missing}`);
  const bin = join(root, "dist", "bin");
  const built = dirname(NBDPULL);
  await cp(built, bin, { recursive: true });
  // It says where the threads' scripts are.
  await cp(join(built, "..", "..", "package.json"), join(root, "package.json"));
  const files = (await readdir(bin)).filter((name) => name.startsWith(missing));
  expect(files).not.toEqual([]);
  for (const name of files) await rm(join(bin, name));
  return {
    path: join(bin, "nbdpull.js"),
    [Symbol.asyncDispose]: () => rm(root, { recursive: true }),
  };
}
