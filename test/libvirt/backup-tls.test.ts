import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { type Authority, type Folder, makeAuthority, makeFolder } from "../nbd/servers.js";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { anyLength, CuttingLine } from "../support/cutting-line.js";
import { giveCertificates } from "../support/hypervisor-certificates.js";
import { describeWithLibvirt, LAB_DISKS } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;
/** QEMU listens on one address of this machine, and the line on another one. */
const LINE = "127.0.0.2";

await describeWithLibvirt("a job served over TLS", () => {
  let guest: BackupLab;
  let folder: Folder;
  let ours: Authority;
  let strangers: Authority;
  beforeEach(async () => {
    folder = await makeFolder();
    [ours, strangers] = await Promise.all([
      makeAuthority(folder, "ours"),
      makeAuthority(folder, "strangers"),
    ]);
    guest = await BackupLab.start();
  });
  afterEach(async () => {
    await guest[Symbol.asyncDispose]();
    await folder[Symbol.asyncDispose]();
  });

  const flags = (ca: Authority, client: Authority): string[] => [
    ...["--tls-ca", join(ca.path, "ca-cert.pem")],
    ...["--tls-cert", join(client.path, "client-cert.pem")],
    ...["--tls-key", join(client.path, "client-key.pem")],
  ];

  it("is begun, pulled and attached to over TLS only, and only with trusted certificates", async () => {
    const server = ["--server", `tcp:localhost:${await freePort()}`, "--tls"];
    const without = await guest.run(...server);
    expectExit(without, 4);
    expect(without.json()).toMatchObject({ error: { code: "E_NO_CERTIFICATES" } });
    expect(await guest.checkpoints()).toEqual([]);
    await guest.expectNothingLeft();

    await using _ = await giveCertificates(ours);
    await guest.lab.write("vda", 0, 4 * MiB, 0x21);
    const full = await guest.take(...server, ...flags(ours, ours));
    await guest.lab.write("vda", 2 * MiB, MiB, 0x22);
    for (const refused of [[], flags(ours, strangers)]) {
      const ran = await guest.run(...server, ...refused);
      expectExit(ran, 1);
      expect(ran.json()).toMatchObject({ error: { code: expect.stringMatching(/^NBD_TLS/) } });
      await guest.expectNothingLeft();
    }
    expect(await guest.checkpoints()).toEqual([full.checkpoint]);
    const copies = await guest.copyNow();
    const next = await guest.take(...server, ...flags(ours, ours));
    expect(next.disks[0]).toMatchObject({ parent: full.id, dirtyBytes: MiB });
    await guest.expectPoint(next.id, copies);

    await guest.lab.write("vda", 9 * MiB, MiB, 0x23);
    await using job = await guest.lab.beginBackup({ transport: "tcp", tls: true });
    const attach = ["attach", guest.lab.domain, "--to", join(guest.folder, "attached"), "--json"];
    const stranger = await nbdpull(...attach);
    expectExit(stranger, 1);
    expect(stranger.json()).toMatchObject({ error: { code: expect.stringMatching(/^NBD_TLS/) } });
    expectExit(await nbdpull(...attach, ...flags(ours, ours)), 0);
    expect(job.xml).toContain("tls='yes'");
  }, 480_000);

  it("is pulled over a line that breaks, each time by a handshake of TLS", async () => {
    await using _ = await giveCertificates(ours);
    for (const disk of LAB_DISKS) await guest.lab.write(disk, MiB, 20 * MiB, 0x31);
    const lineTo = (port: number) =>
      CuttingLine.to({ host: "127.0.0.1", port }, anyLength(9, 4000, 3 * MiB), { host: LINE, port });
    const over = ["--host-override", LINE, ...flags(ours, ours)];
    const port = await freePort();
    {
      await using line = await lineTo(port);
      const copies = await guest.copyNow();
      const taken = await guest.take("--server", `tcp:localhost:${port}`, "--tls", ...over);
      expect(line.cuts).toBeGreaterThan(3);
      const outages = { connectionsLost: expect.any(Number), secondsWaited: expect.any(Number) };
      expect(taken.disks[0]).toMatchObject({ outages });
      await guest.expectPoint(taken.id, copies);
      await guest.expectNothingLeft();
    }
    await using job = await guest.lab.beginBackup({ transport: "tcp", tls: true });
    if (job.server.transport === "unix") throw new Error("a job over TCP is meant");
    await using line = await lineTo(job.server.port);
    const image = join(guest.folder, "pulled.raw");
    const uri = `nbds://localhost:${job.server.port}/vda`;
    const pulled = await nbdpull("pull", uri, image, "--json", ...over);
    expectExit(pulled, 0);
    expect(line.cuts).toBeGreaterThan(3);
    await job.end();
    const stopped = await guest.copyNow();
    await qemuImg("compare", "-f", "raw", "-F", "raw", image, stopped.vda);
  }, 480_000);
});
