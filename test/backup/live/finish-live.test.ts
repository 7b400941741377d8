import { mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { BackupError } from "../../../src/backup/base/errors.js";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import type { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import * as remote from "../../../src/backup/libvirt/rpc/procedures.js";
import { decideSwitches } from "../../../src/backup/live/doubtful-switch.js";
import { finishLive, settleDisk } from "../../../src/backup/live/finish-live.js";
import { endLeftCopies } from "../../../src/backup/live/left-copies.js";
import { mayBeOurs, proveOurs, refuseTaken } from "../../../src/backup/live/live-domain.js";
import type { LiveState } from "../../../src/backup/live/live-state.js";
import type { Repository } from "../../../src/backup/repository/repository.js";
import { qemuImg } from "../../support/qemu-nbd.js";

let path: string;
let folder: HeldFolder;
let state: LiveState;
let disk: LiveState["disks"][number];
/** The images of the running disk, the top first (empty: it is off), what it is copied into, and the next. */
let running: string[];
let mirror: string | undefined;
let next: string;
let asked: string[];
let warned: string[];

beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), "nbdpull-finish-live-"));
  folder = await HeldFolder.open(path);
  const made: LiveState["made"] = [];
  for (const name of ["vda.live.qcow2", "vda.qcow2"]) {
    await qemuImg("create", "-f", "qcow2", join(path, name), "1M");
    made.push({ name, id: `0:${(await stat(join(path, name))).ino}` });
  }
  await writeFile(join(path, "web.xml"), definition(["vda.qcow2"]));
  const whole = { file: "vda.qcow2", temporary: "t" };
  disk = { name: "vda", file: "vda.live.qcow2", whole, policies: {} };
  state = {
    ...{ format: "nbdpull-live", version: 1, phase: "ready", repository: "r", folder: "web", point: "p" },
    ...{ place: path, libvirt: "qemu:///system", disks: [disk], temporaries: [], made, xml: "web.xml" },
    ...{ domain: { name: "web", uuid: "u" }, adapted: [], salvage: false },
  };
  [running, mirror, next, asked, warned] = [["vda.live.qcow2"], undefined, "vda.live.qcow2", [], []];
});
afterEach(async () => {
  await folder.close();
  await rm(path, { recursive: true });
});

function definition(chain: readonly string[], id = "", copy = ""): string {
  const layers = chain.map((file) => `<source file='${join(path, file)}'/>`).join("<backingStore>");
  const ends = "</backingStore>".repeat(chain.length - 1);
  return `<domain${id}><devices><disk type='file'>${layers}${ends}${copy}<target dev='vda'/></disk></devices></domain>`;
}

// Only what is asked of it. No libvirt is killed, and no power is cut, just between two calls.
const libvirt = {
  withSignal: () => libvirt,
  withPatience: () => libvirt,
  hasDomain: async () => true,
  domainXml: async () => {
    const copy =
      mirror === undefined ? "" : `<mirror job='copy'><source file='${join(path, mirror)}'/></mirror>`;
    return running.length > 0 ? definition(running, " id='1'", copy) : definition([next]);
  },
  define: async (_: string, xml: string) => {
    next = /file=.[^'"]*\/([^/'"]+)['"]/.exec(xml)?.[1] ?? "";
    asked.push(`define ${next}`);
  },
  calls: {
    ask: async (call: unknown) => {
      if (call === remote.DOMAIN_GET_XML_DESC) return definition([next]);
      if (call === remote.DOMAIN_GET_STATE) return { state: running.length > 0 ? 1 : 5, reason: 0 };
      asked.push("end copy");
      mirror = undefined;
      return undefined;
    },
  },
} as unknown as Libvirt;
const finishing = {
  repository: { isInStore: false, hasPoint: async () => false } as unknown as Repository,
  ...{ domain: "web", libvirt, onEvent: ({ message }: { message: string }) => void warned.push(message) },
};
const run = new DomainRun(libvirt, { name: "web", uuid: "u" });
const settle = async (): Promise<void> =>
  await settleDisk(finishing, folder, state, { name: "vda", write: async () => void asked.push("write") });
const left = async (): Promise<string[]> =>
  (await readdir(path)).filter((name) => name.endsWith(".qcow2")).sort();

it("settles a disk that it has switched: the definition follows, and the old image goes", async () => {
  [disk.hasBegun, disk.isSwitching, running] = [true, true, ["vda.qcow2"]];
  await settle();
  expect([asked, await left()]).toEqual([["define vda.qcow2", "write"], ["vda.qcow2"]]);
});

it("removes nothing that the guest stands on, whatever somebody has made on top of it", async () => {
  // It was killed before it could note that the guest was switched over.
  [disk.hasBegun, running, next] = [true, ["snap.qcow2", "vda.qcow2"], "snap.qcow2"];
  await proveOurs(run, folder, state);
  expect(await endLeftCopies(run, folder, state)).toEqual(new Set(["vda"]));
  await settle();
  expect(disk.isSwitched).toBe(true);
  await finishLive(finishing, folder, state);
  // Somebody else has switched it, for all that is known.
  expect(await left()).toEqual(["vda.live.qcow2", "vda.qcow2"]);
  expect(warned).toEqual([
    expect.stringContaining("vda of web is not on"),
    expect.stringContaining("live.qcow2 is left"),
  ]);
  expect(await readFile(join(path, "web.xml"), "utf8")).toContain("/vda.qcow2");
});

it("removes at the end no image that a disk is on, or may be, though another is noted", async () => {
  await finishLive(finishing, folder, state);
  expect(await left()).toEqual(["vda.live.qcow2"]);
  await rename(join(path, "vda.live.qcow2"), join(path, "vda.qcow2"));
  state.made.push({ name: "vda.qcow2", id: `0:${(await stat(join(path, "vda.qcow2"))).ino}` });
  const names = [
    // Nobody says what that one is based on.
    { running: [], next: "snap.qcow2" },
    { running: ["snap.qcow2", "vda.qcow2"], next: "snap.qcow2" },
    { running: ["snap.qcow2"], next: "vda.qcow2" },
  ];
  for (const each of names) {
    ({ running, next } = each);
    await finishLive(finishing, folder, state);
    expect(await left()).toEqual(["vda.qcow2"]);
  }
});

it("takes no disk for settled whose file was replaced, or into which nothing was copied", async () => {
  [running, next] = [["vda.qcow2"], "vda.qcow2"];
  await expect(settle()).rejects.toMatchObject({
    code: "E_LIVE_STATE",
    message: expect.stringMatching(/was not copied there/),
  });
  await expect(proveOurs(run, folder, state)).rejects.toMatchObject({
    code: "E_LIVE_STATE",
    message: expect.stringContaining(".live.u.json beside point"),
  });
  [disk.hasBegun, disk.isSwitching] = [true, true];
  await rename(join(path, "vda.qcow2"), join(path, "moved.qcow2"));
  await expect(settle()).rejects.toMatchObject({
    code: "E_LIVE_STATE",
    message: expect.stringMatching(/moved, removed or replaced/),
  });
  await qemuImg("create", "-f", "qcow2", join(path, "vda.qcow2"), "1M");
  await expect(settle()).rejects.toMatchObject({ code: "E_LIVE_STATE" });
  expect([asked, await left()]).toEqual([[], ["moved.qcow2", "vda.live.qcow2", "vda.qcow2"]]);
});

it("ends a copy that was left, unless it goes into the file that was made", async () => {
  [mirror, disk.hasBegun] = ["vda.qcow2", true];
  expect(await endLeftCopies(run, folder, state)).toEqual(new Set());
  expect(asked).toEqual([]);
  await rm(join(path, "vda.qcow2"));
  await endLeftCopies(run, folder, state);
  expect(asked).toEqual(["end copy"]);
});

it("starts no guest that may have been switched over, until somebody has chosen its image", async () => {
  [disk.hasBegun, disk.isSwitching, running] = [true, true, []];
  const decide = async (): Promise<void> => await decideSwitches({ libvirt, run }, folder, state);
  const message = /vda\.live\.qcow2 \(last written 20.*vda\.qcow2 \(last written 20/;
  await expect(decide()).rejects.toMatchObject({
    code: "E_LIVE_STATE",
    message: expect.stringMatching(message),
  });
  next = "vda.qcow2";
  await decide();
  next = "vda.live.qcow2";
  expect([asked, disk.isSwitched]).toEqual([[], undefined]);

  await rename(join(path, "vda.live.qcow2"), join(path, "old"));
  await decide();
  expect([asked, disk.isSwitched]).toEqual([["define vda.qcow2"], true]);

  [disk.isSwitched, next] = [false, "vda.live.qcow2"];
  await rename(join(path, "old"), join(path, "vda.live.qcow2"));
  await rm(join(path, "vda.qcow2"));
  await decide();
  expect([asked, disk.isSwitching, disk.hasBegun]).toEqual([["define vda.qcow2"], false, false]);
});

it("touches no domain that another process made, and names what it leaves of one that can't go on", async () => {
  const taken = { code: "E_DOMAIN_EXISTS", message: expect.stringMatching(/nothing was restored$/) };
  await expect(refuseTaken(libvirt, state.domain)).rejects.toMatchObject(taken);
  const left = { state, folder: path };
  const message = expect.stringMatching(
    /remove what is left there, and, if it is there, \.live\.u\.json beside point/,
  );
  await expect(refuseTaken(libvirt, state.domain, left)).rejects.toMatchObject({ ...taken, message });
  expect(asked).toEqual([]);
  const none = { hasDomain: async () => false } as unknown as Libvirt;
  await refuseTaken(none, state.domain, left);
});

it("takes a domain for its own only if libvirt may have defined it", () => {
  const failed = (code: string, asked: readonly [mayBeDefined: boolean, isDefined: boolean]): boolean =>
    mayBeOurs(new BackupError(code, "failed"), { mayBeDefined: asked[0], isDefined: asked[1] });
  // Another process was quicker, or libvirt was never asked.
  expect(failed("E_DOMAIN_EXISTS", [false, false])).toBe(false);
  expect(failed("E_LIBVIRT_LOST", [false, false])).toBe(false);
  // It answered that it has not.
  expect(failed("E_DOMAIN_EXISTS", [true, false])).toBe(false);
  expect(failed("E_LIBVIRT_REFUSED", [true, false])).toBe(false);
  // Its answer was lost, or it has and does not start it.
  expect(failed("E_LIBVIRT_LOST", [true, false])).toBe(true);
  expect(failed("E_LIBVIRT_REFUSED", [true, true])).toBe(true);
});
