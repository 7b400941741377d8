import { nbdpullBackups } from "../contenders/nbdpull-backup.js";
import { virtnbdbackupEach } from "../contenders/virtnbdbackup.js";
import { manyGuestsScene } from "../guests.js";
import { scaled } from "../scale.js";
import { LIBVIRT_MIB, memoryWithin } from "../targets.js";
import type { Workload } from "../workload.js";

const DOMAINS = 20;

export const libvirtMany: Workload = {
  name: "libvirt-many",
  title: "Twenty small domains, backed up in full",
  about:
    "Twenty domains with a qcow2 disk of 64 MiB each, a quarter of it data. `nbdpull` takes them in one run, two at a time (`--jobs 2`), as `--all` does; virtnbdbackup one after the other, each in a run of its own.",
  reference: "virtnbdbackup",
  contenders: [virtnbdbackupEach(), nbdpullBackups()],
  targets: [
    { contender: "nbdpull backup", metric: "wall", against: "virtnbdbackup", atMost: 0.5 },
    memoryWithin(LIBVIRT_MIB, "nbdpull backup"),
  ],
  setUp: (stage) => manyGuestsScene(stage, scaled(DOMAINS, stage.scale, 1)),
};
