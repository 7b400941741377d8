import { copyFile, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { expect, it } from "vitest";
import { describeWith } from "../support/tools.js";

const units = join(dirname(fileURLToPath(import.meta.url)), "../../docs/systemd");

it("no unit has a setting that would win over the configuration file", async () => {
  for (const name of await readdir(units)) {
    const text = await readFile(join(units, name), "utf8");
    expect([name, text]).toEqual([
      name,
      expect.not.stringMatching(/^Environment=NBDPULL_(REPOSITORY|SCRATCH)=/m),
    ]);
    expect([name, text]).toEqual([
      name,
      expect.not.stringMatching(/^ExecStart=.*NBDPULL_(REPOSITORY|SCRATCH)/m),
    ]);
  }
});

describeWith(["systemd-analyze"], "the systemd units", () => {
  it("are accepted by systemd without a message", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-units-"));
    try {
      const names = await readdir(units);
      expect(names).toHaveLength(13);
      for (const name of names) await copyFile(join(units, name), join(folder, name));
      const instances = names.map((name) => join(folder, name.replace("@.", "@web.")));
      const { stdout, stderr } = await execa("systemd-analyze", ["verify", ...instances]);
      expect(stdout + stderr).toBe("");
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
