import { nbdpullBackup } from "../contenders/nbdpull-backup.js";
import { virtnbdbackup } from "../contenders/virtnbdbackup.js";
import { guestScene } from "../guests.js";
import { LIBVIRT_MIB, memoryWithin } from "../targets.js";
import type { Workload } from "../workload.js";

const TRUSTING = "--prove-base=none";

export const libvirtIncremental: Workload = {
  name: "libvirt-incremental",
  title: "What a domain has changed since its full backup",
  about:
    "The domain of libvirt-full, after its full backup by the same program: 100 MiB were written since, in pieces of 128 KiB all over the disk. With `--prove-base=none` the base is taken on trust.",
  reference: "virtnbdbackup",
  contenders: [
    virtnbdbackup("incremental"),
    nbdpullBackup("incremental"),
    nbdpullBackup("incremental", TRUSTING),
  ],
  targets: [
    { contender: "nbdpull backup", metric: "wall", against: "virtnbdbackup", atMost: 0.35 },
    { contender: "nbdpull backup", metric: "cpu", against: "virtnbdbackup", atMost: 1.5 },
    { contender: "nbdpull backup", metric: "wall", against: `nbdpull backup ${TRUSTING}`, atMost: 1.03 },
    memoryWithin(LIBVIRT_MIB, "nbdpull backup"),
  ],
  setUp: guestScene,
};
