/** What the program makes of libvirt's answers, against a libvirt that says what a test scripts. */
import { describe, expect, it, vi } from "vitest";
import { PreconditionError } from "../../../src/backup/base/errors.js";
import { exportedDisks, parseBackupJob } from "../../../src/backup/libvirt/documents/job-xml.js";
import { freeze } from "../../../src/backup/libvirt/freeze.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { domainOf, type Script, ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const JOB_STATS = 298;
const BACKUP_XML = 422;
const ABORT = 164;
const BY_ID = 22;
const BY_NAME = 23;
const BY_UUID = 24;
const FREEZE = 335;
const STATE = 212;

const AGENT = "internal error: unable to execute QEMU agent command";
const LAB = { name: "lab", uuid: UUID };
const NO_DOMAIN = { refuse: 42, message: "Domain not found: no domain with matching name 'lab'" };
const NO_BACKUP = { refuse: 104, message: "Domain backup job id not found: no domain backup job present" };
const text = (value: string): XdrWriter => new XdrWriter().string(value);

async function withLibvirt<T>(
  script: Script,
  work: (libvirt: Libvirt, server: ScriptedLibvirt) => Promise<T>,
) {
  await using server = await ScriptedLibvirt.start(script);
  await using libvirt = new Libvirt({ connect: server.uri });
  return await work(libvirt, server);
}

/** A job of libvirt's `type` and `operation`. */
function job(type: number, operation: number): XdrWriter {
  return new XdrWriter().int(type).int(1).string("operation").int(1).int(operation);
}

describe("libvirt", () => {
  /** With the numbers and the texts of libvirt 9.0. */
  it.each<[code: string, number: number, said: string, ask: (libvirt: Libvirt) => Promise<unknown>]>([
    ["E_NO_SUCH_DOMAIN", 42, "Domain not found: no domain with matching uuid", (l) => l.backupXml(LAB)],
    [
      "E_DOMAIN_OFF",
      55,
      "Requested operation is not valid: domain is not running",
      (l) => l.beginBackup(LAB, ""),
    ],
    // In the language of the daemon's host.
    [
      "E_DOMAIN_OFF",
      55,
      "Die angeforderte Operation ist ungültig: Domain läuft nicht",
      (l) => l.jobInfo(LAB),
    ],
    ["E_DOMAIN_OFF", 38, "Unable to read from monitor: Connection reset by peer", (l) => l.backupXml(LAB)],
    ["E_DOMAIN_OFF", 38, "Unable to write to monitor: Broken pipe", (l) => l.backupXml(LAB)],
    ["E_DOMAIN_OFF", 1, "internal error: End of file from qemu monitor (vm='lab')", (l) => l.backupXml(LAB)],
    ["E_DOMAIN_OFF", 1, "internal error: Missing monitor reply object", (l) => l.backupXml(LAB)],
    ["E_DOMAIN_OFF", 1, "internal error: QEMU monitor was closed", (l) => l.backupXml(LAB)],
    ["E_DOMAIN_OFF", 1, "internal error: Error while processing monitor IO", (l) => l.backupXml(LAB)],
    ["E_DOMAIN_OFF", 9, "operation failed: domain is no longer running", (l) => l.backupXml(LAB)],
    [
      "E_NO_JOB",
      104,
      "Domain backup job id not found: no domain backup job present",
      (l) => l.backupXml(LAB),
    ],
    ["E_NO_CHECKPOINT", 103, "Domain checkpoint not found", (l) => l.checkpointXml(LAB, "x")],
    [
      "E_DOMAIN_BUSY",
      68,
      "Timed out during operation: cannot acquire state change lock",
      (l) => l.beginBackup(LAB, ""),
    ],
    ["E_DOMAIN_BUSY", 9, "cannot acquire state change lock due to max_queued limit", (l) => l.backupXml(LAB)],
    [
      "E_NO_AGENT",
      86,
      "Guest agent is not responding: QEMU guest agent is not connected",
      (l) => l.freeze(LAB, []),
    ],
    [
      "E_NO_AGENT",
      86,
      "Guest agent is not responding: Guest agent disappeared while executing command",
      (l) => l.mountpoints(LAB),
    ],
    [
      "E_NO_AGENT",
      86,
      "Guest agent is not responding: Guest agent not available for now",
      (l) => l.mountpoints(LAB),
    ],
    [
      "E_NO_AGENT",
      1,
      `${AGENT} 'guest-fsfreeze-freeze': Command x has been disabled: the command is not allowed`,
      (l) => l.freeze(LAB, []),
    ],
    [
      "E_GUEST_FROZEN",
      1,
      `${AGENT} 'guest-get-fsinfo': Command x has been disabled: the agent is in frozen state`,
      (l) => l.mountpoints(LAB),
    ],
    [
      "E_GUEST_FROZEN",
      1,
      `${AGENT} 'guest-fsfreeze-freeze': The command x has been disabled for this instance`,
      (l) => l.freeze(LAB, []),
    ],
    [
      "E_GUEST_FROZEN",
      1,
      `${AGENT} 'guest-fsfreeze-freeze-list': The command x has been disabled for this instance`,
      (l) => l.freeze(LAB, ["/"]),
    ],
    [
      "E_NO_AGENT",
      1,
      `${AGENT} 'guest-fsfreeze-freeze-list': Command x has been disabled: the command is not allowed`,
      (l) => l.freeze(LAB, ["/"]),
    ],
    ["E_NO_AGENT", 74, "argument unsupported: QEMU guest agent is not configured", (l) => l.mountpoints(LAB)],
    [
      "E_NO_CERTIFICATES",
      1,
      "unable to execute QEMU command 'object-add': Unable to access credentials",
      (l) => l.beginBackup(LAB, ""),
    ],
    ["E_LIBVIRT_ACCESS", 88, "access denied: 'QEMU' denied access", (l) => l.beginBackup(LAB, "")],
  ])("gives %s for error %i: %s", async (code, number, said, ask) => {
    const refusing: Script = Object.fromEntries(
      [298, 335, 349, 412, 421, 422].map((procedure) => [
        procedure,
        () => ({ refuse: number, message: said }),
      ]),
    );
    await withLibvirt(refusing, async (libvirt) => {
      const answer = ask(libvirt);
      await expect(answer).rejects.toBeInstanceOf(PreconditionError);
      const message = expect.stringContaining(`(libvirt: ${said})`);
      await expect(answer).rejects.toMatchObject({ code, message, details: { number, libvirt: said } });
    });
  });

  it("passes on an unknown refusal", async () => {
    const script = { [BACKUP_XML]: () => ({ refuse: 1, message: "internal error: QEMU is tired" }) };
    await withLibvirt(script, async (libvirt) => {
      await expect(libvirt.backupXml("lab")).rejects.toMatchObject({
        code: "E_LIBVIRT_REFUSED",
        message: "libvirt refused DOMAIN_BACKUP_GET_XML_DESC of lab: internal error: QEMU is tired",
      });
    });
  });

  it("finds a domain by name first, then by UUID, then by the number of its run", async () => {
    const script: Script = {
      [BY_NAME]: (args) => {
        const name = args.string();
        return ["lab", "1"].includes(name) ? domainOf(name) : NO_DOMAIN;
      },
      [BY_UUID]: () => domainOf("by uuid"),
      [BY_ID]: (args) => (args.int() === 2 ? domainOf("by number") : NO_DOMAIN),
    };
    await withLibvirt(script, async (libvirt, server) => {
      for (const name of ["lab", "1"]) expect(await libvirt.domainName(name)).toBe(name);
      expect(await libvirt.domainName(UUID.toUpperCase())).toBe("by uuid");
      expect(await libvirt.domainName("2")).toBe("by number");
      for (const name of ["3", "--all; $(reboot)", "-1", "99999999999999999999", ""]) {
        await expect(libvirt.domainName(name)).rejects.toMatchObject({ code: "E_NO_SUCH_DOMAIN" });
        expect(await libvirt.hasDomain(name)).toBe(false);
      }
      // A known domain is asked for by its UUID, without looking it up.
      server.calls.length = 0;
      await expect(libvirt.backupXml({ uuid: UUID, name: "shown" })).rejects.toThrow(/of shown/);
      expect(server.calls).toEqual([BACKUP_XML]);
    });
  });

  it("asks again while libvirt doesn't answer, until its patience ends", async () => {
    await using server = await ScriptedLibvirt.start();
    await using libvirt = new Libvirt({ connect: server.uri });
    await server.down();
    await expect(libvirt.domainName("lab")).rejects.toMatchObject({
      code: "E_LIBVIRT",
      message: expect.stringMatching(/ENOENT.*--connect/s),
    });
    const patient = libvirt.withPatience(30_000).domainName("lab");
    setTimeout(() => void server.up(), 300);
    expect(await patient).toBe("lab");
    await server.down();
    const started = performance.now();
    await expect(libvirt.withPatience(600).domainName("lab")).rejects.toMatchObject({ code: "E_LIBVIRT" });
    expect(performance.now() - started).toBeGreaterThan(600);
    const stop = new AbortController();
    const waiting = libvirt.withPatience(30_000).withSignal(stop.signal).domainName("lab");
    stop.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
  });

  it("repeats a question that a restart of libvirtd cut off, and says of an act that it was", async () => {
    let asked = 0;
    const script: Script = {
      [BACKUP_XML]: () => {
        asked += 1;
        return asked === 1 ? "hang up" : text("<domainbackup/>");
      },
      [FREEZE]: () => "hang up",
    };
    await withLibvirt(script, async (libvirt, server) => {
      expect(await libvirt.backupXml(LAB)).toBe("<domainbackup/>");
      await expect(libvirt.freeze(LAB, [])).rejects.toMatchObject({ code: "E_LIBVIRT" });
      expect(server.calls).toEqual([BACKUP_XML, BACKUP_XML, FREEZE]);
    });
  });

  it("does not wait for ever", async () => {
    await using server = await ScriptedLibvirt.start({ [BACKUP_XML]: () => "silence", 66: () => "silence" });
    await using unopened = new Libvirt({ connect: server.uri, timeoutMs: 100 });
    const unasked = { code: "E_LIBVIRT_TIMEOUT", message: expect.stringContaining("could not be asked") };
    await expect(unopened.backupXml(LAB)).rejects.toMatchObject(unasked);
    await server.down();
    await server.up({ [BACKUP_XML]: () => "silence" });
    await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 100 });
    await expect(libvirt.backupXml(LAB)).rejects.toMatchObject({ code: "E_LIBVIRT_TIMEOUT" });
  });

  it("ends when the signal fires, except for the instance that cleans up", async () => {
    await withLibvirt({ [BACKUP_XML]: () => "silence" }, async (libvirt) => {
      const controller = new AbortController();
      const reason = new Error("interrupted");
      const work = libvirt.withSignal(controller.signal);
      const answer = work.backupXml(LAB);
      setTimeout(() => controller.abort(reason), 100);
      await expect(answer).rejects.toBe(reason);
      await expect(work.domainName("lab")).rejects.toBe(reason);
      await expect(work.withSignal(undefined).domainName("lab")).resolves.toBe("lab");
    });
  });

  it("leaves a migration alone when it is to end a backup job", async () => {
    const script: Script = {
      [JOB_STATS]: () => job(1, 5),
      [BACKUP_XML]: () => NO_BACKUP,
      [ABORT]: () => new XdrWriter(),
    };
    await withLibvirt(script, async (libvirt, server) => {
      await libvirt.abortJob(LAB);
      expect(server.calls).toEqual([JOB_STATS, BACKUP_XML]);
    });
  });

  it("reports a cancelled job that doesn't end", async () => {
    const script: Script = {
      [JOB_STATS]: () => job(2, 9),
      [BACKUP_XML]: () => text("<domainbackup/>"),
      [ABORT]: () => new XdrWriter(),
    };
    await withLibvirt(script, async (libvirt) => {
      const patience = { stillMs: 100_000, libvirtMs: 200 };
      await expect(libvirt.abortJob(LAB, { patience })).rejects.toMatchObject({ code: "E_JOB_STUCK" });
    });
  });

  it("waits for a cancelled job as long as QEMU's part of it moves, and while libvirt is busy", async () => {
    const busy = { refuse: 68, message: "Timed out during operation: cannot acquire state change lock" };
    let asked = 0;
    // The scratch file grows, then libvirt can't answer, then the job is QEMU's no longer, then it is gone.
    const script: Script = {
      [JOB_STATS]: () => {
        asked += 1;
        if (asked >= 24) return new XdrWriter().int(0).int(0);
        if (asked >= 8 && asked <= 12) return busy;
        const stats = new XdrWriter().int(2).int(asked < 8 ? 2 : 1);
        if (asked < 8) stats.string("disk_temp_used").int(2).int(asked);
        return stats.string("operation").int(1).int(9);
      },
      [BACKUP_XML]: () => NO_BACKUP,
      [ABORT]: () => new XdrWriter(),
    };
    await withLibvirt(script, async (libvirt, server) => {
      await libvirt.abortJob(LAB, { patience: { stillMs: 250, libvirtMs: 5000 } });
      expect(asked).toBe(24);
      expect(server.calls.filter((call) => call === ABORT)).toHaveLength(1);
      asked = 13;
      const hasty = { stillMs: 250, libvirtMs: 0 };
      await expect(libvirt.abortJob(LAB, { patience: hasty })).rejects.toMatchObject({ code: "E_JOB_STUCK" });
    });
  });

  it("tells once that a cancelled job takes long to end", async () => {
    let slept = 0;
    const now = performance.now.bind(performance);
    const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + slept);
    let asked = 0;
    const script: Script = {
      [JOB_STATS]: () => {
        asked += 1;
        if (asked === 2) slept += 11_000;
        return asked < 4 ? job(2, 9) : new XdrWriter().int(0).int(0);
      },
      [BACKUP_XML]: () => NO_BACKUP,
      [ABORT]: () => new XdrWriter(),
    };
    const told: string[] = [];
    try {
      await withLibvirt(script, (libvirt) =>
        libvirt.abortJob(LAB, { onWait: (message) => told.push(message) }),
      );
    } finally {
      clock.mockRestore();
    }
    expect(told).toEqual([
      "the backup job of lab was cancelled and takes long to end: it is waited for as long as it moves",
    ]);
  });

  it("neither waits for nor cancels a job that another program began after ours", async () => {
    const theirs = `<domainbackup mode='pull'><server transport='unix' socket='/theirs'/><disks>
      <disk name='vda' backup='yes' type='file' backupmode='full' exportname='vda' index='7'>
        <driver type='qcow2'/><scratch file='/theirs/vda'/></disk></disks></domainbackup>`;
    const busy = { refuse: 68, message: "Timed out during operation: cannot acquire state change lock" };
    const isOurs = (xml: string): boolean =>
      exportedDisks(parseBackupJob(xml)).some(({ scratch }) => scratch?.path === "/ours");
    let isTaken = true;
    let isDescribed = true;
    const script: Script = {
      [JOB_STATS]: () => job(2, 9),
      [BACKUP_XML]: () => (isDescribed ? text(theirs) : NO_BACKUP),
      [ABORT]: () => (isTaken ? new XdrWriter() : busy),
    };
    await withLibvirt(script, async (libvirt, server) => {
      const patience = { stillMs: 300, libvirtMs: 300 };
      await libvirt.abortJob(LAB, { isKnown: true, isOurs, patience });
      await libvirt.abortJob(LAB, { isOurs, patience });
      isTaken = false;
      await libvirt.abortJob(LAB, { isKnown: true, isOurs, patience });
      expect(server.calls.filter((call) => call === ABORT)).toHaveLength(2);
      // It may be ours on its way out as well as theirs that begins.
      isDescribed = false;
      await expect(libvirt.abortJob(LAB, { isOurs, patience })).rejects.toMatchObject({
        code: "E_JOB_STUCK",
      });
      expect(server.calls.filter((call) => call === ABORT)).toHaveLength(2);
    });
  });

  it("cancels no job of another program's that began while libvirt was restarted", async () => {
    let hasAnswered = false;
    const script: Script = {
      [JOB_STATS]: () => job(2, 9),
      [BACKUP_XML]: () => text("<domainbackup mode='pull'/>"),
      // It is done, but the answer is lost.
      [ABORT]: () => {
        hasAnswered = true;
        return "hang up";
      },
    };
    await withLibvirt(script, async (libvirt, server) => {
      const isOurs = (): boolean => !hasAnswered;
      await libvirt.withPatience(5000).abortJob(LAB, { isKnown: true, isOurs });
      expect(server.calls.filter((call) => call === ABORT)).toHaveLength(1);
    });
  });

  it("refuses mountpoints of which the agent froze none", async () => {
    await withLibvirt({ [FREEZE]: () => new XdrWriter().int(0) }, async (libvirt) => {
      await expect(freeze(libvirt, LAB, ["/x"])).rejects.toMatchObject({ code: "E_NO_MOUNTPOINT" });
      await freeze(libvirt, LAB, []);
    });
  });

  it("says how a run has ended, as virsh does", async () => {
    let state = [5, 3];
    const said: Script = { [STATE]: () => new XdrWriter().int(state[0] ?? 0).int(state[1] ?? 0) };
    await withLibvirt(said, async (libvirt) => {
      expect(await libvirt.domainState(LAB, { reason: true })).toBe("shut off (crashed)");
      expect(await libvirt.domainState(LAB)).toBe("shut off");
      state = [1, 1];
      expect(await libvirt.domainState(LAB, { reason: true })).toBe("running");
    });
  });

  it("takes it for the end of a job if libvirt has none to abort", async () => {
    const script: Script = {
      [JOB_STATS]: () => new XdrWriter().int(0).int(0),
      [BACKUP_XML]: () => NO_BACKUP,
      [ABORT]: () => ({
        refuse: 55,
        message: "Requested operation is not valid: no job is active on the domain",
      }),
    };
    await withLibvirt(script, async (libvirt, server) => {
      await libvirt.abortJob(LAB, { isKnown: true });
      expect(server.calls).toEqual([ABORT, JOB_STATS, BACKUP_XML]);
    });
  });
});
