import { nbdpullBackup } from "../contenders/nbdpull-backup.js";
import { virtnbdbackup } from "../contenders/virtnbdbackup.js";
import { guestScene } from "../guests.js";
import { boundedMemory } from "../targets.js";
import type { Workload } from "../workload.js";

export const libvirtIncremental: Workload = {
  name: "libvirt-incremental",
  title: "What a domain has changed since its full backup",
  about:
    "The domain of libvirt-full, after its full backup by the same program: 100 MiB were written since, in pieces of 128 KiB all over the disk.",
  reference: "virtnbdbackup",
  contenders: [virtnbdbackup("incremental"), nbdpullBackup("incremental")],
  targets: [
    { contender: "nbdpull backup", metric: "wall", against: "virtnbdbackup", atMost: 0.8 },
    ...boundedMemory("nbdpull backup"),
  ],
  setUp: guestScene,
};
