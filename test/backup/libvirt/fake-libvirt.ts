import { BackupError, PreconditionError } from "../../../src/backup/base/errors.js";
import type { JobInfo } from "../../../src/backup/libvirt/job-info.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import type { LibvirtCalls } from "../../../src/backup/libvirt/libvirt-calls.js";
import { DOMAIN } from "./dumps.js";

/** A libvirt with one domain, whose answers a test sets: for what a real one can't be made to do. */
export class FakeLibvirt extends Libvirt {
  backup: string;
  domainNumber = 1;
  checkpoint = "";
  operation = "backup";
  /** When the job began, by the hypervisor's clock. */
  startedAt = Date.now();
  /** The disks whose job QEMU has ended. */
  endedInQemu: readonly string[] = [];
  /** What it answers when it is asked for something of such a disk, and the number of its error. */
  refusal = {
    libvirt: "Job 'backup' in state 'concluded' cannot accept command verb 'set-speed'",
    number: 1,
  };
  libvirtVersion = "9.0.0";
  /** Bytes of its disks, and of the scratch space that it counts for the job. */
  sizes: { readonly disk: number; readonly scratch: number | undefined } = { disk: 0, scratch: 0 };
  /** How often it says next that another operation holds the domain. */
  busyAnswers = 0;
  /** How far the hypervisor's clock is ahead of ours. */
  aheadMs = 0;

  constructor(backup: string) {
    super();
    this.backup = backup;
  }

  override withPatience(): FakeLibvirt {
    return this;
  }

  override async version(): Promise<string> {
    return this.libvirtVersion;
  }

  override async diskSize(): Promise<number> {
    return this.sizes.disk;
  }

  override async domainXml(): Promise<string> {
    return DOMAIN;
  }

  override async domainId(): Promise<number> {
    return this.domainNumber;
  }

  override async backupXml(): Promise<string> {
    return this.backup;
  }

  override async checkpointXml(): Promise<string> {
    return this.checkpoint;
  }

  override get calls(): LibvirtCalls {
    const ask = async (_procedure: unknown, _domain: unknown, args: object): Promise<void> => {
      if (!("path" in args && this.endedInQemu.includes(String(args.path)))) return;
      throw new BackupError("E_LIBVIRT_REFUSED", this.refusal.libvirt, { details: this.refusal });
    };
    return { ask } as unknown as LibvirtCalls;
  }

  override async jobInfo(): Promise<JobInfo> {
    this.busyAnswers -= 1;
    if (this.busyAnswers >= 0) throw new PreconditionError("E_DOMAIN_BUSY", "another operation holds it");
    const elapsedMs = Date.now() + this.aheadMs - this.startedAt;
    const { scratch: scratchTotal } = this.sizes;
    return { active: true, type: "unbounded", operation: this.operation, elapsedMs, scratchTotal };
  }

  override async lastJobInfo(): Promise<JobInfo> {
    return { active: false, type: "none" };
  }
}
