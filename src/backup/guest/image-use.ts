/**
 * Makes sure that nobody else uses the block devices of a domain that is off while they are read. A lock on
 * an image file keeps QEMU from starting; a lock on a device node does not, because libvirt's guests have
 * nodes of their own. So other users are looked for before and after, and what they may have done in between
 * is told by the kernel's counters of each device and by libvirt's events.
 */

import { stat } from "node:fs/promises";
import { hasCode, PreconditionError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { type BlockDevice, blockDeviceAt, countsWrites, deviceState } from "../host/block-device.js";
import { writersOf } from "../host/device-users.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/** As many as libvirt answers at a time: who stands further behind has less time for its answer. */
const ASKED_AT_ONCE = 4;

/** The images of a domain that is off. */
export class ImageUse {
  /** Those of them that are block devices. */
  readonly devices: readonly BlockDevice[];
  readonly #paths: readonly string[];
  readonly #libvirt: Libvirt;

  private constructor(libvirt: Libvirt, paths: readonly string[], devices: readonly BlockDevice[]) {
    this.#libvirt = libvirt;
    this.#paths = paths;
    this.devices = devices;
  }

  /** @param paths the paths of all images, on this host */
  static async of(libvirt: Libvirt, paths: readonly string[]): Promise<ImageUse> {
    const found = await Promise.all(paths.map(blockDeviceAt));
    return new ImageUse(
      libvirt,
      paths.filter((_, index) => found[index] === undefined),
      found.filter((device) => device !== undefined),
    );
  }

  /** A string that changes with every write to one of the images. */
  async state(): Promise<string> {
    const files = this.#paths.map(async (path) => {
      // The ctime would not do: even a failed attempt to start the domain changes the file's owner.
      const { size, mtimeNs } = await stat(path, { bigint: true });
      return `${size} ${mtimeNs}`;
    });
    return (await Promise.all([...files, ...this.devices.map(deviceState)])).join();
  }

  /** Paths of the devices whose writes the kernel doesn't count, so that `state` can't show them. */
  async uncounted(): Promise<string[]> {
    const counted = await Promise.all(this.devices.map(countsWrites));
    return this.devices.flatMap(({ path }, index) => (counted[index] ? [] : [path]));
  }

  /**
   * Only devices are looked at: QEMU's locks do it for files.
   * @throws {PreconditionError} `E_IMAGE_IN_USE`: somebody may write to one of the devices
   */
  async refuseOthers(): Promise<void> {
    if (this.devices.length === 0) return;
    const seen = await writersOf(this.devices);
    // Without CAP_SYS_PTRACE the processes of other users can't be seen, but libvirt knows its domains.
    const writers = seen.length > 0 ? seen : await this.#domainsWriting();
    if (writers.length === 0) return;
    const message = `a disk of the domain is in use by others, so its content would not be of one moment: ${writers.join("; ")}. Nothing was stored: shut that guest down, or end what uses the device, and begin the backup again`;
    throw new PreconditionError("E_IMAGE_IN_USE", message, { details: { writers } });
  }

  /** The running domains that have one of the devices as a disk. */
  async #domainsWriting(): Promise<string[]> {
    const names = await this.#libvirt.runningDomains();
    return (await allOrNone(names, ASKED_AT_ONCE, undefined, (name) => this.#devicesOf(name))).flat();
  }

  async #devicesOf(name: string): Promise<string[]> {
    const found: string[] = [];
    for (const { type, source, readOnly } of await this.#disksOf(name)) {
      if (type !== "block" || source === undefined || readOnly) continue;
      const device = await blockDeviceAt(source).catch(() => undefined);
      const ours = this.devices.find(({ number }) => number === device?.number);
      if (ours) found.push(`the running domain ${name} has ${ours.path}`);
    }
    return found;
  }

  async #disksOf(name: string) {
    try {
      return parseDomain(await this.#libvirt.domainXml(name)).disks;
    } catch (error) {
      if (hasCode(error, "E_NO_SUCH_DOMAIN")) return [];
      throw error;
    }
  }
}
