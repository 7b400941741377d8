import { execa } from "execa";

/**
 * Without udev (in a container or a bare virtual machine), `/dev/kvm` may belong to root only. libvirt then
 * considers its capabilities of QEMU outdated each time and asks QEMU again: 2 s for a call that takes
 * milliseconds, and a minute to define a domain. This gives the device the group and mode of Debian's udev
 * rule. Never fails: where it can't, libvirt is as slow as it was.
 */
export async function openKvmToLibvirt(): Promise<void> {
  const run = (...command: readonly [string, ...string[]]) =>
    execa(command[0], command.slice(1), { reject: false });
  if ((await run("test", "-c", "/dev/kvm")).failed) return;
  if (!(await run("runuser", "-u", "libvirt-qemu", "--", "test", "-w", "/dev/kvm")).failed) return;
  await run("chgrp", "kvm", "/dev/kvm");
  await run("chmod", "0660", "/dev/kvm");
}
