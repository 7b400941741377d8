import { chmod, mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { MountFolder } from "../../../src/backup/mount/mount-folder.js";
import { unmountPoint } from "../../../src/backup/mount/mount-point.js";

const SOCKET = ".nbdpull-mount.sock";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull mount folder-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

/** Empty files that only this user can open, as the disks' are. */
async function makeEmpty(...names: readonly string[]): Promise<void> {
  for (const name of names) await writeFile(join(folder, name), "", { mode: 0o600 });
}

/** A socket that stays, like that of a run that was killed. */
async function withSocket(work: () => Promise<void>): Promise<void> {
  const server = createServer().listen(join(folder, SOCKET));
  await new Promise((resolve) => server.once("listening", resolve));
  await work();
  await new Promise((resolve) => server.close(resolve));
}

it("takes no file of another program for one that it left, though it is empty", async () => {
  await makeEmpty("lock", "vda");
  await expect(unmountPoint(folder)).rejects.toMatchObject({ code: "E_NOT_MOUNTED" });
  await expect(MountFolder.prepare(folder)).rejects.toMatchObject({ code: "E_MOUNT_FOLDER" });
  expect((await readdir(folder)).sort()).toEqual(["lock", "vda"]);
});

it("removes what a killed run left, where its socket is, and nothing else", async () => {
  await makeEmpty("vda", ".lock", "a note");
  await writeFile(join(folder, "vdb"), "written to", { mode: 0o600 });
  await withSocket(async () => {
    await expect(MountFolder.prepare(folder)).rejects.toThrow(/it has files, such as (\.lock|a note|vdb)/);
    expect(await unmountPoint(folder)).toEqual([]);
    expect((await readdir(folder)).sort()).toEqual([".lock", "a note", "vdb"]);
  });
});

it("removes the folder of a libguestfs that was killed, with its content, but follows no link", async () => {
  const [temporary, kept] = [join(folder, ".nbdpull-guestfs"), join(folder, "vdz")];
  await mkdir(join(temporary, "libguestfsX"), { recursive: true, mode: 0o700 });
  await writeFile(join(temporary, "libguestfsX", "overlay1.qcow2"), "x");
  await symlink(folder, join(temporary, "link"));
  await writeFile(kept, "mine");
  await expect(unmountPoint(folder)).rejects.toMatchObject({ code: "E_NOT_MOUNTED" });
  await withSocket(async () => {
    await unmountPoint(folder);
    expect(await readdir(folder)).toEqual(["vdz"]);
  });
});

it("uses what a killed run left, and takes it away at its own end", async () => {
  await makeEmpty("vda", "vdb");
  await withSocket(async () => {
    const mine = await MountFolder.prepare(folder);
    await mine.fileFor("vda");
    await makeEmpty("vdz");
    await mine.clear();
    expect((await readdir(folder)).sort()).toEqual([SOCKET, "vdz"]);
  });
});

it("removes nothing where another user could have put a link meanwhile", async () => {
  await makeEmpty("vda");
  await chmod(folder, 0o777);
  await withSocket(async () => {
    const refused = unmountPoint(folder);
    await expect(refused).rejects.toMatchObject({ code: "E_MOUNT_FOLDER" });
    await expect(refused).rejects.toThrow(`because everybody can change ${folder}: `);
    expect((await readdir(folder)).sort()).toEqual([SOCKET, "vda"]);
  });
});
