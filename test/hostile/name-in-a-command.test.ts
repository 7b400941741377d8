/** The attack: a name that runs a command when an administrator pastes what a message or `doctor` shows. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { PreconditionError } from "../../src/backup/base/errors.js";
import { domainWord, shellWord } from "../../src/backup/base/shell-word.js";
import { failedBy } from "../../src/backup/checks/check.js";

it("quotes what is pasted into a shell", async () => {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-names-"));
  const hostile = [
    "web; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "it's",
    "a\nb",
    "~root",
    "#x",
    "",
    "!!",
    "a*",
  ];
  for (const name of hostile) {
    const { stdout } = await execa("sh", ["-c", `printf %s ${shellWord(name)}`], { cwd: folder });
    expect(stdout).toBe(name);
  }
  await expect(readFile(join(folder, "owned"))).rejects.toThrow("ENOENT");
  expect(domainWord("--all")).toBe("--domain='--all'");
  expect(domainWord("web-1.example")).toBe("web-1.example");
  await rm(folder, { recursive: true });
});

it("is quoted in the commands that mend what a check found", () => {
  const domain = { name: "web; reboot", uuid: "", disks: [], confinedBy: [] };
  const { mend } = failedBy(new PreconditionError("E_DOMAIN_OFF", "it is off"), { domain });
  expect(mend).toBe("virsh start 'web; reboot'");
});
