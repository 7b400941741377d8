import { randomBytes, randomUUID } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { expectExit, ofCalmLibvirt } from "../support/backup-lab.js";
import { removeLab } from "../support/libvirt-daemon.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { hasBytes } from "../support/same-bytes.js";

interface Json {
  readonly disks: readonly { readonly name: string }[];
  readonly leftOut: readonly object[];
  readonly plainText: readonly string[];
  readonly warnings: readonly string[];
}

const PASSPHRASE = "geheim";
const PLAIN = Buffer.alloc(1024 * 1024, "what the guest has written");
/** What `virsh define` accepts in a definition, and `virsh dumpxml` prints as it is. */
const METADATA = `<x:a xmlns:x="urn:nbdpull:test" b="&lt;!DOCTYPE &#10;"><![CDATA[<!DOCTYPE a [<!ENTITY b "c">]>]]><constructor __proto__="d"/><!-- <!DOCTYPE e> --></x:a>`;

/** One domain has a disk, two encrypted ones, a floppy and odd metadata; the other has no disk at all. */
await describeWithLibvirt("a domain with odd disks", () => {
  const ending = randomBytes(4).toString("hex");
  const odd = `nbdpull-lab-${process.pid}-${ending}`;
  const diskless = `nbdpull-lab-${process.pid}-${ending}-none`;
  const secret = randomUUID();
  let folder: string;
  let repo: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-odd-"));
    repo = join(folder, "repo");
    const passphrase = join(folder, "passphrase");
    await writeFile(passphrase, PASSPHRASE);
    const plain = join(folder, "plain.raw");
    await writeFile(plain, PLAIN);
    const key = ["--object", `secret,id=s0,file=${passphrase}`];
    await qemuImg("create", "-f", "qcow2", join(folder, "vda.qcow2"), "1M");
    const convert = ["convert", "-f", "raw", ...key, plain];
    await qemuImg(...convert, "-O", "luks", "-o", "key-secret=s0,iter-time=10", join(folder, "vdb.luks"));
    const luks = "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10";
    await qemuImg(...convert, "-O", "qcow2", "-o", luks, join(folder, "vdc.qcow2"));
    await writeFile(join(folder, "fda.img"), Buffer.alloc(1440 * 1024, "f"));
    await writeFile(join(folder, "sda.iso"), Buffer.alloc(2048));

    await define("secret", `<secret><uuid>${secret}</uuid><description>a test's</description></secret>`);
    await writeFile(join(folder, "base64"), Buffer.from(PASSPHRASE).toString("base64"));
    await virsh("secret-set-value", secret, "--file", join(folder, "base64"));
    const encryption = `<encryption format='luks'><secret type='passphrase' uuid='${secret}'/></encryption>`;
    const disk = (file: string, type: string, target: string, device = "disk", inside = ""): string =>
      `<disk type='file' device='${device}'><driver name='qemu' type='${type}'/><source file='${folder}/${file}'>${inside}</source><target dev='${target}' bus='${{ floppy: "fdc", cdrom: "sata" }[device] ?? "virtio"}'/></disk>`;
    const disks = [
      disk("vda.qcow2", "qcow2", "vda"),
      disk("vdb.luks", "raw", "vdb", "disk", encryption),
      disk("vdc.qcow2", "qcow2", "vdc", "disk", encryption),
      disk("fda.img", "raw", "fda", "floppy"),
      disk("sda.iso", "raw", "sda", "cdrom"),
    ];
    await define("domain", definition(odd, disks.join(""), `<metadata>${METADATA}</metadata>`));
    await define("domain", definition(diskless, "", "<description>&lt;!DOCTYPE a&gt;</description>"));
    await virsh("start", odd);
    await virsh("start", diskless);
  });

  afterAll(async () => {
    for (const domain of [odd, diskless]) await removeLab(domain);
    await execa("virsh", ["-c", "qemu:///system", "secret-undefine", secret], { reject: false });
    await rm(folder, { recursive: true, force: true });
  });

  function definition(name: string, devices: string, more: string): string {
    return `<domain type='qemu'><name>${name}</name>${more}<memory unit='MiB'>32</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='network'/></os>
      <devices>${devices}<controller type='usb' model='none'/><memballoon model='none'/></devices>
      <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel></domain>`;
  }

  async function define(kind: "domain" | "secret", xml: string): Promise<void> {
    const file = join(folder, `${kind}.xml`);
    await writeFile(file, xml);
    await virsh(kind === "domain" ? "define" : "secret-define", file);
  }

  function backup(...args: readonly string[]): Promise<Ran> {
    return nbdpull("backup", ...args, "--to", repo, "--json");
  }

  async function expectNoWarning(...args: readonly string[]): Promise<void> {
    const ran = await backup(...args);
    expectExit(ran, 0);
    expect(ofCalmLibvirt(ran.json() as Json).warnings).toEqual([]);
  }

  it("is refused before anything is made where encrypted disks may not be stored, as doctor says", async () => {
    const refused = await backup(odd, "--encrypted=refuse");
    expectExit(refused, 4);
    expect(refused.json()).toMatchObject({ error: { code: "E_ENCRYPTED", disks: ["vdb", "vdc"] } });
    expect(await virsh("checkpoint-list", odd, "--name")).toBe("");
    const findings = async (policy: string, exit: number) => {
      const ran = await nbdpull("doctor", odd, "--to", repo, "--json", `--encrypted=${policy}`);
      expectExit(ran, exit);
      const all = ran.json() as { check: string; status: string; cause: string }[];
      return all
        .filter(({ cause }) => /encrypted|floppy/.test(cause))
        .map((each) => [each.check, each.status]);
    };
    const ofFloppy = ["disk fda", "warn"];
    expect(await findings("refuse", 4)).toEqual([["disk vdb", "fail"], ["disk vdc", "fail"], ofFloppy]);
    expect(await findings("warn", 0)).toEqual([["disk vdb", "warn"], ["disk vdc", "warn"], ofFloppy]);
  });

  it("has its encrypted disks stored as plain text, which is told, and its floppy left out, likewise", async () => {
    const first = await backup(odd);
    expectExit(first, 0);
    const { disks, leftOut, plainText, warnings } = ofCalmLibvirt(first.json() as Json);
    expect(disks.map(({ name }) => name)).toEqual(["vda", "vdb", "vdc"]);
    expect(plainText).toEqual(["vdb", "vdc"]);
    expect(leftOut).toEqual([
      { disk: "fda", reason: expect.stringContaining("a floppy") },
      { disk: "sda", reason: "it is a cdrom" },
    ]);
    expect(warnings).toEqual([
      expect.stringContaining("--include vda --include vdb --include vdc --include fda"),
      expect.stringContaining("plain text"),
    ]);
    await expectNoWarning(odd, "--exclude", "fda", "--encrypted=store");
  });

  it("has its floppy stored and restored if it is asked for, and its metadata kept", async () => {
    const disks = ["vda", "vdb", "vdc", "fda"].flatMap((name) => ["--include", name]);
    await expectNoWarning(odd, ...disks, "--encrypted=store");
    const name = `${odd}-restored`;
    const target = join(folder, "restored");
    await mkdir(target);
    try {
      expectExit(
        await nbdpull(
          "restore",
          repo,
          odd,
          "--to",
          target,
          `--define=${name}`,
          "--trust-definition",
          "--format",
          "raw",
        ),
        0,
      );
      expect(hasBytes(join(target, "vdb.raw"), PLAIN)).toBe(true);
      expect(hasBytes(join(target, "vdc.raw"), PLAIN)).toBe(true);
      expect(hasBytes(join(target, "fda.raw"), await readFile(join(folder, "fda.img")))).toBe(true);
      const restored = await virsh("dumpxml", name);
      expect(restored).toContain(METADATA);
      expect(restored).toContain(`<source file='${target}/fda.raw'/>`);
    } finally {
      await removeLab(name);
    }
  });

  it("has points in a folder that is not hidden, whatever the domain is called", async () => {
    const hidden = `.${odd}`;
    const disk = `<disk type='file'><driver name='qemu' type='raw'/><source file='${folder}/plain.raw'/><target dev='vda'/></disk>`;
    await define("domain", definition(hidden, disk, ""));
    try {
      const taken = await backup(hidden);
      expectExit(taken, 0);
      const { folder: point } = taken.json() as { folder: string };
      expect(point).toMatch(new RegExp(`^${repo}/_${odd}~[0-9a-f]{16}/`));
      const out = join(folder, "hidden.raw");
      expectExit(await nbdpull("restore", repo, hidden, "--disk", "vda", "--to", out), 0);
      expect(hasBytes(out, PLAIN)).toBe(true);
    } finally {
      await removeLab(hidden);
    }
  });

  it("does not make --all fail if it has no disks, but is an error where it is named", async () => {
    using front = new LibvirtInFront(folder);
    const env = front.env({ running: [diskless, odd] });
    const metrics = join(folder, "nbdpull.prom");
    const args = ["backup", "--all", "--to", repo, "--json", "--metrics", metrics];
    const all = await runNbdpull(args, { env });
    expectExit(all, 0);
    expect(await readFile(metrics, "utf8")).not.toContain(diskless);
    expect(all.json()).toMatchObject({
      domains: expect.arrayContaining([{ domain: diskless, passedOver: expect.stringContaining("no disk") }]),
    });
    expectExit(await backup(diskless, odd), 4);
    const some = ["--include", "vda", "--include", "vdx", "--exclude", "vdc"];
    const none = await runNbdpull([...args, ...some], { env });
    expectExit(none, 4);
    expect(none.json()).toMatchObject({ error: { code: "E_NO_SUCH_DISK", disk: "vdx" } });
    const included = await runNbdpull([...args, "--include", "vda", "--exclude", "vdc"], { env });
    expectExit(included, 0);
    expect(included.json()).toMatchObject({
      domains: expect.arrayContaining([
        { domain: diskless, passedOver: expect.stringContaining("has no disk vda") },
        expect.objectContaining({ domain: odd, disks: [expect.objectContaining({ name: "vda" })] }),
      ]),
    });
    const named = await backup(diskless);
    expectExit(named, 4);
    expect(named.json()).toMatchObject({ error: { code: "E_NO_DISKS" } });
  });
});
