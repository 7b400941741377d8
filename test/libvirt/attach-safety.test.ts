/** What attach refuses to believe, and how it handles libvirt failures. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, Lab, type LabBackup } from "../support/libvirt-lab.js";
import { finished, nbdpull, type Ran, runNbdpull, startNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;

let lab: Lab;
let folder: string;
let repo: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-attach-"));
  repo = join(folder, "repo");
});
afterEach(async () => {
  await lab.abortJob();
  await rm(folder, { recursive: true, force: true });
});

/** Points, and everything else in the domain's folder. */
async function stored(): Promise<string[]> {
  return await readdir(join(repo, lab.domain)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
}

/** Waits for the first moment after `earliest` that is `ms` milliseconds into a second. */
async function untilPhase(earliest: number, ms: number): Promise<void> {
  const wait = earliest - Date.now() + ((ms - (earliest % 1000) + 1000) % 1000);
  await sleep(Math.max(0, wait));
}

function expectError(ran: Ran, code: number, error: string): void {
  const document = ran.stdout === "" ? undefined : ran.json();
  expect({ code: ran.code, document, stderr: ran.stderr }).toMatchObject({
    code,
    document: { error: { code: error } },
  });
}

await describeWithLibvirt("attach to somebody else's job", () => {
  // One domain for all tests: each ends its job and creates its own checkpoints.
  beforeAll(async () => {
    lab = await Lab.start();
    await lab.write("vda", 0, 4 * MiB, 0x11);
    await lab.write("vdb", 0, 4 * MiB, 0x12);
  });
  afterAll(async () => {
    await lab[Symbol.asyncDispose]();
  });

  describe("with an XML document besides the domain", () => {
    let backup: LabBackup;
    let file: string;
    beforeEach(async () => {
      await lab.beginBackup({ checkpoint: "x0" }).then((first) => first.end());
      backup = await lab.beginBackup({
        checkpoint: "x1",
        perDisk: {
          vda: { mode: "incremental", incremental: "x0", exportName: "first", exportBitmap: "changes" },
          vdb: { mode: "full" },
        },
      });
      file = join(folder, "job.xml");
    });
    afterEach(async () => {
      await backup.end();
      for (const name of ["x1", "x0"]) await lab.deleteCheckpoint(name);
    });

    const attached = async (xml: string, ...args: string[]): Promise<Ran> => {
      await writeFile(file, xml);
      return await nbdpull("attach", lab.domain, "--to", repo, "--xml", file, "--json", ...args);
    };

    it("refuses a document whose disks differ from the job's", async () => {
      const differing: [what: string, change: (xml: string) => string][] = [
        ["a disk left out", (xml) => xml.replace(/<disk name='vdb'.*?<\/disk>/s, "")],
        [
          "a disk that takes no part",
          (xml) => xml.replace("<disk name='vdb' backup='yes'", "<disk name='vdb' backup='no'"),
        ],
        ["another disk", (xml) => xml.replace("name='vdb'", "name='vdc'")],
        [
          "a mode",
          (xml) =>
            xml.replace("backupmode='incremental'", "backupmode='full'").replace(/ incremental='x0'/, ""),
        ],
        ["a base", (xml) => xml.replace("incremental='x0'", "incremental='x9'")],
        ["an export", (xml) => xml.replace("exportname='first'", "exportname='other'")],
        ["a bitmap", (xml) => xml.replace("exportbitmap='changes'", "exportbitmap='other'")],
      ];
      for (const [what, change] of differing) {
        const xml = change(backup.xml);
        expect([what, xml]).not.toEqual([what, backup.xml]);
        const ran = await attached(xml);
        const document = ran.stdout === "" ? {} : ran.json();
        expect([what, ran.code, document]).toMatchObject([what, 4, { error: { code: "E_XML_DIFFERS" } }]);
      }
      expect(await stored()).toEqual([]);
    });

    it("uses only the server's address from it", async () => {
      expectError(
        await attached(backup.xml.replace(/socket='[^']*'/, "socket='/nowhere/nbd.sock'")),
        4,
        "E_NO_PARENT",
      );
      await backup.end();
      backup = await lab.beginBackup({ disks: ["vda"] });
      const elsewhere = backup.xml.replace(/socket='[^']*'/, "socket='/nowhere/nbd.sock'");
      expectError(await attached(elsewhere), 1, "NBD_CONNECT_FAILED");
      expect(await stored()).toEqual([]);
      const ran = await attached(backup.xml);
      expect(ran.code).toBe(0);
      expect(await stored()).toHaveLength(1);
      const point = join(repo, lab.domain, (await stored())[0] ?? "", "point.json");
      expect(JSON.parse(await readFile(point, "utf8"))).toMatchObject({ domain: { uuid: lab.uuid } });
    });
  });

  it("refuses a checkpoint that was created just over a second after the job began", async () => {
    // The worst case: libvirt reports whole seconds, and a start late in a second hides most of the
    // difference.
    await untilPhase(Date.now(), 450);
    await using _ = await lab.beginBackup();
    await untilPhase(Date.now() + 1050, 850);
    await lab.createCheckpoint("late");
    const ran = await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "late", "--json");
    await lab.deleteCheckpoint("late");
    expectError(ran, 4, "E_CHECKPOINT_NEWER");
    expect(await stored()).toEqual([]);
  });

  it("creates no repository for a domain that does not exist or has no job", async () => {
    expectError(await nbdpull("attach", "mistyped", "--to", repo, "--json"), 4, "E_NO_SUCH_DOMAIN");
    expectError(await nbdpull("attach", lab.domain, "--to", repo, "--json"), 4, "E_NO_JOB");
    expect(await readdir(folder)).toEqual([]);
  });

  describe("with --end-job, when libvirt does not end the job", () => {
    const args = (): string[] => [
      "attach",
      lab.domain,
      "--to",
      repo,
      "--checkpoint",
      "e0",
      "--end-job",
      "--json",
    ];

    let backup: LabBackup;
    let front: LibvirtInFront;
    beforeEach(async () => {
      front = new LibvirtInFront(folder);
      backup = await lab.beginBackup({ checkpoint: "e0" });
    });
    afterEach(async () => {
      front[Symbol.dispose]();
      await backup.end();
      await lab.deleteCheckpoint("e0");
    });

    it("stores the point anyway, and warns", async () => {
      const env = front.env({ fail: "abort" });
      const ran = await runNbdpull(args(), { env });
      expect(ran.stderr).toMatch(/^warning: .*job/m);
      expect([ran.code, ran.json()]).toMatchObject([0, { id: (await stored())[0], jobEnded: false }]);
      const strict = await runNbdpull([...args(), "--strict"], { env });
      expect([strict.code, strict.json()]).toMatchObject([5, { id: (await stored())[1], jobEnded: false }]);
      expect(await stored()).toHaveLength(2);
    });

    it("stores the point anyway if it is interrupted while it waits", async () => {
      const run = startNbdpull(args(), { env: front.env({ hang: "abort" }) });
      await expect.poll(() => front.asked).toEqual(["abort"]);
      run.kill("SIGINT");
      await Promise.race([run.ended, sleep(3000)]);
      front.release();
      const ran = await finished(run);
      expect([ran.code, ran.json()]).toMatchObject([0, { id: (await stored())[0], jobEnded: false }]);
      expect(ran.stderr).toMatch(/^warning: .*job/m);
      expect(await stored()).toHaveLength(1);
    });
  });
});
