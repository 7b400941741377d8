import { describe, expect, it } from "vitest";
import { BackupError, PreconditionError } from "../../../../src/backup/base/errors.js";
import {
  type BackupJob,
  exportedDisks,
  parseBackupJob,
} from "../../../../src/backup/libvirt/documents/job-xml.js";
import { processorMs } from "../../../support/processor-time.js";
import { BLOCK_SCRATCH, FULL, FULL_WITH_BITMAP_NAME, INCREMENTAL, MIXED } from "../dumps.js";

const SOCKET = "<server transport='unix' socket='/s'/>";

/** A minimal job, as a person would write it. */
function job(disks: string, rest = SOCKET): string {
  return `<domainbackup mode='pull'>${rest}<disks>${disks}</disks></domainbackup>`;
}

function errorOf(xml: string): BackupError {
  try {
    parseBackupJob(xml);
  } catch (error) {
    if (error instanceof BackupError) return error;
    throw error;
  }
  throw new Error("it was accepted");
}

describe("the XML of a running job", () => {
  it("gives a full job over a socket whose path needs escaping", () => {
    expect(parseBackupJob(FULL)).toEqual({
      mode: "pull",
      server: { transport: "unix", socket: "/var/tmp/nbd & x'y.sock", tls: false },
      disks: [
        {
          name: "vda",
          backup: true,
          mode: "full",
          exportName: "vda",
          index: 3,
          scratch: { type: "file", path: "/var/tmp/scratch.vda" },
        },
        {
          name: "vdb",
          backup: true,
          mode: "full",
          exportName: "vdb",
          index: 4,
          scratch: { type: "file", path: "/var/tmp/scratch.vdb" },
        },
      ],
    } satisfies BackupJob);
  });

  it("gives an incremental job, and keeps the disk that is not backed up", () => {
    const parsed = parseBackupJob(INCREMENTAL);
    expect(parsed.incremental).toBe("cp1");
    expect(parsed.disks).toMatchObject([
      { name: "vda", mode: "incremental", incremental: "cp1", bitmap: "backup-vda" },
      { name: "vdb", backup: false },
    ]);
    expect(exportedDisks(parsed).map((disk) => disk.name)).toEqual(["vda"]);
  });

  it("gives a mix of full and incremental over TCP, under custom names", () => {
    const { server, disks } = parseBackupJob(MIXED);
    expect(server).toEqual({ transport: "tcp", host: "127.0.0.1", port: 10999, tls: false });
    expect(disks).toMatchObject([
      { name: "vda", mode: "incremental", exportName: "sys<disk", bitmap: "dirty-a" },
      { name: "vdb", mode: "full", exportName: "vdb" },
    ]);
  });

  it("takes a disk as full by its mode, whatever its bitmap name", () => {
    const [vda] = parseBackupJob(FULL_WITH_BITMAP_NAME).disks;
    expect(vda).toMatchObject({ name: "vda", mode: "full" });
    expect(vda).not.toHaveProperty("bitmap");
  });

  it("gives scratch on a block device, and an IPv6 address", () => {
    const { server, disks } = parseBackupJob(BLOCK_SCRATCH);
    expect(server).toMatchObject({ host: "::1" });
    expect(disks[0]).toMatchObject({ scratch: { type: "block", path: "/dev/loop0" } });
  });

  it("gives TLS", () => {
    const server = "<server transport='tcp' tls='yes' name='0.0.0.0' port='10809'/>";
    expect(parseBackupJob(job("<disk name='vda'/>", server)).server).toEqual({
      transport: "tcp",
      host: "0.0.0.0",
      port: 10809,
      tls: true,
    });
  });
});

describe("libvirt's defaults in a job's XML", () => {
  it("names export and bitmap after the disk", () => {
    const [vda] = parseBackupJob(job("<disk name='vda'/>", `<incremental>a</incremental>${SOCKET}`)).disks;
    expect(vda).toEqual({
      name: "vda",
      backup: true,
      mode: "incremental",
      incremental: "a",
      exportName: "vda",
      bitmap: "backup-vda",
    });
  });

  it("makes a disk with a base of its own incremental in a full job", () => {
    const { disks } = parseBackupJob(job("<disk name='vda' incremental='b'/><disk name='vdb'/>"));
    expect(disks).toMatchObject([
      { mode: "incremental", incremental: "b" },
      { mode: "full", exportName: "vdb" },
    ]);
  });

  it("lets a disk's own base and mode win over the job's", () => {
    const disks = "<disk name='vda' incremental='b'/><disk name='vdb' backupmode='full'/>";
    const parsed = parseBackupJob(job(disks, `<incremental>a</incremental>${SOCKET}`));
    expect(parsed.disks).toMatchObject([{ incremental: "b" }, { mode: "full" }]);
    expect(parsed.disks[1]).not.toHaveProperty("incremental");
  });

  it("assumes TCP and localhost if the server says neither", () => {
    expect(parseBackupJob(job("<disk name='vda'/>", "<server port='10809'/>")).server).toEqual({
      transport: "tcp",
      host: "localhost",
      port: 10809,
      tls: false,
    });
  });

  it("takes a document without a mode as a push job, and says what to do", () => {
    const push = "<domainbackup><disks><disk name='vda'><target file='/t'/></disk></disks></domainbackup>";
    for (const xml of [push, push.replace("<domainbackup>", "<domainbackup mode='push'>")]) {
      expect(errorOf(xml)).toBeInstanceOf(PreconditionError);
      expect(errorOf(xml)).toMatchObject({
        code: "E_PUSH_MODE",
        message: expect.stringContaining("mode='pull'"),
      });
    }
  });
});

describe("names in a job's XML", () => {
  it.each([
    ["XML's own entities, decoded once", "&lt;a&gt; &amp;amp; &quot;&apos;", "<a> &amp; \"'"],
    ["references to characters", "&#65;&#x42;", "AB"],
    ["what looks like a number", "1e3", "1e3"],
    ["leading zeroes", "007", "007"],
    ["blanks at both ends", " a ", " a "],
    ["other scripts", "диск-α-磁盘", "диск-α-磁盘"],
    ["names of an object's members", "__proto__", "__proto__"],
  ])("keep %s", (_, written, meant) => {
    expect(parseBackupJob(job(`<disk name='vda' exportname='${written}'/>`)).disks[0]).toMatchObject({
      exportName: meant,
    });
  });

  it("are found after a byte order mark, a declaration, comments and unknown elements", () => {
    const xml = `\uFEFF<?xml version="1.0"?><!-- <disk/> -->${FULL.replace("<disks>", "<future a='1'/><disks>")}`;
    expect(parseBackupJob(xml)).toEqual(parseBackupJob(FULL));
  });

  it("are found beside elements and attributes called __proto__, which are as unknown as others", () => {
    const xml = FULL.replace("<disks>", "<__proto__ mode='push'><server/></__proto__><disks __proto__='x'>");
    expect(parseBackupJob(xml)).toEqual(parseBackupJob(FULL));
    expect({}).not.toHaveProperty("server");
  });
});

describe("a job's XML that is wrong is refused, and the element is named:", () => {
  it.each([
    ["no server", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "")],
    ["two servers", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", SOCKET + SOCKET)],
    ["an unknown transport", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "<server transport='fd'/>")],
    ["no socket", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "<server transport='unix'/>")],
    ["no port", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "<server transport='tcp' name='h'/>")],
    ["port 0", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "<server port='0'/>")],
    ["port 65536", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "<server port='65536'/>")],
    ["a port with a sign", "E_BACKUP_XML_SERVER", job("<disk name='vda'/>", "<server port='+80'/>")],
    [
      "tls neither yes nor no",
      "E_BACKUP_XML_SERVER",
      job("<disk name='vda'/>", "<server port='1' tls='1'/>"),
    ],
    ["no disks", "E_BACKUP_XML_DISKS", `<domainbackup mode='pull'>${SOCKET}</domainbackup>`],
    ["an empty list of disks", "E_BACKUP_XML_DISKS", job("")],
    ["only disks that are not backed up", "E_BACKUP_XML_DISKS", job("<disk name='vda' backup='no'/>")],
    ["a disk without a name", "E_BACKUP_XML_DISK", job("<disk backup='yes'/>")],
    ["an empty disk", "E_BACKUP_XML_DISK", job("<disk/>")],
    ["a disk with an empty name", "E_BACKUP_XML_DISK", job("<disk name=''/>")],
    ["a disk that is text", "E_BACKUP_XML_DISK", job("<disk>vda</disk>")],
    ["a disk named twice", "E_BACKUP_XML_DISK", job("<disk name='vda'/><disk name='vda' exportname='x'/>")],
    [
      "an export named twice",
      "E_BACKUP_XML_DISK",
      job("<disk name='vda'/><disk name='vdb' exportname='vda'/>"),
    ],
    ["an increment without a base", "E_BACKUP_XML_DISK", job("<disk name='vda' backupmode='incremental'/>")],
    ["an unknown mode of a disk", "E_BACKUP_XML_DISK", job("<disk name='vda' backupmode='differential'/>")],
    ["an index that is not a number", "E_BACKUP_XML_DISK", job("<disk name='vda' index='1e3'/>")],
    ["an index that is too large", "E_BACKUP_XML_DISK", job(`<disk name='vda' index='${"9".repeat(40)}'/>`)],
    ["an empty base", "E_BACKUP_XML_INCREMENTAL", job("<disk name='vda'/>", `<incremental/>${SOCKET}`)],
    [
      "two bases",
      "E_BACKUP_XML_INCREMENTAL",
      job("<disk name='vda'/>", "<incremental>a</incremental>".repeat(2)),
    ],
    ["an unknown mode", "E_BACKUP_XML", job("<disk name='vda'/>").replace("pull", "tug")],
    ["another document", "E_BACKUP_XML", "<domainsnapshot/>"],
    ["two roots", "E_BACKUP_XML", `<domainbackup mode='push'/>${FULL}`],
    ["half a document", "E_BACKUP_XML", FULL.slice(0, 300)],
    ["an attribute given twice", "E_BACKUP_XML", job("<disk name='vda' name='vdb'/>")],
    ["nothing", "E_BACKUP_XML", ""],
    ["no XML at all", "E_BACKUP_XML", '{"mode":"pull"}'],
  ])("%s", (_, code, xml) => {
    expect(errorOf(xml)).toMatchObject({ code, message: expect.stringContaining("virsh backup-dumpxml") });
  });

  it("says which disk and which attribute", () => {
    const error = errorOf(job("<disk name='vda'/><disk name='vdb' backup='perhaps'/>"));
    expect(error.message).toContain("<disks><disk>[1], attribute backup, must be yes or no");
    expect(error.details).toEqual({ element: "disk", attribute: "backup" });
  });
});

describe("hostile XML is refused:", () => {
  const lol = Array.from({ length: 9 }, (_, n) => `<!ENTITY l${n + 1} "${`&l${n};`.repeat(10)}">`).join("");

  it.each([
    ["entities that multiply", `<!DOCTYPE x [<!ENTITY l0 "lol">${lol}]>${FULL.replace("vda", "&l9;")}`],
    ["an entity that reads a file", `<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>${FULL}`],
    ["a document type alone", `<!doctype domainbackup>${FULL}`],
    ["elements nested without end", job("<a>".repeat(100_000) + "</a>".repeat(100_000))],
    ["more than any job needs", job("<disk name='vda'/>", SOCKET + " ".repeat(5_000_000))],
  ])("%s", (_, xml) => {
    const before = processorMs();
    expect(errorOf(xml).code).toBe("E_BACKUP_XML");
    expect(processorMs() - before).toBeLessThan(3000);
  });
});
