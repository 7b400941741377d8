import { nbdpullBackup } from "../contenders/nbdpull-backup.js";
import { virtnbdbackup } from "../contenders/virtnbdbackup.js";
import { guestScene } from "../guests.js";
import { LIBVIRT_MIB, memoryWithin } from "../targets.js";
import type { Workload } from "../workload.js";

export const libvirtFull: Workload = {
  name: "libvirt-full",
  title: "A domain of libvirt, backed up in full",
  about:
    "1 GiB of incompressible data in a 2 GiB qcow2 disk. From the command to its end: the job begun, all that the disk holds read and stored, the job ended, its checkpoint left for the next increment.",
  reference: "virtnbdbackup",
  contenders: [virtnbdbackup("full"), nbdpullBackup("full")],
  targets: [
    { contender: "nbdpull backup", metric: "wall", against: "virtnbdbackup", atMost: 0.5 },
    memoryWithin(LIBVIRT_MIB, "nbdpull backup"),
  ],
  setUp: guestScene,
};
