/** The end of our own job, when libvirt can't say yet that it is ours. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { BackupError, PreconditionError } from "../../../src/backup/base/errors.js";
import { claimFolder, clearFolder } from "../../../src/backup/guest/claim.js";
import { keyOf } from "../../../src/backup/guest/guest.js";
import { JobFolder } from "../../../src/backup/guest/job-folder.js";
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
  onAbort: ((onCancelled: (() => void) | undefined) => Promise<void>) | undefined;
  readonly #said: (Seen | Error)[];

  constructor(...said: (Seen | Error)[]) {
    super();
    this.#said = said;
  }

  says(seen: Seen): void {
    this.#said.splice(0, this.#said.length, seen);
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

it("a connection of a dead backup to a guest with iothreads is cut only once libvirt has cancelled its job", async () => {
  await using libvirt = new Saying();
  const repository = await Repository.openOrCreate(join(parent, "repo"), { trusted: true });
  const usual = parseDomain(DOMAIN);
  // Of a domain that is off the folder need not be lent to QEMU's user.
  const domain = {
    ...usual,
    id: undefined,
    disks: usual.disks.map((disk) => ({ ...disk, hasIothread: true })),
  };
  const guest = { libvirt, domain, repository, ssh: undefined };
  const left = JobFolder.at(parent, keyOf(guest));
  libvirt.says(jobIn(left.path));
  const sever = vi.spyOn(JobFolder.prototype, "sever").mockResolvedValue();
  const severed: number[] = [];
  libvirt.onAbort = async (onCancelled) => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    // The timers of the caller are made meanwhile.
    await Promise.resolve();
    vi.advanceTimersByTime(60_000);
    severed.push(sever.mock.calls.length);
    onCancelled?.();
    vi.advanceTimersByTime(2900);
    severed.push(sever.mock.calls.length);
    vi.advanceTimersByTime(200);
    severed.push(sever.mock.calls.length);
    vi.useRealTimers();
  };
  try {
    await claimFolder(guest, left, {});
  } finally {
    vi.useRealTimers();
    sever.mockRestore();
  }
  expect(severed).toEqual([0, 0, 1]);
});
