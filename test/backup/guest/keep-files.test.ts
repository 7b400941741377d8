import { appendFileSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { keepFiles } from "../../../src/backup/guest/keep-files.js";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { damageOf as damageIn } from "../../../src/backup/repository/kept-files.js";
import type { KeptFile } from "../../../src/backup/repository/manifest.js";

let folder: string;
let point: string;
let warnings: string[];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-kept-"));
  point = join(folder, "point");
  await mkdir(point);
  warnings = [];
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const onWarning = (message: string): void => {
  warnings.push(message);
};

async function damageOf(path: string, file: KeptFile): Promise<string | undefined> {
  await using held = await HeldFolder.open(path);
  return await damageIn(held, file);
}

function xml(os: string, devices = "", id = "id='3'"): string {
  const uuid = "7f2f3c7e-7c0e-4f0a-9f33-0c8a2d0e1f10";
  return `<domain ${id}><name>web</name><uuid>${uuid}</uuid><os>${os}</os><devices>${devices}</devices></domain>`;
}

function keep(definition: string, host?: string) {
  return keepFiles({ xml: definition, host }, point, { sync: true, onWarning });
}

describe("keepFiles", () => {
  it("copies every file that the domain boots with and stores the definition, each with length and digest", async () => {
    const contents: Record<string, Buffer> = {
      vars: Buffer.alloc(528 * 1024, 0x5a),
      "k & r": Buffer.alloc(3 * 1024 * 1024 + 17, 0x11),
      initrd: Buffer.alloc(0),
      dtb: Buffer.from("tree"),
      rw: Buffer.from("firmware"),
      slic: Buffer.from("licence"),
    };
    for (const [name, content] of Object.entries(contents)) await writeFile(join(folder, name), content);
    const path = (name: string): string => join(folder, name).replaceAll("&", "&amp;");
    const text = xml(
      `<loader readonly='no' type='pflash'>${path("rw")}</loader>` +
        `<nvram template='/t.fd' type='file'><source file='${path("vars")}'/></nvram>` +
        `<kernel>${path("k & r")}</kernel><initrd> ${path("initrd")} </initrd><dtb>${path("dtb")}</dtb>` +
        `<cmdline>root=/dev/vda</cmdline><acpi><table type='slic'>${path("slic")}</table></acpi>`,
    );
    const { files, notKept } = await keep(text);
    expect({ notKept, warnings }).toEqual({ notKept: [], warnings: [] });
    expect(files.map(({ role, file, source }) => [role, file, source])).toEqual([
      ["definition", "domain.xml", null],
      ["loader", "loader.fd", join(folder, "rw")],
      ["nvram", "nvram.fd", join(folder, "vars")],
      ["kernel", "kernel", join(folder, "k & r")],
      ["initrd", "initrd", join(folder, "initrd")],
      ["dtb", "dtb", join(folder, "dtb")],
      ["acpi", "acpi", join(folder, "slic")],
    ]);
    expect(await readFile(join(point, "domain.xml"), "utf8")).toBe(text);
    for (const { file, source, length } of files.slice(1)) {
      const stored = await readFile(join(point, file));
      expect(stored.equals(await readFile(source ?? ""))).toBe(true);
      expect(length).toBe(stored.length);
    }
    for (const file of files) expect(await damageOf(point, file)).toBeUndefined();
    const sums = await execa(
      "sha256sum",
      files.map(({ file }) => join(point, file)),
    );
    expect(sums.stdout.split("\n").map((line) => line.split(" ")[0])).toEqual(
      files.map(({ sha256 }) => sha256),
    );
  });

  it("names what it can't keep and why, and goes on", async () => {
    await execa("mkfifo", [join(folder, "pipe")]);
    await writeFile(join(folder, "nvram"), "variables");
    const tpm = (backend: string): string => `<tpm model='tpm-crb'><backend type='${backend}'/></tpm>`;
    const { files, notKept } = await keep(
      xml(
        `<kernel>${join(folder, "pipe")}</kernel><initrd>${join(folder, "none")}</initrd><dtb>${folder}</dtb>` +
          `<nvram>${join(folder, "nvram")}</nvram>`,
        `${tpm("emulator")}<memory model='nvdimm'><source><path>/srv/pmem</path></source></memory>`,
      ),
    );
    expect(files.map(({ role }) => role)).toEqual(["definition", "nvram"]);
    expect(notKept).toEqual([
      { what: "TPM state", reason: expect.stringContaining("swtpm") },
      { what: "memory module /srv/pmem", reason: expect.stringContaining("no disk") },
      { what: `kernel ${join(folder, "pipe")}`, reason: "it is no plain file" },
      { what: `initrd ${join(folder, "none")}`, reason: expect.stringContaining("ENOENT") },
      { what: `dtb ${folder}`, reason: "it is no plain file" },
    ]);
    expect(warnings).toEqual(notKept.map(({ what, reason }) => `${what} is not kept: ${reason}`));
  });

  it("reports an NVRAM that is no file or is missing while the domain runs, but not of a domain that never ran", async () => {
    const block = xml("<nvram type='block'><source dev='/dev/vg/vars'/></nvram>");
    expect((await keep(block)).notKept).toEqual([
      { what: "NVRAM", reason: "it is no file, but of type block" },
    ]);
    await rm(join(point, "domain.xml"));
    const gone = `<nvram>${join(folder, "gone")}</nvram>`;
    expect((await keep(xml(gone))).notKept).toMatchObject([{ what: `NVRAM ${join(folder, "gone")}` }]);
    await rm(join(point, "domain.xml"));
    warnings = [];
    expect((await keep(xml(gone, "", ""))).notKept).toEqual([]);
    expect(warnings).toEqual([]);
  });

  it("never copies a file of this host for a domain on another", async () => {
    await writeFile(join(folder, "vars"), "of this host");
    const { files, notKept } = await keep(xml(`<nvram>${join(folder, "vars")}</nvram>`), "far.example");
    expect(files.map(({ role }) => role)).toEqual(["definition"]);
    expect(notKept).toEqual([{ what: `NVRAM ${join(folder, "vars")}`, reason: "it is on far.example" }]);
  });

  it("copies an NVRAM again if it changes meanwhile, and warns if it never stops changing", async () => {
    const vars = join(folder, "vars");
    await writeFile(vars, Buffer.alloc(16 * 1024 * 1024, 0x33));
    const writing = setInterval(() => appendFileSync(vars, "x"), 1);
    try {
      const { files } = await keep(xml(`<nvram>${vars}</nvram>`));
      expect(warnings).toEqual([`NVRAM ${vars} was written to while it was copied: it may be torn`]);
      for (const file of files) expect(await damageOf(point, file)).toBeUndefined();
    } finally {
      clearInterval(writing);
    }
    await rm(point, { recursive: true });
    await mkdir(point);
    warnings = [];
    const once = setTimeout(() => appendFileSync(vars, "the end"), 5);
    const { files } = await keep(xml(`<nvram>${vars}</nvram>`));
    clearTimeout(once);
    expect(warnings).toEqual([]);
    expect((await readFile(join(point, "nvram.fd"))).equals(await readFile(vars))).toBe(true);
    expect(files).toHaveLength(2);
  });
});

describe("damageOf", () => {
  it("finds a file that is missing, shorter, changed, or only a link", async () => {
    await writeFile(join(folder, "vars"), "variables");
    const [, nvram] = (await keep(xml(`<nvram>${join(folder, "vars")}</nvram>`))).files;
    if (!nvram) throw new Error("nothing was kept");
    const stored = join(point, "nvram.fd");
    await writeFile(stored, "Variables");
    expect(await damageOf(point, nvram)).toBe("nvram.fd is not what was stored");
    await writeFile(stored, "variable");
    expect(await damageOf(point, nvram)).toBe("nvram.fd has 8 bytes, of 9 that were stored");
    await rm(stored);
    expect(await damageOf(point, nvram)).toBe("nvram.fd is missing");
    await symlink(join(folder, "vars"), stored);
    expect(await damageOf(point, nvram)).toBe("nvram.fd is no plain file");
  });
});
