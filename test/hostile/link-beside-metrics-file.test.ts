/** The attack: who may write to the collector's folder waits there with links that lead root elsewhere. */
import { chmod, chown, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { updateOfRun } from "../../bin/metrics.js";
import { MetricsFile } from "../../bin/metrics-file.js";
import { NO_ATTACKER } from "../support/attacker.js";
import { describeUnless } from "../support/tools.js";

const NOBODY = 65534;
const UPDATE = updateOfRun("/srv/backups", 0, 1_700_000_000_000);
let folder: string;
let victim: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  victim = join(folder, "victim");
  await writeFile(victim, "root's own\n", { mode: 0o600 });
  await chmod(folder, 0o711);
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function collectorsFolder(): Promise<string> {
  const collector = await mkdtemp(join(folder, "collector-"));
  await chown(collector, NOBODY, NOBODY);
  return collector;
}

/** As the attacker. */
async function asNobody(script: string): Promise<void> {
  await execa("setpriv", [
    "--reuid",
    String(NOBODY),
    "--regid",
    String(NOBODY),
    "--clear-groups",
    "sh",
    "-ec",
    script,
  ]);
}

async function expectUntouched(): Promise<void> {
  expect(await readFile(victim, "utf8")).toBe("root's own\n");
  expect((await stat(victim)).mode & 0o777).toBe(0o600);
}

describeUnless(NO_ATTACKER, "a metrics file in a folder that another user can write to", () => {
  it("is not written through a link that waits at the temporary name", async () => {
    const collector = await collectorsFolder();
    // The name of old: with the process ID, which can be seen or guessed.
    await asNobody(`ln -s ${victim} ${collector}/.web.prom.${process.pid}`);
    const path = join(collector, "web.prom");
    await (await MetricsFile.at(path)).update(UPDATE);
    await expectUntouched();
    expect(await readFile(path, "utf8")).toContain("nbdpull_run_exit_code");
    expect((await stat(path)).mode & 0o777).toBe(0o644);
    expect(await readdir(collector)).toHaveLength(2);
  });

  it("is refused if it is a link, also one that comes later, and nothing is left", async () => {
    const collector = await collectorsFolder();
    const path = join(collector, "web.prom");
    await asNobody(`ln -s ${victim} ${path}`);
    await expect(MetricsFile.at(path)).rejects.toMatchObject({ code: "E_METRICS" });
    await asNobody(`rm ${path}`);
    const file = await MetricsFile.at(path);
    await asNobody(`rm ${path}; ln -s ${victim} ${path}`);
    await expect(file.update(UPDATE)).rejects.toMatchObject({ code: "E_METRICS" });
    await expectUntouched();
    expect(await readdir(collector)).toEqual(["web.prom"]);
  });

  it("is refused if it is a pipe or a device, without waiting", async () => {
    const collector = await collectorsFolder();
    const path = join(collector, "web.prom");
    await asNobody(`mkfifo ${path}`);
    await expect(MetricsFile.at(path)).rejects.toMatchObject({ code: "E_METRICS" });
    await rm(path);
    await symlink("/dev/zero", path);
    await expect(MetricsFile.at(path)).rejects.toMatchObject({ code: "E_METRICS" });
    await rm(path);
    // The next run is as if nothing had been.
    await (await MetricsFile.at(path)).update(UPDATE);
    expect(await readFile(path, "utf8")).toContain("nbdpull_run_exit_code");
  });
});
