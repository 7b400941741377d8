import { NBDPULL_BACKUP } from "../contenders/nbdpull-backup.js";
import { nbdpullRestore } from "../contenders/stored.js";
import { VIRTNBDBACKUP, virtnbdrestore } from "../contenders/virtnbdbackup.js";
import { backedUpScene } from "../guests.js";
import { PROGRAMS } from "../programs.js";
import { LIBVIRT_MIB, memoryWithin } from "../targets.js";
import type { Workload } from "../workload.js";

export const libvirtRestore: Workload = {
  name: "libvirt-restore",
  title: "A disk rebuilt from a full backup and an increment",
  about:
    "What libvirt-full and libvirt-incremental have stored, each by its own program, to a new qcow2 image. nbdpull proves every byte by its digest; virtnbdrestore writes through a qemu-nbd, whose processor time is counted too.",
  reference: "virtnbdrestore",
  contenders: [virtnbdrestore(), { ...nbdpullRestore("qcow2"), needs: [PROGRAMS.libvirt] }],
  targets: [
    { contender: "nbdpull restore qcow2", metric: "wall", against: "virtnbdrestore", atMost: 0.8 },
    memoryWithin(LIBVIRT_MIB, "nbdpull restore qcow2"),
  ],
  setUp: (stage) => backedUpScene(stage, { nbdpull: NBDPULL_BACKUP, virtnbdbackup: VIRTNBDBACKUP }),
};
