/** Somebody who can write to the repository changes the definition of a point, and root restores it. */
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { describeWithLibvirt, Lab, virsh } from "../support/libvirt-lab.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { changeStoredDefinition } from "../support/stored-definition.js";

/** What the attacker would like to have in the guest. */
const STRANGE = /shadow|\/dev\/vda["']|was-here|dir=["']\/etc/;

let lab: Lab;
let folder: string;
let repo: string;
/** What the attacker's programs make when they run. */
let flag: string;
let evil: string;
let name: string;
beforeEach(async () => {
  lab = await Lab.start();
  name = `${lab.domain}-restored`;
  folder = await mkdtemp(join(tmpdir(), "nbdpull-forged-"));
  // QEMU's user has to get to the restored disks, and the attacker's program could be run by any user.
  await chmod(folder, 0o755);
  repo = join(folder, "repo");
  flag = join(tmpdir(), `${name}-was-here`);
  evil = join(folder, "evil");
  await writeFile(evil, `#!/bin/sh\nid -u >> ${flag}\nexec /usr/bin/qemu-system-x86_64 "$@"\n`, {
    mode: 0o755,
  });
  await using _ = await lab.beginBackup({ checkpoint: "cp0" });
  expect((await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp0")).code).toBe(0);
});
afterEach(async () => {
  await virsh("destroy", name).catch(() => undefined);
  await virsh("undefine", "--nvram", name).catch(() => undefined);
  await rm(`/var/log/libvirt/qemu/${name}.log`, { force: true });
  await lab[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
  await rm(flag, { force: true });
});

const forge = (change: (xml: string) => string): Promise<void> =>
  changeStoredDefinition(repo, lab.domain, change);

const addDevices =
  (devices: string) =>
  (xml: string): string =>
    xml.replace("</devices>", `${devices}</devices>`);

async function restore(...args: readonly string[]): Promise<Ran> {
  const to = join(folder, "restored");
  const ran = await nbdpull("restore", repo, lab.domain, "--to", to, "--define", ...args);
  await chmod(to, 0o755).catch(() => undefined);
  return ran;
}

async function start(): Promise<boolean> {
  return await virsh("start", name).then(
    () => true,
    () => false,
  );
}

async function wasRun(): Promise<boolean> {
  return await readFile(flag).then(
    () => true,
    () => false,
  );
}

await describeWithLibvirt("a forged definition", () => {
  it("runs no program in the emulator's place, neither when it is defined nor at the start", async () => {
    await forge((xml) => xml.replace(/<emulator>[^<]*/, `<emulator>${evil}`));
    const ran = await restore();
    const started = await start();
    expect(await wasRun()).toBe(false);
    expect(started).toBe(true);
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining(`<emulator> ${evil}`)]);
    expect(await virsh("dumpxml", name)).toContain("<emulator>/usr/bin/qemu-system-x86_64</emulator>");
  });

  it("has no script run by root at the start, and QEMU not run as root", async () => {
    await forge(
      addDevices(
        `<interface type='ethernet'><target dev='forged0'/><script path='${evil}'/><model type='virtio'/></interface>`,
      ),
    );
    const ran = await restore();
    const started = await start();
    expect(await wasRun()).toBe(false);
    expect(started).toBe(true);
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining(`<script path="${evil}">`)]);
    const xml = await virsh("dumpxml", name);
    expect(xml).not.toContain("<interface");
    const pid = (await readFile(`/run/libvirt/qemu/${name}.pid`, "utf8")).trim();
    const status = await readFile(`/proc/${pid}/status`, "utf8");
    expect(/^Uid:\s+(\d+)/m.exec(status)?.[1]).not.toBe("0");
  });

  it("shows the guest no file, device or socket of the host", async () => {
    const devices =
      "<disk type='file' device='disk'><source file='/etc/shadow'/><target dev='vdc' bus='virtio'/><readonly/></disk>" +
      "<disk type='block' device='disk'><source dev='/dev/vda'/><target dev='vdd' bus='virtio'/><readonly/></disk>" +
      "<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sda' bus='sata'/><readonly/></disk>" +
      `<serial type='file'><source path='${flag}'/><target port='0'/></serial>` +
      "<filesystem type='mount' accessmode='passthrough'><source dir='/etc'/><target dir='etc'/></filesystem>" +
      "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>";
    const around =
      "<sysinfo type='fwcfg'><entry name='opt/com.example/x' file='/etc/shadow'/></sysinfo>" +
      "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/y,file=/etc/shadow'/></qemu:commandline>";
    await forge((xml) => addDevices(devices)(xml).replace("<devices>", `${around}<devices>`));
    const ran = await restore("--xml", join(folder, "forged.xml"));
    expect(ran.code).toBe(0);
    expect(await virsh("dumpxml", name)).not.toMatch(STRANGE);
    await virsh("start", name);
    const pid = (await readFile(`/run/libvirt/qemu/${name}.pid`, "utf8")).trim();
    const command = await readFile(`/proc/${pid}/cmdline`, "utf8");
    for (const text of [
      await virsh("dumpxml", name),
      await readFile(join(folder, "forged.xml"), "utf8"),
      command,
    ]) {
      expect(text).not.toMatch(STRANGE);
    }
    for (const place of [
      "vdc",
      "vdd",
      "<disk> sda",
      "opt/com.example",
      "qemu:commandline",
      "<filesystem",
      "<rng",
    ]) {
      expect(ran.stderr).toContain(place);
    }
    expect(await virsh("domblklist", name)).toContain(join(folder, "restored", "vda.qcow2"));
    expect(await wasRun()).toBe(false);
  });

  it("is taken as it is with --trust-definition", async () => {
    await forge((xml) => xml.replace(/<emulator>[^<]*/, `<emulator>${evil}`));
    const ran = await restore("--trust-definition");
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    expect(await virsh("dumpxml", name)).toContain(evil);
    expect(await wasRun()).toBe(true);
  });
});
