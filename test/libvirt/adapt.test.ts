import { chmod, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { removeLab } from "../support/libvirt-daemon.js";
import { describeWithLibvirt, Lab, stateOf, virsh } from "../support/libvirt-lab.js";
import { installReadingGuest } from "../support/live-lab.js";
import { nbdpull } from "../support/nbdpull.js";
import { changeStoredDefinition } from "../support/stored-definition.js";

const MiB = 1024 * 1024;
/** What no host has, and what stands in for it where nothing has it. */
const WANTED = {
  "machine type pc-q35-99.0": /^machine type pc-q35-\d/,
  "CPU model nbdpull-none": /^CPU mode (host-model|maximum)$/,
  "firmware /usr/share/OVMF/nbdpull-none.fd": /BIOS/,
  "network nbdpull-none": /^a network card without a cable|^network default/,
  "bridge nbdpull-br": /^a network card without a cable|^network default/,
  "/usr/share/qemu/nbdpull-none.iso, which sdz is on": /^an empty drive/,
  "volume none.iso of storage pool nbdpull-none, which sdy is on": /^an empty drive/,
};
const NAMES = Object.keys(WANTED);

let lab: Lab;
let folder: string;
let repo: string;
const names: string[] = [];

/** As if the only point came from another host. */
const changeStoredXml = (change: (xml: string) => string): Promise<void> =>
  changeStoredDefinition(repo, lab.domain, change);

await describeWithLibvirt("a machine that comes from another host", () => {
  beforeAll(async () => {
    lab = await Lab.start({ sizes: { vda: MiB, vdb: MiB } });
    folder = await mkdtemp(join(tmpdir(), "nbdpull-adapt-"));
    await chmod(folder, 0o755);
    repo = join(folder, "repo");
    await lab.powerOff();
    await installReadingGuest(lab);
    const ran = await nbdpull("backup", lab.domain, "--to", repo, "--json");
    expect(ran.stderr).toBe("");
    const drive = (target: string, type: string, source: string): string =>
      `<disk type='${type}' device='cdrom'><driver name='qemu' type='raw'/><source ${source}/><target dev='${target}' bus='sata'/><readonly/></disk>`;
    const card = (type: string, name: string): string =>
      `<interface type='${type}'><source ${type}='${name}'/><model type='virtio'/></interface>`;
    await changeStoredXml((xml) =>
      xml
        .replace(/machine='[^']*'/, "machine='pc-q35-99.0'")
        .replace("<boot ", "<loader type='rom'>/usr/share/OVMF/nbdpull-none.fd</loader><boot ")
        .replace(/<cpu .*?<\/cpu>/s, "")
        .replace("<devices>", "<cpu mode='custom' match='exact'><model>nbdpull-none</model></cpu><devices>")
        .replace(
          "</devices>",
          `${card("network", "nbdpull-none")}${card("bridge", "nbdpull-br")}${drive("sdz", "file", "file='/usr/share/qemu/nbdpull-none.iso'")}${drive("sdy", "volume", "pool='nbdpull-none' volume='none.iso'")}</devices>`,
        ),
    );
  });
  afterAll(async () => {
    for (const name of names) await removeLab(name);
    await lab[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  const restoring = (suffix: string, ...more: readonly string[]): { name: string; args: string[] } => {
    // Another one when the test is repeated.
    const name = `${lab.domain}-${suffix}${names.length}`;
    names.push(name);
    const to = ["--to", join(folder, name), `--define=${name}`, "--trust-definition"];
    return { name, args: ["restore", repo, lab.domain, "--json", ...to, ...more] };
  };
  const wantedIn = (lacks: unknown): string[] => (lacks as { wanted: string }[]).map(({ wanted }) => wanted);

  function expectAdapted(adapted: unknown): void {
    expect(wantedIn(adapted).toSorted()).toEqual(NAMES.toSorted());
    for (const { wanted, now } of adapted as { wanted: keyof typeof WANTED; now: string }[]) {
      expect(now).toMatch(WANTED[wanted]);
    }
  }

  it.each([["plain"], ["live", "--live"]])(
    "is refused with all that this host lacks, and nothing is left (%s)",
    async (suffix, ...more) => {
      const { name, args } = restoring(`no${suffix}`, ...more);
      const ran = await nbdpull(...args);
      expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_HOST_LACKS", domain: name } }]);
      const { error } = ran.json() as { error: { message: string; lacks: unknown } };
      expect(wantedIn(error.lacks).toSorted()).toEqual(NAMES.toSorted());
      for (const wanted of NAMES) expect(error.message).toContain(wanted);
      expect(error.message).toContain("--adapt");
      expect(await readdir(folder)).not.toContain(name);
      expect(await virsh("list", "--all", "--name")).not.toContain(name);
    },
  );

  it("is restored with --adapt, which tells each change, and starts", async () => {
    const plain = restoring("plain", "--adapt");
    const ran = await nbdpull(...plain.args);
    expect(ran.code).toBe(0);
    const { definition } = ran.json() as { definition: { adapted: unknown } };
    expectAdapted(definition.adapted);
    await virsh("start", plain.name);
    expect(await stateOf(plain.name)).toBe("running (booted)");
    // The guest still has its two cards and drives.
    const xml = await virsh("dumpxml", plain.name);
    expect(xml.match(/<interface /g)).toHaveLength(2);
    expect(xml.match(/device='cdrom'/g)).toHaveLength(2);
    await virsh("destroy", plain.name);

    const live = restoring("adapted", "--live", "--adapt");
    const lived = await nbdpull(...live.args);
    expect(lived.code).toBe(0);
    expectAdapted((lived.json() as { live: { adapted: unknown } }).live.adapted);
    expect(lived.stderr).toMatch(
      /adapted to this host: machine type pc-q35-[\d.]+ instead of machine type pc-q35-99\.0/,
    );
    expect(await stateOf(live.name)).toBe("running (booted)");
    await virsh("destroy", live.name);
  });

  it("is rehearsed with --adapt, and refused without", async () => {
    const work = await mkdtemp(join(folder, "work-"));
    await chmod(work, 0o755);
    const args = ["rehearse", repo, lab.domain, "--work", work, "--expect", "serial:\\.", "--json"];
    const refused = await nbdpull(...args);
    expect([refused.code, refused.json()]).toMatchObject([4, { error: { code: "E_HOST_LACKS" } }]);
    // It has no network cards in its box, and drives of an untrusted definition are empty.
    const inBox = NAMES.filter((wanted) => /machine|CPU|firmware/.test(wanted));
    const up = await nbdpull(...args, "--adapt");
    expect([up.code, up.json()]).toMatchObject([0, [{ cameUp: true }]]);
    const [{ adapted } = { adapted: [] }] = up.json() as { adapted: unknown }[];
    expect(wantedIn(adapted).toSorted()).toEqual(inBox.toSorted());
    expect(await readdir(work)).toEqual([]);
  });

  it("is refused with --adapt too where nothing can stand in, which is named", async () => {
    await changeStoredXml((xml) => xml.replace("pc-q35-99.0", "nbdpull-machine"));
    const { name, args } = restoring("hopeless", "--adapt");
    const ran = await nbdpull(...args);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_HOST_LACKS" } }]);
    expect(ran.stderr).toMatch(/nothing to put in the place of: machine type nbdpull-machine\..*--xml FILE/);
    expect(await readdir(folder)).not.toContain(name);
    const odd = await nbdpull("restore", repo, lab.domain, "--to", join(folder, "x"), "--adapt");
    expect([odd.code, odd.stderr]).toEqual([2, expect.stringContaining("--define")]);
  });
});
