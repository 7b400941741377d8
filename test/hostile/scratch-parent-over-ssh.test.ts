/** The attack: who can change the scratch folder on the hypervisor has root write there through his links. */
import { chmod, chown, mkdir, mkdtemp, readdir, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { SshPlace } from "../../src/backup/guest/ssh-job-folder.js";
import { Ssh } from "../../src/backup/host/ssh.js";
import { ATTACKER, NO_ATTACKER } from "../support/attacker.js";
import { describeUnless, findTool } from "../support/tools.js";

const NAME = "nbdpull-1a2b3c4d-0123456789ab";
const QEMU = { uid: 64_055, gid: 64_055 };

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** This host, as if it were reached by ssh: the command goes to a shell, as sshd does it. */
async function there(shell: string): Promise<SshPlace> {
  const program = join(folder, "ssh");
  await writeFile(
    program,
    `#!/bin/sh\nfor last; do :; done\n[ "$last" = "exec sh -s" ] && exec ${shell} -s\nexit 9\n`,
  );
  await chmod(program, 0o755);
  return new SshPlace(new Ssh({ host: "hv1", program, settings: [] }));
}

const SHELLS = ["sh", "bash --posix", "busybox sh"].filter((shell) => findTool(shell.split(" ")[0] ?? ""));

describeUnless(NO_ATTACKER, "a scratch folder on another host", () => {
  it.each(SHELLS)("is refused if another user can change a folder on the way (%s)", async (shell) => {
    const place = await there(shell);
    const made = async (name: string, mode: number, uid = 0): Promise<string> => {
      const path = join(folder, name);
      await mkdir(path);
      await chown(path, uid, uid);
      await chmod(path, mode);
      return path;
    };
    const theirs = await made("theirs", 0o755, ATTACKER);
    const within = join(theirs, "within");
    await mkdir(within);
    const open = await made("open", 0o777);
    const shared = await made("shared", 0o770);
    const sticky = await made("sticky", 0o1777);
    const inSticky = join(sticky, "theirs");
    await mkdir(inSticky);
    await chown(inSticky, ATTACKER, ATTACKER);
    const ours = await made("ours", 0o755);
    await symlink(ours, join(theirs, "link"));
    await symlink(join(theirs, "link"), join(folder, "to-their-link"));
    await symlink("ours", join(folder, "to-ours"));
    for (const parent of [
      theirs,
      within,
      open,
      shared,
      inSticky,
      join(folder, "to-their-link"),
      `${ours}/../theirs`,
    ]) {
      const path = `${parent}/${NAME}`;
      const refused = {
        code: "E_SCRATCH_OWNER",
        message: expect.stringMatching(/can change .* on hv1, .*--scratch/),
      };
      await expect(place.look(path), parent).rejects.toMatchObject(refused);
      await expect(place.create(path, { note: "{}", secret: "ab" }, QEMU), parent).rejects.toMatchObject(
        refused,
      );
      expect(await readdir(parent)).not.toContain(NAME);
    }
    for (const parent of [ours, sticky, join(folder, "to-ours")]) {
      const path = `${parent}/${NAME}`;
      expect(await place.look(path)).toBeUndefined();
      await place.create(path, { note: "{}", secret: "ab" }, QEMU);
      expect(await place.look(path), parent).toMatchObject({ isFolder: true, ours: true, note: "{}" });
      await place.renote(path, "[]");
      expect(await place.look(path), parent).toMatchObject({ note: "[]" });
      expect(await place.secret(path)).toBe("ab");
      expect((await stat(`${path}/secret`)).mode & 0o777).toBe(0o600);
      await place.remove(path);
      expect(await place.secret(path)).toBeUndefined();
      await place.tryOut(path, QEMU);
      expect((await readdir(parent)).filter((name) => name.includes("nbdpull"))).toEqual([]);
    }
    await expect(
      place.create(join(folder, "nowhere", NAME), { note: "{}", secret: "ab" }, QEMU),
    ).rejects.toMatchObject({
      code: "E_SCRATCH_PATH",
    });
    expect(await place.look(join(folder, "nowhere", NAME))).toBeUndefined();
  });
});
