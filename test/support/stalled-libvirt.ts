import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { type Lab, virsh } from "./libvirt-lab.js";

const MiB = 1024 * 1024;
/** A little less than libvirt waits for a domain that is busy before it turns to the next event. */
const BUSY_MS = 28_000;
/** Of the block copy. */
const MIB_PER_SECOND = 1;
const COPIED_MIB = 4;
/** From the copy's end until libvirt has heard of it. */
const NOTICE_MS = 1500;

/**
 * Keeps libvirtd from hearing of what QEMU does, of any domain: one thread of libvirtd's sees to their
 * events, and waits for the domain of the first. Here that is `other`, whose block copy is ready while its
 * monitor is busy. Questions are answered meanwhile. It lasts for less than half a minute, or until it is
 * disposed of, which ends the domain.
 */
export async function stallEvents(other: Lab): Promise<AsyncDisposable> {
  await other.write("vda", 0, COPIED_MIB * MiB, 0x33);
  // A repeated test finds the copy of the first try.
  const copy = join(other.folder, `copy-${randomBytes(4).toString("hex")}.qcow2`);
  const slowly = ["--bandwidth", `${MIB_PER_SECOND}`, "--transient-job"];
  const begun = performance.now();
  await virsh("blockcopy", other.domain, "vda", copy, ...slowly);
  const device = "/machine/peripheral/virtio-disk0/virtio-backend";
  const busy = ["qemu-monitor-command", other.domain, "--hmp", `qemu-io -d ${device} "sleep ${BUSY_MS}"`];
  virsh(...busy).catch(() => undefined);
  await expect.poll(() => virsh("domcontrol", other.domain), { interval: 10 }).toMatch(/^occupied/);
  const ready = begun + (COPIED_MIB / MIB_PER_SECOND) * 1000;
  // Otherwise the machine is too slow to do this in time, and libvirt has heard of the copy before.
  expect(performance.now()).toBeLessThan(ready);
  await sleep(ready + NOTICE_MS - performance.now());
  return {
    [Symbol.asyncDispose]: async () => {
      const pid = Number(await readFile(`/run/libvirt/qemu/${other.domain}.pid`, "utf8"));
      process.kill(pid, "SIGKILL");
    },
  };
}
