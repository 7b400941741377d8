import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Lab, virsh } from "./libvirt-lab.js";

const MiB = 1024 * 1024;

/**
 * Keeps libvirtd from hearing of what QEMU does, of any domain: one thread of libvirtd's sees to their
 * events, and waits for the domain of the first. Here that is `other`, whose block copy is ready while its
 * monitor is busy. Questions are answered meanwhile.
 * @param ms how long
 */
export async function stallEvents(other: Lab, ms: number): Promise<void> {
  await other.write("vda", 0, 3 * MiB, 0x33);
  // At 1 MiB/s that takes two seconds.
  const copy = join(other.folder, "copy.qcow2");
  await virsh("blockcopy", other.domain, "vda", copy, "--bandwidth", "1", "--transient-job");
  const device = "/machine/peripheral/virtio-disk0/virtio-backend";
  const busy = ["qemu-monitor-command", other.domain, "--hmp", `qemu-io -d ${device} "sleep ${ms}"`];
  virsh(...busy).catch(() => undefined);
  await sleep(3500);
}
