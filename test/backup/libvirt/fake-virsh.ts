import { PreconditionError } from "../../../src/backup/base/errors.js";
import { type DomainRef, Virsh } from "../../../src/backup/libvirt/virsh.js";
import { DOMAIN } from "./dumps.js";

/** A libvirt with one domain, whose answers a test sets: for what a real one can't be made to do. */
export class FakeVirsh extends Virsh {
  backup: string;
  domainNumber = 1;
  checkpoint = "";
  operation = 9;
  /** When the job began, by the hypervisor's clock. */
  startedAt = Date.now();
  /** How far the hypervisor's clock is ahead of ours. */
  aheadMs = 0;

  constructor(backup: string) {
    super();
    this.backup = backup;
  }

  override withPatience(): FakeVirsh {
    return this;
  }

  override async run(command: string, _domain: DomainRef): Promise<string> {
    switch (command) {
      case "dumpxml":
        return DOMAIN;
      case "domid":
        return String(this.domainNumber);
      case "backup-dumpxml":
        return this.backup;
      case "checkpoint-dumpxml":
        return this.checkpoint;
      case "domjobinfo": {
        const elapsed = Date.now() + this.aheadMs - this.startedAt;
        return `Job type: 2\n\noperation: ${this.operation}\ntime_elapsed: ${elapsed}\n`;
      }
      default:
        throw new PreconditionError("E_VIRSH", `no answer to ${command}`);
    }
  }
}
