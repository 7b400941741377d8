/** The end of our own job, when libvirt can't say yet that it is ours. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { BackupError, PreconditionError } from "../../../src/backup/base/errors.js";
import { claimFolder, clearFolder, findLeft, refuseAnyJob } from "../../../src/backup/guest/claim.js";
import { type Guest, keyOf } from "../../../src/backup/guest/guest.js";
import { JobFolder } from "../../../src/backup/guest/job-folder.js";
import type { CutOptions } from "../../../src/backup/guest/local-job-folder.js";
import { parseDomain } from "../../../src/backup/libvirt/documents/domain-xml.js";
import { JobEnd } from "../../../src/backup/libvirt/job-end.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { Repository } from "../../../src/backup/repository/repository.js";
import { DOMAIN } from "../libvirt/dumps.js";

type Seen = Awaited<ReturnType<Libvirt["runningJob"]>>;

const NONE: Seen = { info: { active: false, type: "none" }, backupXml: undefined };
const BEGINNING: Seen = {
  info: { active: true, type: "unbounded", operation: "backup" },
  backupXml: undefined,
};
const jobIn = (folder: string): Seen => ({
  ...BEGINNING,
  backupXml: `<domainbackup mode='pull'><server transport='unix' socket='${folder}/qemu/nbd.sock'/><disks>
    <disk name='vda' backup='yes' type='file' backupmode='full' exportname='vda' index='5'>
      <driver type='qcow2'/><scratch file='${folder}/qemu/vda.scratch.qcow2'/>
    </disk></disks></domainbackup>`,
});

/** Says one thing after the other of the job that runs, and the last of them for ever. */
class Saying extends Libvirt {
  aborts = 0;
  onAbort: ((onCancelled: ((doubted: AbortSignal) => void) | undefined) => Promise<void>) | undefined;
  readonly #said: (Seen | Error)[];

  constructor(...said: (Seen | Error)[]) {
    super();
    this.#said = said;
  }

  says(...said: (Seen | Error)[]): void {
    this.#said.splice(0, this.#said.length, ...said);
  }

  override withPatience(): Saying {
    return this;
  }

  override async runningJob(): Promise<Seen> {
    const seen = this.#said.length > 1 ? this.#said.shift() : this.#said[0];
    if (seen === undefined || seen instanceof Error) throw seen ?? new Error("nothing is scripted");
    return seen;
  }

  override async abortJob(...[, options]: Parameters<Libvirt["abortJob"]>): Promise<void> {
    await this.onAbort?.(options?.onCancelled);
    const { backupXml = "" } = await this.runningJob();
    if (options?.isOurs?.(backupXml)) this.aborts += 1;
  }
}

const LINE = "4711 99 0f2e4c1a-0000-4000-8000-000000000000";

let parent: string;
let folder: JobFolder;
beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), "nbdpull-claim-"));
  const key = { repositoryId: "8c2d5f0e-3f0b-4d5c-9a55-4a1c0f0f6a10", domainUuid: parseDomain(DOMAIN).uuid };
  folder = JobFolder.at(parent, key);
});
afterEach(() => rm(parent, { recursive: true }));

const warnings: string[] = [];

async function aborted(...said: (Seen | Error)[]): Promise<number> {
  await using libvirt = new Saying(...said);
  const repository = await Repository.openOrCreate(join(parent, "repo"), { trusted: true });
  warnings.length = 0;
  const guest = { libvirt, domain: parseDomain(DOMAIN), repository, ssh: undefined };
  await clearFolder(guest, folder, { onWarning: (message) => warnings.push(message) });
  return libvirt.aborts;
}

it("a job that is just beginning is waited for, and ended", async () => {
  expect(await aborted(BEGINNING, BEGINNING, jobIn(folder.path))).toBe(1);
});

it("a job is ended once libvirt is no longer too busy to tell of it, or silent", async () => {
  const busy = new PreconditionError("E_DOMAIN_BUSY", "busy");
  const silent = new BackupError("E_LIBVIRT_TIMEOUT", "no answer");
  expect(await aborted(busy, silent, busy, jobIn(folder.path))).toBe(1);
  expect(warnings).toEqual([]);
});

it("a libvirt that is busy for long is told of, once", async () => {
  const busy = new PreconditionError("E_DOMAIN_BUSY", "busy");
  // Each look at the clock is six seconds later.
  let looks = 0;
  const now = performance.now.bind(performance);
  const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + 6_000 * looks++);
  try {
    expect(await aborted(busy, busy, jobIn(folder.path))).toBe(1);
  } finally {
    clock.mockRestore();
  }
  const { name } = parseDomain(DOMAIN);
  expect(warnings).toEqual([
    `libvirt is busy with ${name}, or away: its backup job is ended as soon as it answers`,
  ]);
});

it("a backup job of which libvirt never tells more is not left by its clients as if there were none", async () => {
  // Ten minutes of waiting.
  const wait = vi.spyOn(JobEnd.prototype, "wait").mockResolvedValueOnce(true).mockResolvedValue(false);
  const removed = vi.spyOn(JobFolder.prototype, "remove");
  try {
    await expect(aborted(BEGINNING)).rejects.toMatchObject({ code: "E_JOB_STUCK" });
    expect(removed).not.toHaveBeenCalled();
  } finally {
    wait.mockRestore();
    removed.mockRestore();
  }
});

it("a beginning that comes to nothing, and a job of another folder, are left alone", async () => {
  expect(await aborted(BEGINNING, NONE)).toBe(0);
  expect(await aborted(BEGINNING, jobIn("/elsewhere"))).toBe(0);
});

it("a job of a killed backup that just begins is waited for, and ended, before anything is removed or begun", async () => {
  const away = await mkdtemp(join(tmpdir(), "nbdpull-claim-"));
  try {
    // Only the description tells where it works.
    for (const place of [parent, away]) {
      await using libvirt = new Saying();
      const guest = await fragileGuest(libvirt);
      const here = JobFolder.at(parent, keyOf(guest));
      libvirt.says(BEGINNING, BEGINNING, BEGINNING, jobIn(JobFolder.at(place, keyOf(guest)).path));
      const removed: number[] = [];
      const remove = vi.spyOn(JobFolder.prototype, "remove").mockImplementation(async () => {
        removed.push(libvirt.aborts);
      });
      try {
        await claimFolder(guest, here, {});
      } finally {
        remove.mockRestore();
      }
      await here.remove();
      expect([libvirt.aborts, removed.at(-1)]).toEqual([1, 1]);
    }
  } finally {
    await rm(away, { recursive: true });
  }
});

it.each([LINE, undefined])(
  "a job of a guest with iothreads is gone on with only without an old line: %s",
  async (old) => {
    const line = vi.spyOn(JobFolder.prototype, "line").mockResolvedValue(old);
    try {
      await using libvirt = new Saying();
      const guest = await fragileGuest(libvirt);
      const here = JobFolder.at(parent, keyOf(guest));
      await here.claim(undefined);
      await here.leave();
      libvirt.says(jobIn(here.path));
      const goOn = vi.fn(async () => "gone on with");
      const { left } = await claimFolder(guest, here, { goOn });
      expect([left, libvirt.aborts]).toEqual(old ? [undefined, 1] : ["gone on with", 0]);
      expect(goOn).toHaveBeenCalledTimes(old ? 0 : 1);
    } finally {
      line.mockRestore();
    }
  },
);

it("a job of a guest with iothreads is gone on with once the line of a process that was killed just now is gone", async () => {
  const line = vi.spyOn(JobFolder.prototype, "line").mockResolvedValueOnce(LINE).mockResolvedValue(undefined);
  try {
    await using libvirt = new Saying();
    const guest = await fragileGuest(libvirt);
    const here = JobFolder.at(parent, keyOf(guest));
    await here.claim(undefined);
    await here.leave();
    libvirt.says(jobIn(here.path));
    const onWarning = vi.fn();
    const { left } = await claimFolder(guest, here, { goOn: async () => "gone on with", onWarning });
    expect([left, libvirt.aborts]).toEqual(["gone on with", 0]);
    expect(onWarning).not.toHaveBeenCalled();
  } finally {
    line.mockRestore();
  }
});

it("another program's job that begins while the host is asked for a dead line is not ended", async () => {
  const line = vi.spyOn(JobFolder.prototype, "line");
  try {
    await using libvirt = new Saying();
    const guest = await fragileGuest(libvirt);
    const here = JobFolder.at(parent, keyOf(guest));
    libvirt.says(jobIn(here.path));
    line.mockImplementation(async () => {
      libvirt.says(jobIn("/elsewhere"));
      return LINE;
    });
    const abort = vi.spyOn(libvirt, "abortJob");
    await claimFolder(guest, here, {});
    expect(abort).not.toHaveBeenCalled();
    await here.remove();
  } finally {
    line.mockRestore();
  }
});

it("where libvirt is held by QEMU's events, the line that a killed backup left is named, and not cut", async () => {
  const held = new PreconditionError("E_DOMAIN_BUSY", "busy", {
    details: { libvirt: "cannot acquire state change lock (held by monitor=qemu-event)" },
  });
  const line = vi.spyOn(JobFolder.prototype, "line").mockResolvedValue(LINE);
  const sever = vi.spyOn(JobFolder.prototype, "sever");
  const advice = /^busy\. If the guest stands still, .* end process 4711 on the hypervisor/;
  try {
    await using libvirt = new Saying(held);
    const guest = await fragileGuest(libvirt);
    const here = JobFolder.at(parent, keyOf(guest));
    await expect(findLeft(guest, here)).rejects.toThrow(advice);
    // Nor once its job was found.
    libvirt.says(jobIn(here.path));
    libvirt.onAbort = () => Promise.reject(held);
    await expect(claimFolder(guest, here, {})).rejects.toThrow(advice);
    libvirt.says(new PreconditionError("E_DOMAIN_BUSY", "another"));
    await expect(findLeft(guest, here)).rejects.toThrow(/^another$/);
    libvirt.says(held);
    line.mockResolvedValue(undefined);
    await expect(findLeft(guest, here)).rejects.toThrow(/^busy$/);
    expect(sever).not.toHaveBeenCalled();
  } finally {
    sever.mockRestore();
    line.mockRestore();
  }
});

it("a job that begins or ends, of which libvirt has no description, is some job", async () => {
  await using libvirt = new Saying(BEGINNING);
  await expect(refuseAnyJob({ libvirt, domain: parseDomain(DOMAIN) })).rejects.toThrow(
    /^a backup job begins or ends on /,
  );
});

/** A guest with iothreads, off: so its folder need not be lent to QEMU's user. */
async function fragileGuest(libvirt: Libvirt): Promise<Guest> {
  const repository = await Repository.openOrCreate(join(parent, "repo"), { trusted: true });
  const usual = parseDomain(DOMAIN);
  const disks = usual.disks.map((disk) => ({ ...disk, hasIothread: true }));
  return { libvirt, domain: { ...usual, id: undefined, disks }, repository, ssh: undefined };
}

/** What becomes of the line of a dead backup while `during` has libvirt end its job. Timers pass by hand. */
async function clearingLeft(
  during: (told: (doubted: AbortSignal) => void, pass: (ms: number) => Promise<void>) => Promise<void>,
  cut: (options: CutOptions | undefined) => Promise<void> = async () => undefined,
): Promise<{ readonly cuts: readonly CutOptions[]; readonly warned: readonly string[] }> {
  await using libvirt = new Saying();
  const guest = await fragileGuest(libvirt);
  const left = JobFolder.at(parent, keyOf(guest));
  libvirt.says(jobIn(left.path));
  const cuts: CutOptions[] = [];
  const warned: string[] = [];
  const line = vi.spyOn(JobFolder.prototype, "line").mockResolvedValue(LINE);
  const sever = vi.spyOn(JobFolder.prototype, "sever").mockImplementation(async (options) => {
    // Those without are made once the job has ended.
    if (options) cuts.push(options);
    if (options) await cut(options);
  });
  libvirt.onAbort = async (onCancelled) => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    await during(
      (doubted) => onCancelled?.(doubted),
      async (ms) => void (await vi.advanceTimersByTimeAsync(ms)),
    );
    vi.useRealTimers();
  };
  try {
    await claimFolder(guest, left, { onWarning: (message) => warned.push(message) });
  } finally {
    vi.useRealTimers();
    sever.mockRestore();
    line.mockRestore();
  }
  return { cuts, warned };
}

const never = new AbortController().signal;

it("a connection of a dead backup to a guest with iothreads is cut only once libvirt has cancelled its job", async () => {
  const seen: number[] = [];
  const cut = vi.fn(async () => undefined);
  const { cuts } = await clearingLeft(async (told, pass) => {
    await pass(60_000);
    seen.push(cut.mock.calls.length);
    told(never);
    await pass(2900);
    seen.push(cut.mock.calls.length);
    await pass(200);
    seen.push(cut.mock.calls.length);
    await pass(60_000);
  }, cut);
  expect(seen).toEqual([0, 0, 1]);
  expect(cuts.map(({ line }) => line)).toEqual([LINE]);
});

it("nor is it cut after libvirt has shown that it did not take the cancelling, though it was told before", async () => {
  const doubt = new AbortController();
  const cut = vi.fn(async () => undefined);
  await clearingLeft(async (told, pass) => {
    told(doubt.signal);
    await pass(2900);
    doubt.abort();
    await pass(60_000);
  }, cut);
  expect(cut).not.toHaveBeenCalled();
});

it("a cutting that is under way when the job ends is ended, and waited for, before anything else is done", async () => {
  let isOver = false;
  let left: boolean | undefined;
  const claim = vi.spyOn(JobFolder.prototype, "claim").mockImplementation(async () => {
    left = isOver;
  });
  // A login that is slow.
  const cut = async (options: CutOptions | undefined): Promise<void> => {
    await new Promise((resolve) => options?.signal?.addEventListener("abort", resolve, { once: true }));
    await sleep(500);
    isOver = true;
    throw options?.signal?.reason;
  };
  try {
    const { cuts, warned } = await clearingLeft(async (told, pass) => {
      told(never);
      await pass(3200);
    }, cut);
    expect([cuts.length, left, warned]).toEqual([1, true, []]);
  } finally {
    claim.mockRestore();
  }
});

it("a cutting that fails is told once, and tried again until it succeeds, or the job has ended", async () => {
  let tries = 0;
  const cut = async (): Promise<void> => {
    tries += 1;
    if (tries < 3) throw new BackupError("E_SSH", "no route");
  };
  const seen: number[] = [];
  const { warned } = await clearingLeft(async (told, pass) => {
    told(never);
    for (const ms of [3100, 10_000, 10_000, 10_000]) {
      await pass(ms);
      seen.push(tries);
    }
  }, cut);
  expect(seen).toEqual([1, 2, 3, 3]);
  expect(warned).toEqual([
    "the connection that a killed backup left on the hypervisor could not be cut (no route): it is tried again. " +
      "The guest may stand still until process 4711 there, which holds it, is ended",
  ]);
});
