import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, LAB_DISKS, Lab, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull, type Ran, runNbdpull, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import {
  changeFilesOfManifest,
  changeStoredDefinition,
  fileOfOnlyPoint,
} from "../support/stored-definition.js";

const MiB = 1024 * 1024;

let lab: Lab;
let folder: string;
let repo: string;
let copies: Record<"vda" | "vdb", string>;
const defined: string[] = [];
beforeEach(async () => {
  lab = await Lab.start();
  folder = await mkdtemp(join(tmpdir(), "nbdpull-define-"));
  repo = join(folder, "repo");
  await lab.write("vda", MiB, 3 * MiB, 0x11);
  await lab.write("vdb", 2 * MiB, 5 * MiB, 0x22);
  await using backup = await lab.beginBackup({ checkpoint: "cp0" });
  copies = { vda: await backup.referenceCopy("vda"), vdb: await backup.referenceCopy("vdb") };
  expect((await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp0")).code).toBe(0);
});
afterEach(async () => {
  for (const name of defined.splice(0)) {
    await virsh("destroy", name).catch(() => undefined);
    await virsh("undefine", "--nvram", name).catch(() => undefined);
    await rm(`/var/log/libvirt/qemu/${name}.log`, { force: true });
  }
  await lab[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

function restore(...args: readonly string[]): Promise<Ran> {
  return nbdpull("restore", repo, lab.domain, "--json", ...args);
}

/** A name that the lab's cleanup recognizes. */
const newName = (suffix: string): string => {
  const name = `${lab.domain}-${suffix}`;
  defined.push(name);
  return name;
};

/** The name of a trial, for a domain of somebody else's. */
const newTrial = (): string => {
  const name = `nbdpull-trial-${lab.uuid.slice(0, 8)}`;
  defined.push(name);
  return name;
};

/** The domains called like trials that a restore into the folder left, or the test made. */
async function trials(): Promise<string[]> {
  const names = (await virsh("list", "--all", "--name")).split("\n");
  const found: string[] = [];
  for (const name of names.filter((each) => each.startsWith("nbdpull-trial-"))) {
    // Those of tests beside this one come and go.
    const xml = await virsh("dumpxml", "--inactive", name).catch(() => "");
    if (xml.includes(folder) || xml.includes(lab.folder)) found.push(name);
  }
  return found.sort();
}

/** A file with the lab's definition, changed so that it is another domain. */
async function edited(change: (xml: string) => string): Promise<string> {
  const xml = change(await virsh("dumpxml", "--inactive", lab.domain));
  const file = join(folder, "edited.xml");
  await writeFile(file, xml.replace(/<uuid>.*<\/uuid>/, "").replace(/<mac address=.*/g, ""));
  return file;
}

const storedFile = (name: string): Promise<string> => fileOfOnlyPoint(repo, lab.domain, name);
const changeStoredXml = (change: (xml: string) => string): Promise<void> =>
  changeStoredDefinition(repo, lab.domain, change);

/** Adds devices that connect to the outside; the lab's own domain has none. */
async function addDevices(): Promise<void> {
  const devices = [
    "<interface type='user'><mac address='52:54:00:aa:bb:cc'/><model type='virtio'/><alias name='net0'/></interface>",
    "<serial type='pty'><source path='/dev/pts/7'/><target port='0'/></serial>",
    "<serial type='file'><source path='/var/lib/libvirt/qemu/x.log' append='on'/><target port='1'/></serial>",
    "<serial type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/x.sock'/><target port='2'/></serial>",
    "<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-1-x/org.qemu.guest_agent.0'/>" +
      "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>",
  ];
  await changeStoredXml((xml) => xml.replace("</devices>", `${devices.join("")}</devices>`));
}

const all = (xml: string, pattern: RegExp): string[] =>
  [...xml.matchAll(pattern)].map((match) => match[1] ?? "");
const macsOf = (xml: string): string[] => all(xml, /<mac address='([^']+)'/g);
const pathsOf = (xml: string): string[] => all(xml, /(?:file|dev|path|socket)='(\/[^']+)'/g);

await describeWithLibvirt("restore --define", () => {
  it.each(["raw", "qcow2"] as const)(
    "creates a domain on %s files that runs beside the old one",
    async (format) => {
      const name = newName("restored");
      const to = join(folder, "restored");
      await addDevices();
      // The lab's domain runs as root, which a definition that is not trusted may not ask for.
      const ran = await restore("--to", to, "--format", format, "--define", "--trust-definition");
      const [log, socket] = [join(to, `${name}.serial1.log`), join(to, `${name}.serial2.sock`)];
      expect(ran.code).toBe(0);
      expect(ran.stderr.trim().split("\n")).toEqual([
        expect.stringContaining(`its <serial type='file'> is ${log} now`),
        expect.stringContaining(`its <serial type='unix'> is ${socket} now`),
      ]);
      expect(ran.json()).toMatchObject({
        definition: { domain: name, xml: join(to, `${name}.xml`), defined: true },
      });
      // QEMU's user passes through, and can't list it.
      expect((await stat(to)).mode & 0o777).toBe(0o711);
      await virsh("start", name);
      const before =
        (await readFile(await storedFile("domain.xml"), "utf8")) + (await virsh("dumpxml", lab.domain));
      const after = await virsh("dumpxml", name);
      expect((await virsh("list", "--name")).split("\n")).toEqual(expect.arrayContaining([lab.domain, name]));
      expect(all(before, /<uuid>([^<]+)</g)).not.toContain(all(after, /<uuid>([^<]+)</g)[0]);
      expect(macsOf(after)).toEqual([expect.stringMatching(/^52:54:00:/)]);
      expect(macsOf(before)).not.toContain(macsOf(after)[0]);
      expect(pathsOf(after).length).toBeGreaterThan(LAB_DISKS.length);
      expect([(await stat(log)).isFile(), (await stat(socket)).isSocket()]).toEqual([true, true]);
      const shared = pathsOf(after).filter((path) => pathsOf(before).includes(path));
      expect(shared).toEqual([]);
      expect(all(after, /<source file='([^']+)'/g)).toEqual(
        LAB_DISKS.map((disk) => join(to, `${disk}.${format}`)),
      );
      expect(all(after, /<driver name='qemu' type='([^']+)'/g)).toEqual([format, format]);
      await virsh("destroy", name);
      for (const disk of LAB_DISKS) {
        await qemuImg("compare", "-f", "raw", "-F", format, copies[disk], join(to, `${disk}.${format}`));
      }
    },
  );

  it("leaves out a disk that was not restored, and reports that", async () => {
    const name = newName("one");
    const file = join(folder, "only.qcow2");
    const ran = await restore("--disk", "vda", "--to", file, `--define=${name}`, "--trust-definition");
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringMatching(/warning: .*vdb.*left out/)]);
    const xml = await virsh("dumpxml", name);
    expect(all(xml, /<source file='([^']+)'/g)).toEqual([file]);
    expect(await readFile(join(folder, `${name}.xml`), "utf8")).not.toContain("vdb");
  });

  it("only writes the definition with --xml, and replaces no file without --force", async () => {
    const xml = join(folder, "mine.xml");
    const to = join(folder, "restored");
    const ran = await restore("--to", to, "--xml", xml);
    expect([ran.code, ran.json()]).toMatchObject([0, { definition: { xml, defined: false } }]);
    expect(await virsh("list", "--all", "--name")).not.toContain(`${lab.domain}-restored`);
    expect(await readFile(xml, "utf8")).toContain(`<name>${lab.domain}-restored</name>`);
    await virsh("define", "--validate", xml);
    newName("restored");

    await writeFile(xml, "precious");
    const again = await restore("--to", join(folder, "more"), "--xml", xml);
    expect([again.code, again.json()]).toMatchObject([2, { error: { code: "E_EXISTS" } }]);
    expect(await readFile(xml, "utf8")).toBe("precious");
    expect(await readdir(folder)).not.toContain("more");
  });

  it("restores nothing if a domain has that name already, or the point has no definition", async () => {
    const to = join(folder, "restored");
    const taken = await restore("--to", to, `--define=${lab.domain}`);
    expect([taken.code, taken.json()]).toMatchObject([4, { error: { code: "E_DOMAIN_EXISTS" } }]);
    for (const name of ["a/b", "-x", ".x"]) {
      expect((await restore("--to", to, `--define=${name}`)).json()).toMatchObject({
        error: { code: "E_DEFINE" },
      });
    }
    const long = (await restore("--to", to, `--define=${"ä".repeat(101)}`)).json();
    expect(long).toMatchObject({
      error: {
        code: "E_DEFINE",
        message: expect.stringMatching(/has 202 bytes,.* at most 200 bytes.*--define=NAME/),
      },
    });
    await rm(await storedFile("domain.xml"));
    const lost = await restore("--to", to, "--define");
    expect([lost.code, lost.json()]).toMatchObject([3, { error: { code: "E_DAMAGED" } }]);
    await changeFilesOfManifest(repo, lab.domain, () => []);
    const unknown = await restore("--to", to, "--define");
    expect([unknown.code, unknown.json()]).toMatchObject([4, { error: { code: "E_NO_DEFINITION" } }]);
    expect(await readdir(folder)).not.toContain("restored");
  });

  it("restores nothing if libvirt would not take the definition, and leaves no domain behind", async () => {
    await changeStoredXml((xml) => xml.replace(/<vcpu.*<\/vcpu>/, "<vcpu>0</vcpu>"));
    const ran = await restore("--to", join(folder, "restored"), `--define=${newName("odd")}`);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_DEFINITION_REFUSED" } }]);
    expect(ran.stderr).toMatch(
      /vcpu.*Nothing was restored\. nbdpull restore with --xml FILE and without --define writes/,
    );
    expect(await readdir(folder)).not.toContain("restored");
    expect(await trials()).toEqual([]);
    expect(await virsh("list", "--all", "--name")).not.toContain(`${lab.domain}-odd`);
  });

  it("clears a trial away that a killed restore left defined, and nothing that is only called so", async () => {
    const others = newTrial();
    await virsh("define", await edited((xml) => xml.replace(lab.domain, others)));
    using front = new LibvirtInFront(folder);
    const args = ["restore", repo, lab.domain, "--to", join(folder, "never"), "--define"];
    const run = startNbdpull(args, { env: front.env({ late: "define" }) });
    await expect.poll(() => front.asked).toContain("define done");
    // Once it is dead, any restore beside this test may be the one that clears it away.
    const left = await trials();
    expect(left).toHaveLength(2);
    defined.push(...left);
    run.kill("SIGKILL");
    await run.ended;
    const again = await restore("--to", join(folder, "restored"), `--define=${newName("restored")}`);
    expect(again.code).toBe(0);
    expect(await trials()).toEqual([others]);
  });

  it("puts a domain that is gone back with its name, UUID, MACs and formats, so that increments go on; never beside it", async () => {
    const mac = "52:54:00:aa:bb:cc";
    await changeStoredXml((xml) =>
      xml.replace("</devices>", `<interface type='user'><mac address='${mac}'/></interface></devices>`),
    );
    const to = join(folder, "restored");
    const args = ["--to", to, "--define", "--keep-identity", "--trust-definition"];
    const refused = await restore(...args);
    expect([refused.code, refused.json()]).toMatchObject([4, { error: { code: "E_DOMAIN_EXISTS" } }]);
    expect(await readdir(folder)).not.toContain("restored");
    expect((await restore("--to", to, "--keep-identity")).code).toBe(2);
    expect((await restore(...args, "--define=other")).code).toBe(2);
    const { domain } = lab;
    const uuid = (await virsh("domuuid", domain)).trim();
    const own = join(folder, "own.xml");
    await writeFile(own, await virsh("dumpxml", "--inactive", domain));
    await virsh("destroy", domain);
    await virsh("undefine", "--checkpoints-metadata", domain);
    // Somebody else makes it meanwhile, and keeps it as it is.
    const late = join(folder, "late");
    const lateArgs = ["restore", repo, domain, "--json", ...args.slice(2), "--to", late];
    const slow = startNbdpull([...lateArgs, "--limit-rate", "8M"]);
    await expect.poll(() => readdir(late).catch(() => []), { interval: 20 }).not.toEqual([]);
    await virsh("define", own);
    const lost = await finished(slow);
    expect([lost.code, lost.json()]).toMatchObject([1, { error: { code: "E_DEFINE_FAILED", domain } }]);
    expect(await virsh("dumpxml", domain)).toContain(lab.image("vda"));
    await virsh("undefine", domain);
    const ran = await restore(...args);
    expect([ran.code, ran.stderr]).toEqual([0, ""]);
    expect(ran.json()).toMatchObject({ definition: { domain, uuid, defined: true } });
    const xml = await virsh("dumpxml", domain);
    expect(macsOf(xml)).toEqual([mac]);
    expect(xml).toContain(`<uuid>${uuid}</uuid>`);
    expect((await readdir(to)).sort()).toEqual([`${domain}.xml`, "vda.qcow2", "vdb.qcow2"]);
    await virsh("start", domain);
    for (const mode of ["full", "incremental"]) {
      const backup = await nbdpull("backup", domain, "--to", repo, "--json", "--scratch", "/var/tmp");
      expect([backup.code, backup.json()]).toMatchObject([0, { level: mode }]);
    }
    expect(await nbdpull("points", repo, "--json").then((points) => points.json())).toHaveLength(3);
  });

  it("keeps the restored disks if libvirt takes the definition no longer, and says how to continue", async () => {
    const name = newName("odd");
    const to = join(folder, "restored");
    const xml = join(to, `${name}.xml`);
    using front = new LibvirtInFront(folder);
    const env = front.env({ refuseDefinition: name });
    const args = ["restore", repo, lab.domain, "--json", "--to", to, `--define=${name}`];
    const ran = await runNbdpull(args, { env });
    expect([ran.code, ran.json()]).toMatchObject([
      1,
      { error: { code: "E_DEFINE_FAILED", domain: name, xml } },
    ]);
    expect(ran.stderr).toContain(`virsh define ${xml}`);
    expect((await readdir(to)).sort()).toEqual([`${name}.xml`, "vda.qcow2", "vdb.qcow2"]);
    await qemuImg("compare", "-f", "raw", "-F", "qcow2", copies.vda, join(to, "vda.qcow2"));
  });
});
