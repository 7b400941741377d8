/**
 * The attacks of QEMU's user on the job's folder: he exchanges it while it is made, so that root writes over
 * a file of root's; he makes folders in his part of it, so that it can't be removed and no backup begins any
 * more; and he is in it before the sockets of a domain that is off.
 */
import { chmod, chown, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { claimFolder } from "../../src/backup/guest/claim.js";
import type { Guest } from "../../src/backup/guest/guest.js";
import { JobFolder } from "../../src/backup/guest/job-folder.js";
import type { DomainDefinition } from "../../src/backup/libvirt/documents/domain-xml.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { ATTACKER, attack, attackMeanwhile, NO_ATTACKER, secretIn } from "../support/attacker.js";
import { describeUnless } from "../support/tools.js";

const QEMU = { uid: ATTACKER, gid: ATTACKER };
const key = {
  repositoryId: "1a2b3c4d-0000-4000-8000-000000000000",
  domainUuid: "f00dcafe-0000-4000-8000-000000000000",
};

/** Puts a folder with a link to the given file in the place of each that root has just made. */
const EXCHANGE = `
  for (my ($n, %seen) = 0; ; ) {
    mkdir "trap$n"; symlink $ARGV[0], "trap$n/owner.json";
    opendir my $here, "." or die; my @made = grep /^[.]nbdpull-/ && !$seen{$_}++, readdir $here; closedir $here;
    for (@made) { rename($_, "old$n") && rename("trap$n", $_) && $n++ }
  }`;

let above: string;
let parent: string;
beforeEach(async () => {
  above = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
  await chmod(above, 0o711);
  parent = await mkdtemp(join(above, "scratch-"));
  await chmod(parent, 0o1777);
});
afterEach(() => rm(above, { recursive: true, force: true }));

describeUnless(NO_ATTACKER, "the folder of a job", () => {
  it.each([
    ["somebody else's", () => chown(parent, ATTACKER, ATTACKER)],
    ["open to everybody, and not sticky", () => chmod(parent, 0o777)],
  ])("is not made where it can be exchanged: in a folder that is %s", async (_, give) => {
    await give();
    const secret = await secretIn(above);
    await using _attacker = attackMeanwhile(`cd '${parent}'; exec perl -e '${EXCHANGE}' '${secret.file}'`);
    const isUntouched = async (): Promise<boolean> =>
      (await readFile(secret.file, "utf8")) === secret.content;
    for (let round = 0; round < 100 && (await isUntouched()); round += 1) {
      const folder = JobFolder.at(parent, { ...key, domainUuid: `${key.domainUuid}-${round}` });
      await folder.claim(QEMU).catch(() => undefined);
    }
    expect(await isUntouched()).toBe(true);
    await expect(JobFolder.find(parent, key).then((found) => found.livingOwner())).rejects.toMatchObject({
      code: "E_SCRATCH_OWNER",
      message: expect.stringContaining(parent),
    });
  });

  it("is removed with all that QEMU's user makes in it", async () => {
    const folder = await JobFolder.find(parent, key);
    await folder.claim(QEMU);
    const deep = Array.from({ length: 100 }, () => "d").join("/");
    await attack(
      `cd '${folder.path}/qemu'; mkdir -p '${deep}'; touch '${deep}/file'; ln -s / link; mkfifo fifo`,
    );
    await folder.remove();
    expect(await readdir(parent)).toEqual([]);
  });

  it("is not QEMU's user's before it is lent, if the domain is off", async () => {
    const repository = await Repository.openOrCreate(join(above, "repo"));
    const domain = {
      name: "web",
      uuid: key.domainUuid,
      qemuUser: QEMU,
      disks: [],
    } as unknown as DomainDefinition;
    const libvirt = { runningJob: async () => ({}) } as unknown as Guest["libvirt"];
    const guest: Guest = { libvirt, domain, repository, ssh: undefined };
    const folder = await JobFolder.find(parent, key);
    await claimFolder(guest, folder, {});
    await expect(attack(`touch '${folder.path}/qemu/1.sock'`)).rejects.toThrow();
    await folder.lend(12_345);
    await expect(attack(`touch '${folder.path}/qemu/1.sock'`)).rejects.toThrow();
    expect(await readdir(join(folder.path, "qemu"))).toEqual([]);
    await folder.remove();
  });
});
