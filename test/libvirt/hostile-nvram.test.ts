/**
 * QEMU's user replaces the NVRAM of a domain, in the folder that libvirt gave him, and root backs the domain
 * up.
 */
import { chmod, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";

const SECRET = "root:$y$secret";

interface WithFiles extends BackupJson {
  readonly files: readonly { readonly role: string }[];
}

/** Everything that is in the files of a folder and below. */
async function contentOf(folder: string): Promise<string> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  const texts = await Promise.all(files.map((file) => readFile(join(file.parentPath, file.name), "latin1")));
  return texts.join("\n");
}

await describeWithLibvirt("the NVRAM of a domain", () => {
  it("is kept as QEMU's user has it, running or off, but not what he put a link to", async () => {
    await using guest = await BackupLab.start({ unprivileged: true });
    const { lab } = guest;
    await chmod(guest.scratch, 0o711);
    await lab.powerOff();
    const [code, template] = [join(lab.folder, "code.fd"), join(lab.folder, "template.fd")];
    await writeFile(code, Buffer.alloc(256 * 1024, 0xf4));
    await writeFile(template, Buffer.alloc(128 * 1024, 0x5a));
    const loader = `<loader readonly='yes' type='pflash'>${code}</loader><nvram template='${template}'/>`;
    await lab.redefine((xml) => xml.replace("</os>", `${loader}</os><features><acpi/></features>`));
    const nvram = `/var/lib/libvirt/qemu/nvram/${lab.domain}_VARS.fd`;
    try {
      await lab.powerOn();
      const roles = ({ files }: WithFiles): string[] => files.map(({ role }) => role);
      const running = (await guest.take()) as WithFiles;
      expect([running.warnings, roles(running)]).toEqual([[], ["definition", "nvram"]]);
      await lab.powerOff();
      const off = (await guest.take()) as WithFiles;
      expect([off.warnings, roles(off)]).toEqual([[], ["definition", "nvram"]]);

      const { uid } = await stat("/var/lib/libvirt/qemu/nvram");
      expect(uid).not.toBe(0);
      const asQemu = (script: string) =>
        execa("setpriv", [
          "--reuid",
          String(uid),
          "--regid",
          String(uid),
          "--clear-groups",
          "sh",
          "-ec",
          script,
        ]);
      const secret = join(guest.folder, "shadow");
      await writeFile(secret, SECRET, { mode: 0o600 });
      for (const attack of [`ln -s ${secret} ${nvram}`, `mkfifo ${nvram}`, `truncate -s 900G ${nvram}`]) {
        await asQemu(`rm -f ${nvram}; ${attack}`);
        const ran = await guest.run();
        expectExit(ran, 0);
        const taken = ran.json() as WithFiles;
        expect([roles(taken), taken.warnings]).toEqual([
          ["definition"],
          [expect.stringMatching(/^NVRAM .*VARS\.fd is not kept: (it|\S+ is a link)/)],
        ]);
      }
      expect(await contentOf(guest.repo)).not.toContain(SECRET);
    } finally {
      await rm(nvram, { force: true });
    }
  }, 480_000);
});
