import { BackupError } from "../../../src/backup/base/errors.js";
import type { JobInfo } from "../../../src/backup/libvirt/job-info.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
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
  /** How far the hypervisor's clock is ahead of ours. */
  aheadMs = 0;

  constructor(backup: string) {
    super();
    this.backup = backup;
  }

  override withPatience(): FakeLibvirt {
    return this;
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

  override async ask<Args extends object, Answer>(
    _procedure: unknown,
    _domain: unknown,
    args: Args,
  ): Promise<Answer> {
    if (!("path" in args && this.endedInQemu.includes(String(args.path)))) return undefined as Answer;
    throw new BackupError("E_LIBVIRT_REFUSED", this.refusal.libvirt, { details: this.refusal });
  }

  override async jobInfo(): Promise<JobInfo> {
    const elapsedMs = Date.now() + this.aheadMs - this.startedAt;
    return { active: true, type: "unbounded", operation: this.operation, elapsedMs };
  }

  override async lastJobInfo(): Promise<JobInfo> {
    return { active: false, type: "none" };
  }
}
