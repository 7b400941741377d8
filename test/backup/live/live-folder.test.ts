import { chmod, mkdtemp, open, readdir, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { thisProcess } from "../../../src/backup/host/process-identity.js";
import { temporaryPathFor } from "../../../src/backup/host/publish.js";
import { lockLive } from "../../../src/backup/live/live-lock.js";
import { refuseChangeable } from "../../../src/backup/live/live-place.js";
import {
  flushFilled,
  identify,
  isFilled,
  proveImages,
  removeMade,
} from "../../../src/backup/live/made-files.js";
import { SerialLine, saidOn } from "../../../src/backup/live/signs-of-life.js";
import { formatNbdUri } from "../../../src/nbd/index.js";
import { qemuImg } from "../../support/qemu-nbd.js";

let path: string;
let folder: HeldFolder;

beforeAll(async () => {
  path = await mkdtemp(join(tmpdir(), "nbdpull-live-folder-"));
  folder = await HeldFolder.open(path);
});
beforeEach(async () => {
  for (const name of await readdir(path)) await rm(join(path, name));
});
afterAll(async () => {
  await folder.close();
  await rm(path, { recursive: true });
});

it("lets one process work in a folder, and takes over from one that died", async () => {
  const dead = { ...(await thisProcess()), startedAt: "another boot" };
  const owner = ".nbdpull-live.00000000-0000-4000-8000-000000000000.owner";
  await writeFile(join(path, owner), JSON.stringify(dead));
  const half = `..nbdpull-live.json.00000000-0000-4000-8000-000000000000`;
  await writeFile(join(path, half), "{");
  await utimes(join(path, half), 0, 0);
  const lock = await lockLive(folder);
  expect(await readdir(path)).toHaveLength(1);
  await expect(lockLive(folder)).rejects.toMatchObject({ code: "E_ADDRESS_IN_USE" });
  await lock[Symbol.asyncDispose]();
  expect(await readdir(path)).toEqual([]);
  const both = await Promise.allSettled([lockLive(folder), lockLive(folder)]);
  expect(both.filter(({ status }) => status === "fulfilled").length).toBeLessThan(2);
});

it("removes what it has made, and not what others have put in its place", async () => {
  const finals = ["kept", "gone"].map((name) => ({
    temporary: temporaryPathFor(join(path, name)),
    final: join(path, name),
  }));
  for (const { temporary } of finals) await writeFile(temporary, "ours");
  const made = await identify(folder, finals);
  await folder.rename(finals[1]?.temporary.slice(path.length + 1) ?? "", "gone");
  await writeFile(join(path, "kept"), "another's");
  await writeFile(join(path, ".kept.0000.partial"), "another's");
  const temporaries = finals.map(({ temporary }) => temporary.slice(path.length + 1));
  await removeMade(folder, { made, temporaries });
  expect((await readdir(path)).sort()).toEqual([".kept.0000.partial", "kept"]);
});

it("tells an image that is based on nothing from others", async () => {
  await qemuImg("create", "-f", "qcow2", join(path, "alone"), "1M");
  await qemuImg("create", "-f", "qcow2", "-b", join(path, "alone"), "-F", "qcow2", join(path, "based"));
  await writeFile(join(path, "empty"), "");
  expect(
    await Promise.all(["alone", "based", "empty", "none"].map((name) => isFilled(folder, name))),
  ).toEqual([true, false, false, false]);
  await flushFilled(folder, "alone");
  await expect(flushFilled(folder, "based")).rejects.toMatchObject({ code: "E_LIVE_STATE" });
});

it("refuses a folder that others can change", async () => {
  await refuseChangeable(folder.realPath);
  await chmod(path, 0o777);
  await expect(refuseChangeable(folder.realPath)).rejects.toMatchObject({ code: "E_LIVE_PLACE" });
  await chmod(path, 0o1777);
  await refuseChangeable(folder.realPath);
  await chmod(path, 0o700);
});

it("follows a serial line of any length, each byte once, also over the end of a piece and a new file", async () => {
  const line = new SerialLine({ folder, serialLog: "serial.log" });
  const says = async (word: string): Promise<boolean> => {
    let isSaid = false;
    let longest = 0;
    await line.follow((text) => {
      isSaid ||= text.includes(word);
      longest = Math.max(longest, text.length);
    });
    expect(longest).toBeLessThanOrEqual(128 * 1024);
    return isSaid;
  };
  expect(await says("login:")).toBe(false);
  await using file = await open(join(path, "serial.log"), "w");
  const most = 65 * 1024 * 1024;
  await file.write("log", most);
  expect(await says("login:")).toBe(false);
  await file.write("in: ", most + 3);
  expect(await says("login:")).toBe(true);
  expect((await saidOn(folder, "serial.log")).endsWith("login: ")).toBe(true);
  await file.truncate(0);
  await file.write("again", 0);
  expect(await says("again")).toBe(true);
});

it("goes on only with the images that it made, and that are based on its own socket or on nothing", async () => {
  const socket = join(path, ".nbdpull-live.sock");
  const image = join(path, "vda.qcow2");
  const made = async (...args: readonly string[]): Promise<{ name: string; id: string }[]> => {
    await rm(image, { force: true });
    await qemuImg("create", "-f", "qcow2", ...args, image, "1M");
    const { dev, ino } = await stat(image);
    return [{ name: "vda.qcow2", id: `${dev}:${ino}` }];
  };
  const state = {
    disks: [{ name: "vda", file: "vda.qcow2", policies: {} }],
    domain: { name: "web", uuid: "00000000-0000-4000-8000-000000000000" },
  };
  const proving = (ids: { name: string; id: string }[]) =>
    proveImages(folder, { ...state, made: ids }, socket);
  const refused = (why: RegExp) => ({ code: "E_LIVE_STATE", message: expect.stringMatching(why) });
  const on = (backing: string): string[] => ["-u", "-F", "raw", "-b", backing];

  const whole = await made();
  await proving(whole);
  // The host was restarted: the same file is on another device.
  await proving(whole.map(({ name, id }) => ({ name, id: `1${id}` })));
  // Versions before this one noted nothing.
  await proving([]);
  await writeFile(join(path, "other"), "");
  const { ino } = await stat(join(path, "other"));
  await expect(proving([{ name: "vda.qcow2", id: `1:${ino}` }])).rejects.toMatchObject(
    refused(/another file/),
  );
  const served = formatNbdUri({ transport: { kind: "unix", path: socket }, exportName: "vda" });
  await proving(await made(...on(served)));
  // Who can write to the image, as QEMU's user can, could have libvirt open any file for it.
  const any = `json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"},"x":"${socket}"}`;
  await expect(proving(await made(...on(any)))).rejects.toMatchObject(refused(/is based on json:/));
  const probed = await made("-u", "-F", "qcow2", "-b", served);
  await expect(proving(probed)).rejects.toMatchObject(refused(/takes its base for qcow2/));
  const elsewhere = await made("-o", `data_file=${join(path, "data.raw")}`);
  await expect(proving(elsewhere)).rejects.toMatchObject(refused(/external data file/));
  await expect(proving(await made(...on("nbd+unix:///vda?socket=/tmp/other.sock")))).rejects.toMatchObject(
    refused(/is based on nbd\+unix.*other\.sock/),
  );
  // A restored image is based on nothing. One that it has not made is none of its own until the guest is on
  // it.
  const based = await made(...on(served));
  const disk = {
    name: "vda",
    file: "vda.live.qcow2",
    whole: { file: "vda.qcow2", temporary: "t" },
    policies: {},
  };
  const provingWhole = (ids: { name: string; id: string }[], isSwitched: boolean) =>
    proveImages(folder, { ...state, disks: [{ ...disk, isSwitched }], made: ids }, socket);
  await expect(provingWhole(based, true)).rejects.toMatchObject(refused(/is based on nbd\+unix/));
  await provingWhole(await made(), true);
  await qemuImg("create", "-f", "qcow2", ...on(served), join(path, "vda.live.qcow2"), "1M");
  await writeFile(image, "no image");
  await provingWhole([], false);
  await expect(proving([])).rejects.toMatchObject(refused(/no qcow2 image/));
});
