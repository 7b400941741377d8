/** Restores over what exists already: NBD exports of real servers, and block devices. */

import { randomFillSync } from "node:crypto";
import { constants, existsSync } from "node:fs";
import { mkdir, open, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { listensOn, makeFolder, startNbdkit, startQemu } from "../nbd/servers.js";
import { attachLoop, describeWithLoop } from "../support/loop-device.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { CLUSTER, SIZE, withThreePoints } from "../support/three-points.js";
import { describeWith, findTool } from "../support/tools.js";

/** Larger than the disk, and not a multiple of a large block. */
const TARGET = SIZE + 5 * CLUSTER + 512;

const chain = withThreePoints();
const repo = (): string => chain().repository.path;
const idAt = (index: number): string => chain().points.at(index)?.id ?? "none";
const garbage = (): Buffer => randomFillSync(Buffer.alloc(TARGET));

async function contentOf(id: string): Promise<Buffer> {
  return Buffer.from((await chain().contents.get(id)?.read(0, SIZE)) ?? []);
}

/** Expects the point, followed by what was there before. */
async function expectRestored(found: Buffer, before: Buffer, id = idAt(-1)): Promise<void> {
  expect(found.length).toBe(before.length);
  expect(found.subarray(0, SIZE).equals(await contentOf(id))).toBe(true);
  expect(found.subarray(SIZE).equals(before.subarray(SIZE))).toBe(true);
}

function restoreTo(target: string, ...args: readonly string[]): Promise<Ran> {
  return nbdpull("restore", repo(), "--disk", "vda", "--to", target, "--force", "--json", ...args);
}

/** Gives the newest point a definition. */
async function defineGuest(): Promise<void> {
  const domain = `<domain type='kvm'><name>guest</name><uuid>11111111-2222-3333-4444-555555555555</uuid><devices><disk type='file'><source file='/old'/><target dev='vda'/></disk></devices></domain>`;
  await writeFile(join(chain().repository.pointFolder(MemoryChain.domain, idAt(2)), "domain.xml"), domain);
}

describeWith(["nbdkit", "qemu-nbd"], "a restore to an export", () => {
  it.each([
    ["nbdkit", []],
    ["nbdkit without WRITE_ZEROES", ["--filter=nozero"]],
    ["nbdkit without WRITE_ZEROES and without extents", ["--filter=nozero", "--filter=noextents"]],
    [
      "nbdkit with blocks of 4 KiB and no more than 64 KiB",
      [
        "--filter=blocksize-policy",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
      ],
    ],
    [
      "nbdkit with blocks of 4 KiB, without WRITE_ZEROES",
      [
        "--filter=blocksize-policy",
        "--filter=nozero",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
      ],
    ],
    ["nbdkit over one connection at a time", ["--filter=noparallel", "serialize=connections"]],
  ])("leaves exactly the point on a target full of garbage: %s", async (_, options) => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const before = garbage();
    await writeFile(image, before);
    const filters = options.filter((option) => option.startsWith("--"));
    const parameters = options.filter((option) => !option.startsWith("--"));
    await using server = await startNbdkit(folder, ...filters, "file", image, ...parameters);
    const ids = [idAt(-1), idAt(1), idAt(0)];
    // Over garbage, then over another point. Where servers differ only in capabilities, two points are
    // enough.
    for (const id of options.length === 0 ? ids : ids.filter((other) => other !== idAt(1))) {
      const ran = await restoreTo(server.uri, "--at", id);
      expect([ran.code, ran.stderr]).toEqual([
        0,
        `${server.uri} is larger: its last ${TARGET - SIZE} bytes stay as they were`,
      ]);
      expect(ran.json()).toMatchObject({
        point: id,
        disks: [
          {
            disk: "vda",
            path: server.uri,
            format: "raw",
            virtualSize: SIZE,
            targetSize: TARGET,
            checked: true,
            proven: false,
          },
        ],
      });
      await expectRestored(await readFile(image), before, id);
    }
  });

  it("leaves exactly the point in qemu-nbd's image, over several connections", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const before = randomFillSync(Buffer.alloc(TARGET));
    await writeFile(image, before);
    await using server = await startQemu(folder, "-f", "raw", "--discard=unmap", image);
    expect((await restoreTo(server.uri, "--connections", "4")).code).toBe(0);
    await expectRestored(await readFile(image), before);
  });

  it("sends zeroes and a flush, and no flush with --no-fsync", async () => {
    await using folder = await makeFolder();
    for (const [args, flushed] of [
      [[], true],
      [["--no-fsync"], false],
    ] as const) {
      const log = join(folder.path, `log-${flushed}`);
      await using server = await startNbdkit(
        folder,
        "--filter=log",
        "memory",
        String(SIZE),
        `logfile=${log}`,
      );
      expect((await restoreTo(server.uri, ...args)).code).toBe(0);
      const requests = await readFile(log, "utf8");
      expect([requests.includes(" Flush "), requests.includes(" Zero ")]).toEqual([flushed, true]);
      expect(requests).not.toContain(" Trim ");
    }
  });

  it("leaves holes where nothing needs zeroing, even if the server can't zero", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const file = await open(image, "w");
    await file.truncate(SIZE);
    await file.close();
    await using server = await startNbdkit(folder, "--filter=nozero", "file", image);
    expect((await restoreTo(server.uri)).code).toBe(0);
    await expectRestored(await readFile(image), Buffer.alloc(SIZE));
    expect((await stat(image)).blocks * 512).toBeLessThan(45 * CLUSTER);
  });

  it("is refused before it writes anything", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "small");
    const before = randomFillSync(Buffer.alloc(SIZE - 512));
    await writeFile(image, before);
    await using small = await startNbdkit(folder, "file", image);
    await using readOnly = await startNbdkit(folder, "--readonly", "memory", String(SIZE));
    // The last bytes are no whole block, so nothing can be written there.
    const blocks = ["memory", String(SIZE), "blocksize-minimum=4096", "blocksize-error-policy=error"];
    await using ragged = await startNbdkit(folder, "--filter=blocksize-policy", ...blocks);
    await using named = await startQemu(folder, "-f", "raw", "-x", "vda", image);
    const to = ["restore", repo(), "--json", "--to"];
    const refused: [string[], number, string, RegExp][] = [
      [[...to, small.uri, "--disk", "vda", "--force"], 4, "E_TARGET_TOO_SMALL", /nothing was written/],
      [[...to, ragged.uri, "--disk", "vda", "--force"], 4, "E_TARGET_TOO_SMALL", /nothing was written/],
      [[...to, readOnly.uri, "--disk", "vda", "--force"], 4, "E_TARGET_READ_ONLY", /read-only/],
      [[...to, named.uri, "--disk", "vda", "--force"], 4, "NBD_EXPORT_UNKNOWN", /export/],
      [[...to, small.uri, "--disk", "vda"], 2, "E_EXISTS", /--force/],
      [[...to, small.uri, "--force"], 2, "E_TARGET", /--disk/],
      [[...to, small.uri, "--disk", "vda", "--force", "--format", "qcow2"], 2, "E_TARGET", /raw/],
      [[...to, small.uri, "--disk", "vda", "--force", "--define"], 2, "E_DEFINE", /--define/],
      [[...to, "nbd+vsock://1/x", "--disk", "vda", "--force"], 2, "NBD_URI_UNSUPPORTED", /vsock/],
    ];
    for (const [args, code, error, message] of refused) {
      const ran = await nbdpull(...args);
      expect([ran.code, ran.json(), ran.stderr]).toMatchObject([
        code,
        { error: { code: error } },
        expect.stringMatching(message),
      ]);
    }
    expect((await readFile(image)).equals(before)).toBe(true);
  });

  it("reports the target as half-written when the server fails a write, hangs up, or a signal comes", async () => {
    await using folder = await makeFolder();
    await using failing = await startNbdkit(
      folder,
      "--filter=error",
      "memory",
      String(SIZE),
      "error-pwrite-rate=100%",
    );
    const failed = await restoreTo(failing.uri);
    expect([failed.code, failed.json()]).toMatchObject([
      1,
      { error: { code: "NBD_REQUEST_FAILED", halfWritten: true, target: failing.uri } },
    ]);

    const image = join(folder.path, "target");
    const before = garbage();
    await writeFile(image, before);
    const log = join(folder.path, "log");
    const startSlow = () =>
      startNbdkit(
        folder,
        ...["--filter=log", "--filter=delay", "file", image, `logfile=${log}`],
        ...["delay-write=300ms", "delay-zero=300ms"],
      );
    const hasBegun = () =>
      readFile(log, "utf8").then(
        (text) => / (?:Write|Zero) /.test(text),
        () => false,
      );
    const args = (uri: string) => [
      ...["restore", repo(), "--disk", "vda", "--to", uri, "--force", "--json"],
      ...["--limit-rate", "1M", "--request-size", "64K"],
    ];
    await using dying = await startSlow();
    const lost = startNbdpull(args(dying.uri));
    await expect.poll(hasBegun).toBe(true);
    await dying.kill();
    expect(await finished(lost)).toMatchObject({ code: 1, stderr: expect.stringContaining("half-written") });

    await rm(log);
    await using server = await startSlow();
    const interrupted = startNbdpull(args(server.uri));
    await expect.poll(hasBegun).toBe(true);
    interrupted.kill("SIGINT");
    const ran = await finished(interrupted);
    expect(ran).toMatchObject({ code: 130, stderr: expect.stringContaining("half-written") });
    expect(ran.stderr).not.toContain("removed");

    // Running the same command again is enough. The server is another one: nbdkit 1.32 with these filters
    // sometimes dies when a client leaves in the middle of a request.
    await server.kill();
    await using next = await startNbdkit(folder, "file", image);
    const again = await restoreTo(next.uri);
    expect(again.code, `${again.stdout}${again.stderr}`).toBe(0);
    await expectRestored(await readFile(image), before);
  });
});

describeWith(["nbd-server"], "a restore to nbd-server", () => {
  it("leaves exactly the point on a target full of garbage, without WRITE_ZEROES and block sizes", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const before = garbage();
    await writeFile(image, before);
    const port = await freePort();
    const config = join(folder.path, "config");
    const pidFile = join(folder.path, "pid");
    await writeFile(
      config,
      `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\n[disk]\nexportname = ${image}\nflush = true\n`,
    );
    await execa(findTool("nbd-server") ?? "nbd-server", ["-C", config, "-p", pidFile]);
    try {
      await expect.poll(() => listensOn(port)).toBe(true);
      expect((await restoreTo(`nbd://127.0.0.1:${port}/disk`)).code).toBe(0);
      await expectRestored(await readFile(image), before);
    } finally {
      process.kill(Number(await readFile(pidFile, "utf8")), "SIGTERM");
    }
  });
});

describeWithLoop("a restore to a block device", () => {
  it.each([512, 4096])(
    "leaves exactly the point on a target full of garbage: blocks of %d",
    async (block) => {
      await using folder = await makeFolder();
      const image = join(folder.path, "target");
      // A device consists of whole blocks.
      const before = garbage().subarray(0, TARGET - (TARGET % 4096));
      await writeFile(image, before);
      await using device = await attachLoop(image, "--sector-size", String(block));
      const ran = await restoreTo(device.path);
      expect([ran.code, ran.json()]).toMatchObject([
        0,
        { disks: [{ path: device.path, targetSize: before.length, virtualSize: SIZE }] },
      ]);
      expect(ran.stderr).toContain("is larger");
      await expectRestored(await readFile(image), before);
    },
  );

  it("is refused if the device is in use, read-only or too small, and leaves it unchanged", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const before = garbage().subarray(0, TARGET - (TARGET % 4096));
    await writeFile(image, before);
    {
      await using device = await attachLoop(image);
      expect((await nbdpull("restore", repo(), "--disk", "vda", "--to", device.path)).code).toBe(2);
      const holder = await open(device.path, constants.O_RDWR | constants.O_EXCL);
      const held = await restoreTo(device.path);
      await holder.close();
      expect([held.code, held.json()]).toMatchObject([4, { error: { code: "E_TARGET_IN_USE" } }]);
      expect(held.stderr).toContain("mounted");
    }
    {
      await using device = await attachLoop(image, "--read-only");
      const ran = await restoreTo(device.path);
      expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_TARGET_READ_ONLY" } }]);
    }
    {
      await using device = await attachLoop(image, "--sizelimit", String(SIZE - (SIZE % 4096)));
      const ran = await restoreTo(device.path);
      expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_TARGET_TOO_SMALL" } }]);
    }
    expect((await readFile(image)).equals(before)).toBe(true);
  });

  it("is refused if the device is backed by a file of the repository", async () => {
    const stored = chain().pathOf(chain().points[0] as never, "vda.qcow2");
    const before = await readFile(stored);
    await using device = await attachLoop(stored);
    const ran = await restoreTo(device.path);
    expect([ran.code, ran.json()]).toMatchObject([2, { error: { code: "E_TARGET" } }]);
    expect((await readFile(stored)).equals(before)).toBe(true);
  });

  it("writes a definition only with --xml", async () => {
    await defineGuest();
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    await writeFile(image, Buffer.alloc(SIZE + 4096 - (SIZE % 4096)));
    await using device = await attachLoop(image);
    const placeless = await restoreTo(device.path, "--define");
    expect([placeless.code, placeless.json()]).toMatchObject([2, { error: { code: "E_DEFINE" } }]);
    const xml = join(folder.path, "guest.xml");
    const ran = await restoreTo(device.path, "--xml", xml);
    expect([ran.code, ran.json()]).toMatchObject([0, { definition: { domain: "guest-restored", xml } }]);
    const written = await readFile(xml, "utf8");
    expect(written).toContain(`<disk type="block"><source dev="${device.path}"/>`);
    expect(written).not.toContain("/old");
  });

  it("stays as it is where the file of --xml can't be written", async () => {
    await defineGuest();
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const before = randomFillSync(Buffer.alloc(SIZE + 4096 - (SIZE % 4096)));
    await writeFile(image, before);
    await using device = await attachLoop(image);
    const file = join(folder.path, "new.raw");
    for (const target of [device.path, file]) {
      const ran = await restoreTo(target, "--xml", "/proc/guest.xml");
      const message = expect.stringContaining("can't be written to /proc/guest.xml");
      expect([ran.code, ran.json()]).toMatchObject([2, { error: { code: "E_DEFINE", message } }]);
    }
    expect((await readFile(image)).equals(before)).toBe(true);
    expect(existsSync(file)).toBe(false);
    const xml = join(folder.path, "own", "guest.xml");
    await mkdir(join(folder.path, "own"));
    expect((await restoreTo(file, "--xml", xml)).code).toBe(0);
    expect(await readdir(join(folder.path, "own"))).toEqual(["guest.xml"]);
  });

  it("is refused if a file system on it is mounted", async ({ skip }) => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    await writeFile(image, Buffer.alloc(16 * 1024 * 1024));
    await using device = await attachLoop(image);
    const place = join(folder.path, "mounted");
    await mkdir(place);
    await execa(findTool("mkfs.ext4") ?? "mkfs.ext4", ["-q", device.path], { reject: false });
    const mounted = await execa("mount", [device.path, place], { reject: false });
    if (mounted.failed) skip("nothing can be mounted here");
    const ran = await restoreTo(device.path);
    await execa("umount", [place]);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_TARGET_IN_USE" } }]);
  });

  it("leaves holes where nothing needs zeroing, even when it is killed and started again", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const file = await open(image, "w");
    await file.truncate(SIZE + 4096 - (SIZE % 4096));
    await file.close();
    await using device = await attachLoop(image);
    const args = ["restore", repo(), "--disk", "vda", "--to", device.path, "--force"];
    const run = startNbdpull([...args, "--limit-rate", "512K", "--request-size", "64K"]);
    const reader = await open(device.path, "r");
    const first = Buffer.alloc(512);
    const hasBegun = () => reader.read(first, 0, 512, CLUSTER).then(() => first.some((byte) => byte !== 0));
    await expect.poll(hasBegun).toBe(true);
    await reader.close();
    run.kill("SIGKILL");
    await run.ended;
    expect((await restoreTo(device.path)).code).toBe(0);
    await expectRestored(await readFile(image), Buffer.alloc(SIZE + 4096 - (SIZE % 4096)));
    expect((await stat(image)).blocks * 512).toBeLessThan(45 * CLUSTER);
  });
});
