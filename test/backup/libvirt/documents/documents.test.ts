import { describe, expect, it } from "vitest";
import {
  parseBackupSupport,
  parseHostSecurity,
} from "../../../../src/backup/libvirt/documents/capabilities-xml.js";
import { type Checkpoint, parseCheckpoint } from "../../../../src/backup/libvirt/documents/checkpoint-xml.js";
import { type DomainDefinition, parseDomain } from "../../../../src/backup/libvirt/documents/domain-xml.js";
import { jobInfoOf } from "../../../../src/backup/libvirt/job-info.js";
import { CHECKPOINT, DOMAIN } from "../dumps.js";

describe("the XML of a checkpoint", () => {
  it("gives its time, its parent and the disks it covers", () => {
    expect(parseCheckpoint(CHECKPOINT)).toEqual({
      name: "cp3",
      creationTime: 1795185949,
      parent: "cp2",
      disks: [{ name: "vda", bitmap: "cp3" }, { name: "vdb" }],
    } satisfies Checkpoint);
  });

  it("is read even if it includes the domain's definition, as without --no-domain", () => {
    const xml = CHECKPOINT.replace("</disks>", `</disks>${DOMAIN}`);
    expect(parseCheckpoint(xml)).toEqual(parseCheckpoint(CHECKPOINT));
  });

  it.each([
    ["without a time", "E_CHECKPOINT_XML_CREATIONTIME", CHECKPOINT.replace(/<creationTime>.*\n/, "")],
    ["without a name", "E_CHECKPOINT_XML_NAME", CHECKPOINT.replace("<name>cp3</name>", "")],
    ["with an unknown kind of disk", "E_CHECKPOINT_XML_DISK", CHECKPOINT.replace("='bitmap'", "='copy'")],
  ])("is refused %s", (_, code, xml) => {
    expect(() => parseCheckpoint(xml)).toThrow(expect.objectContaining({ code }));
  });
});

describe("the XML of a host's capabilities", () => {
  const capabilities = (secmodels: string): string =>
    `<capabilities><host><uuid>x</uuid><cpu/>${secmodels}</host><guest/></capabilities>`;

  it("gives QEMU's user, and the security models that confine it", () => {
    const dac =
      "<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+108</baselabel><baselabel type='qemu'>+64055:+108</baselabel></secmodel>";
    const none = "<secmodel><model>none</model><doi>0</doi></secmodel>";
    const apparmor = "<secmodel><model>apparmor</model><doi>0</doi></secmodel>";
    const qemuUser = { uid: 64055, gid: 108 };
    expect(parseHostSecurity(capabilities(none + dac))).toEqual({ qemuUser, confinedBy: [] });
    expect(parseHostSecurity(capabilities(apparmor + dac))).toEqual({ qemuUser, confinedBy: ["apparmor"] });
    expect(parseHostSecurity(capabilities(""))).toEqual({ qemuUser: undefined, confinedBy: [] });
    expect(() => parseHostSecurity(capabilities("<secmodel/>"))).toThrow(
      expect.objectContaining({ code: "E_CAPABILITIES_XML_MODEL" }),
    );
  });

  it("tells whether backups are supported, if libvirt reports that", () => {
    const features = (inside: string): string =>
      `<domainCapabilities><path>/q</path><features>${inside}</features></domainCapabilities>`;
    expect(parseBackupSupport(features("<backup supported='yes'/>"))).toBe(true);
    expect(parseBackupSupport(features("<gic supported='no'/><backup supported='no'/>"))).toBe(false);
    expect(parseBackupSupport(features(""))).toBeUndefined();
  });
});

describe("the XML of a domain", () => {
  it("tells which disks have an iothread: of their own, several, or their controller's", () => {
    const disk = (target: string, driver: string, address = "") =>
      `<disk type='file' device='disk'>${driver}<target ${target}/>${address}</disk>`;
    const onScsi = (index: number) => `<address type='drive' controller='${index}' bus='0' unit='0'/>`;
    const xml = `<domain type='kvm'><name>lab</name><uuid>02417a03-615c-4678-8d74-105cbe426935</uuid><devices>
      ${disk("dev='vda' bus='virtio'", "<driver name='qemu' type='qcow2' iothread='1'/>")}
      ${disk("dev='vdb' bus='virtio'", "<driver type='qcow2'><iothreads><iothread id='1'/></iothreads></driver>")}
      ${disk("dev='vdc' bus='virtio'", "<driver type='qcow2'/>", "<address type='pci' bus='0x01'/>")}
      ${disk("dev='sda' bus='scsi'", "<driver type='qcow2'/>", onScsi(0))}
      ${disk("dev='sdb' bus='scsi'", "<driver type='qcow2'/>", onScsi(1))}
      ${disk("dev='sdc' bus='sata'", "<driver type='qcow2'/>", onScsi(1))}
      <controller type='scsi' index='0' model='virtio-scsi'/>
      <controller type='scsi' index='1' model='virtio-scsi'><driver iothread='2' queues='2'/></controller>
    </devices></domain>`;
    const { disks } = parseDomain(xml);
    expect(disks.flatMap(({ target, hasIothread }) => (hasIothread ? [target] : []))).toEqual([
      "vda",
      "vdb",
      "sdb",
    ]);
  });

  it("gives its identity and its disks, including drives without media", () => {
    expect(parseDomain(DOMAIN)).toEqual({
      name: "lab",
      uuid: "02417a03-615c-4678-8d74-105cbe426935",
      id: 1,
      disks: [
        {
          target: "vda",
          device: "disk",
          type: "file",
          source: "/var/lib/libvirt/images/vda.qcow2",
          format: "qcow2",
          readOnly: false,
          hasIothread: false,
        },
        { target: "sda", device: "cdrom", type: "file", readOnly: true, hasIothread: false },
        {
          target: "vdb",
          device: "disk",
          type: "block",
          source: "/dev/vg/lv",
          format: "raw",
          readOnly: false,
          hasIothread: false,
        },
      ],
      platform: {
        type: "kvm",
        emulator: "/usr/bin/qemu-system-x86_64",
        arch: "x86_64",
        machine: "pc-q35-7.2",
      },
      confinedBy: [],
    } satisfies DomainDefinition);
  });

  it("tells of encrypted images, whether libvirt says it of the disk, its source or an image below", () => {
    const encryption = "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>";
    const below = `<backingStore type='file'><format type='qcow2'/><source file='/a'/><backingStore type='file'><format type='raw'/><source file='/b'>${encryption}</source></backingStore></backingStore>`;
    for (const part of [encryption, `<source file='/c'>${encryption}</source>`, below]) {
      const disk = `<disk type='file'>${part}<target dev='vdz'/></disk>`;
      const found = parseDomain(DOMAIN.replace("<devices>", `<devices>${disk}`)).disks;
      expect(found.map(({ target, isEncrypted }) => [target, isEncrypted ?? false])).toContainEqual([
        "vdz",
        true,
      ]);
      expect(found.filter(({ isEncrypted }) => isEncrypted)).toHaveLength(1);
    }
  });

  it("has no ID while the domain is off", () => {
    expect(parseDomain(DOMAIN.replace(" id='1'", "")).id).toBeUndefined();
  });

  it("is refused if the UUID or a target is missing", () => {
    expect(() => parseDomain(DOMAIN.replace(/<uuid>.*\n/, ""))).toThrow(
      expect.objectContaining({ code: "E_DOMAIN_XML_UUID" }),
    );
    expect(() => parseDomain(DOMAIN.replace("<target dev='vda' bus='virtio'/>", ""))).toThrow(
      expect.objectContaining({ code: "E_DOMAIN_XML_TARGET" }),
    );
  });
});

describe("libvirt's job info", () => {
  const info = (type: number, facts: Record<string, number | string | boolean>) =>
    jobInfoOf(type, new Map(Object.entries(facts)));

  it("describes a running backup", () => {
    const facts = {
      operation: 9,
      time_elapsed: 5104,
      disk_temp_used: 393216,
      disk_temp_total: 117506048,
    };
    expect(info(2, facts)).toEqual({
      active: true,
      type: "unbounded",
      operation: "backup",
      elapsedMs: 5104,
      scratchUsed: 393216,
      scratchTotal: 117506048,
    });
  });

  it("describes a backup that was ended on purpose, and one that failed", () => {
    const ended = { operation: 9, time_elapsed: 46, success: true, errmsg: "Operation canceled" };
    expect(info(3, ended)).toMatchObject({ active: false, type: "completed", success: true });
    const failed = { operation: 9, time_elapsed: 469, success: false, errmsg: "disk: No space left" };
    expect(info(4, failed)).toMatchObject({
      active: false,
      type: "failed",
      success: false,
      error: "disk: No space left",
    });
  });

  it("describes the absence of a job, and a job of another kind", () => {
    expect(info(0, {})).toEqual({ active: false, type: "none" });
    expect(info(1, { operation: 5 })).toMatchObject({ active: true, operation: "migration-out" });
    expect(info(1, { operation: 99 })).toMatchObject({ active: true, operation: "unknown" });
  });

  it("is refused if its type is not known", () => {
    for (const type of [-1, 6, 17]) {
      expect(() => info(type, {})).toThrow(expect.objectContaining({ code: "E_LIBVIRT_ANSWER" }));
    }
  });
});
