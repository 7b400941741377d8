import { readlinkSync } from "node:fs";
import { type FileHandle, mkdtemp, open, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { importImages } from "../../../src/backup/take/import.js";

/** What was flushed or renamed, oldest first. The real calls are made too. */
const log = vi.hoisted(() => ({ events: [] as string[] }));

function flushed(fd: number): void {
  log.events.push(`flush ${basename(readlinkSync(`/proc/self/fd/${fd}`))}`);
}

vi.mock("node:fs", async (original) => {
  const real = await original<typeof import("node:fs")>();
  const flush = (name: "fsync" | "fdatasync") => (fd: number, callback: (error: Error | null) => void) => {
    flushed(fd);
    real[name](fd, callback);
  };
  return { ...real, fsync: flush("fsync"), fdatasync: flush("fdatasync") };
});

vi.mock("node:fs/promises", async (original) => {
  const real = await original<typeof import("node:fs/promises")>();
  const rename = async (from: string, to: string): Promise<void> => {
    log.events.push(`name ${basename(to)}`);
    await real.rename(from, to);
  };
  return { ...real, rename };
});

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-flush-"));
  const image = join(folder, "disk.raw");
  await writeFile(image, Buffer.alloc(1024 ** 2, 0x11));
  // File handles of the promises API flush by a method of their own.
  await using file = await open(image);
  const handles = Object.getPrototypeOf(file) as FileHandle;
  const { sync } = handles;
  vi.spyOn(handles, "sync").mockImplementation(async function (this: FileHandle) {
    flushed(this.fd);
    await sync.call(this);
  });
});
afterEach(async () => {
  vi.restoreAllMocks();
  await rm(folder, { recursive: true });
});

it("a point gets its name only after everything in it is on stable storage", async () => {
  const { manifest } = await importImages({
    images: [{ disk: "vda", path: join(folder, "disk.raw"), format: "raw", formatAsked: false }],
    repositoryPath: join(folder, "repo"),
    domain: "web",
    needLibvirt: false,
    format: "qcow2",
    digests: "xxh64",
    sync: true,
    tool: "test",
  });
  const { events } = log;
  const named = events.indexOf(`name ${manifest.id}`);
  const before = events.slice(0, named);
  const files = await readdir(join(folder, "repo", "web", manifest.id));
  expect(files.toSorted()).toEqual(["point.json", "vda.digests", "vda.qcow2"]);
  for (const file of [...files, `.${manifest.id}.partial`]) expect(before).toContain(`flush ${file}`);
  // The folder's entries are durable only if it is flushed after the last file is there.
  expect(before.lastIndexOf(`flush .${manifest.id}.partial`)).toBeGreaterThan(
    before.indexOf("flush point.json"),
  );
  expect(events.slice(named)).toContain("flush web");
});
