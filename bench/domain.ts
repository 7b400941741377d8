/**
 * A libvirt domain for one run. It needs no operating system: its processor never starts, so only the backup
 * costs QEMU time. Its disk is written through QEMU's monitor.
 */

import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { accessSync, constants } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import type { Image } from "./images.js";
import { openKvmToLibvirt } from "./open-kvm.js";
import { demand, LIBVIRT, PROGRAMS } from "./programs.js";

export const DISK = "vda";
/** Each domain that runs is removed when the process exits: that many listeners are no leak. */
const MOST_DOMAINS = 100;
process.setMaxListeners(MOST_DOMAINS);
/** Done once: libvirt would be slow with all that is measured. */
let kvm: Promise<void> | undefined;
const DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend";

/** The caller that starts it disposes of it. However the harness ends, no domain or checkpoint remains. */
export class Domain implements AsyncDisposable {
  readonly name: string;
  /** QEMU's process. */
  readonly pid: number;
  readonly #onExit: () => void;

  private constructor(name: string, pid: number, onExit: () => void) {
    this.name = name;
    this.pid = pid;
    this.#onExit = onExit;
  }

  /** @param folder of its definition, which goes last */
  static async start(disk: Image, folder: string): Promise<Domain> {
    await demand(PROGRAMS.libvirt);
    kvm ??= openKvmToLibvirt();
    await kvm;
    const name = `nbdpull-bench-${process.pid}-${randomBytes(4).toString("hex")}`;
    const remove = (): void => {
      process.off("exit", remove);
      removeDomain(name);
    };
    // Before the folder is removed, in which QEMU has its files.
    process.prependListener("exit", remove);
    try {
      const definition = join(folder, "domain.xml");
      await writeFile(definition, domainXml(name, disk));
      // By one virsh: it takes longer to start than libvirt to define a domain.
      await virsh(`define '${definition}'; start ${name} --paused`);
      return new Domain(name, Number(await readFile(`/run/libvirt/qemu/${name}.pid`, "utf8")), remove);
    } catch (error) {
      remove();
      throw error;
    }
  }

  /** Runs `qemu-io` commands in QEMU on the disk, as if the guest had written, so its bitmaps record them. */
  async io(commands: readonly string[]): Promise<void> {
    const asked = commands.map(
      (command) => `qemu-monitor-command ${this.name} --hmp 'qemu-io -d ${DEVICE} "${command}"'`,
    );
    // Many commands for each virsh process, because starting one takes longer than a write. They are not sent
    // to its standard input, because virsh keeps that as a history.
    while (asked.length > 0) await virsh(asked.splice(0, AT_ONCE).join("; "));
  }

  /**
   * Waits until libvirt knows that the last job has ended, for which a program that begins another one may not
   * wait: its one event thread can be busy with another domain for half a minute.
   */
  async idle(): Promise<void> {
    for (const begun = Date.now(); Date.now() - begun < MOST_IDLE_WAIT_MS; await sleep(100)) {
      if (/^Job type:\s+None/m.test(await virsh("domjobinfo", this.name))) return;
    }
  }

  /** Others can be removed at the same time: libvirt waits for a second or two until QEMU's process is gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const [program, ...args] of removalOf(this.name)) {
      await execa(program, args, { reject: false, stdio: "ignore", timeout: REMOVAL_MS });
    }
    process.off("exit", this.#onExit);
  }
}

/** In one argument, of which Linux takes 128 KiB. */
const AT_ONCE = 100;

const MOST_IDLE_WAIT_MS = 120_000;

async function virsh(...args: readonly string[]): Promise<string> {
  return (await execa("virsh", ["--connect", LIBVIRT, ...args])).stdout;
}

const REMOVAL_MS = 60_000;

function removalOf(name: string): readonly (readonly [string, ...string[]])[] {
  return [
    // What it can't do of these doesn't keep it from the rest.
    ["virsh", "--connect", LIBVIRT, `destroy ${name}; undefine --checkpoints-metadata ${name}`],
    ["rm", "-f", `/var/log/libvirt/qemu/${name}.log`],
  ];
}

/** Synchronous: for the last thing that a process does. */
function removeDomain(name: string): void {
  for (const [program, ...args] of removalOf(name)) {
    spawnSync(program, args, { stdio: "ignore", timeout: REMOVAL_MS });
  }
}

/** QEMU runs as root, so that it reaches the folder of the harness. */
function domainXml(name: string, { path, format }: Image): string {
  return `<domain type='${canUseKvm() ? "kvm" : "qemu"}'>
  <name>${name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='${format}' discard='unmap'/><source file='${path}'/><target dev='${DISK}' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
  <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>
</domain>
`;
}

function canUseKvm(): boolean {
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
