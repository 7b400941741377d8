/** `attach` over a line that breaks: it goes on where libvirt confirms the job, and nowhere else. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { anyLength, CuttingLine } from "../support/cutting-line.js";
import { describeWithLibvirt, LAB_DISKS, type LabBackup } from "../support/libvirt-lab.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { SshHost } from "../support/ssh-host.js";

const MiB = 1024 * 1024;
/** QEMU listens on one address of this machine, and the line on another one. */
const LINE = "127.0.0.2";

interface Attached {
  readonly id: string;
  readonly jobEnded: boolean;
  readonly disks: readonly object[];
}

await describeWithLibvirt("attach over a line that breaks", () => {
  let guest: BackupLab;
  beforeEach(async () => {
    guest = await BackupLab.start();
    for (const disk of LAB_DISKS) await guest.lab.write(disk, MiB, 24 * MiB, 0x11);
  });
  afterEach(async () => {
    await guest[Symbol.asyncDispose]();
  });

  const args = (...more: readonly string[]): string[] => [
    ...["attach", guest.lab.domain, "--to", guest.repo, "--create", "--json", ...more],
  ];

  const copiesOf = async (job: LabBackup) => ({
    vda: await job.referenceCopy("vda"),
    vdb: await job.referenceCopy("vdb"),
  });

  function portOf({ server }: LabBackup): number {
    if (server.transport === "unix") throw new Error("a job over TCP is meant");
    return server.port;
  }

  it("stores every byte of the job of somebody else, whose server the line leads to", async () => {
    await using job = await guest.lab.beginBackup({ transport: "tcp" });
    const port = portOf(job);
    const lengths = anyLength(7, 300, 3 * MiB);
    await using line = await CuttingLine.to({ host: "127.0.0.1", port }, lengths, { host: LINE, port });
    const ran = await nbdpull(...args("--host-override", LINE));
    expectExit(ran, 0);
    const point = ran.json() as Attached;
    expect(line.cuts).toBeGreaterThan(3);
    const outages = { connectionsLost: expect.any(Number), secondsWaited: expect.any(Number) };
    expect(point).toMatchObject({ jobEnded: false, disks: [{ outages }, {}] });
    await guest.expectPoint(point.id, await copiesOf(job));
  }, 480_000);

  it("opens ssh again where the job is on another host", async () => {
    await using host = await SshHost.start();
    await using job = await guest.lab.beginBackup();
    const slowly = ["--limit-rate", "3M", "--request-size", "64K", "--prove-base", "none"];
    const remote = args("--connect", host.uri, ...slowly);
    const run = startNbdpull(remote, { inside: host.inside(guest.lab.folder) });
    await expect.poll(() => guest.inPartial()).toContainEqual(expect.stringMatching(/^\.?vda\./));
    await host.cut();
    const ran = await finished(run);
    expectExit(ran, 0);
    const point = ran.json() as Attached;
    expect(point.disks).toContainEqual(expect.objectContaining({ outages: expect.any(Object) }));
    await guest.expectPoint(point.id, await copiesOf(job));
  }, 480_000);

  it("is not connected again over TCP where XML alone tells of the job: another may listen there", async () => {
    await using job = await guest.lab.beginBackup({ transport: "tcp" });
    const port = portOf(job);
    const file = join(guest.folder, "job.xml");
    await writeFile(file, job.xml.replaceAll("127.0.0.1", LINE));
    const alone = ["attach", "--xml", file, "--domain", guest.lab.domain, "--to", guest.repo];
    const attach = async (lengths: Iterator<number> | undefined) => {
      await using line = await CuttingLine.to({ host: "127.0.0.1", port }, lengths, { host: LINE, port });
      return { ran: await nbdpull(...alone, "--create", "--json"), cuts: line.cuts };
    };
    const broken = await attach(anyLength(7, 2 * MiB, 3 * MiB));
    expect(broken.cuts).toBeGreaterThan(0);
    expectExit(broken.ran, 1);
    expect(broken.ran.json()).toMatchObject({ error: { code: expect.stringMatching(/^NBD_/) } });
    expect(await guest.points()).toEqual([]);
    const whole = await attach(undefined);
    expectExit(whole.ran, 0);
    await guest.expectPoint((whole.ran.json() as Attached).id, await copiesOf(job));
  }, 480_000);
});
