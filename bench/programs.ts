import { accessSync, constants } from "node:fs";
import { delimiter, resolve } from "node:path";
import { execa } from "execa";

/** Something that a contender or a server needs, and that may not be there. */
export interface Program {
  readonly name: string;
  /** How to get it: said where it is missing. */
  readonly install: string;
  isThere(): boolean | Promise<boolean>;
}

function onPath(name: string, install: string): Program {
  return { name, install, isThere: () => findProgram(name) !== undefined };
}

/** The full path of a program, or undefined where it isn't installed. */
export function findProgram(name: string): string | undefined {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/local/sbin", "/usr/sbin"];
  return folders
    .map((folder) => resolve(folder, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

/** Debian's own Python: its libnbd module is for that one, not for another that comes first in PATH. */
export const PYTHON = "/usr/bin/python3";

/** The connection that both nbdpull and virtnbdbackup take by themselves when root runs them. */
export const LIBVIRT = "qemu:///system";

const python: Program = {
  name: PYTHON,
  install: "apt-get install python3",
  isThere: () => findProgram(PYTHON) !== undefined,
};

const libnbdModule: Program = {
  name: "libnbd for Python",
  install: "apt-get install python3 python3-libnbd",
  isThere: async () => (await execa(PYTHON, ["-c", "import nbd"], { reject: false })).exitCode === 0,
};

/** The system's libvirt, and what it takes to run a domain: that belongs to root. */
const libvirt: Program = {
  name: "libvirtd, as root",
  install:
    "apt-get install qemu-system-x86 libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients; virtlogd -d; libvirtd -d",
  isThere: async () => {
    if (process.getuid?.() !== 0 || findProgram("qemu-system-x86_64") === undefined) return false;
    const asked = await execa("virsh", ["-c", LIBVIRT, "version"], { reject: false, timeout: 30_000 });
    return !asked.failed;
  },
};

export const PROGRAMS = {
  qemuImg: onPath("qemu-img", "apt-get install qemu-utils"),
  qemuIo: onPath("qemu-io", "apt-get install qemu-utils"),
  qemuNbd: onPath("qemu-nbd", "apt-get install qemu-utils"),
  storageDaemon: onPath("qemu-storage-daemon", "apt-get install qemu-system-common"),
  nbdkit: onPath("nbdkit", "apt-get install nbdkit"),
  nbdcopy: onPath("nbdcopy", "apt-get install libnbd-bin"),
  nbdinfo: onPath("nbdinfo", "apt-get install libnbd-bin"),
  certtool: onPath("certtool", "apt-get install gnutls-bin"),
  cp: onPath("cp", "apt-get install coreutils"),
  sha256sum: onPath("sha256sum", "apt-get install coreutils"),
  strace: onPath("strace", "apt-get install strace"),
  cc: onPath("cc", "apt-get install gcc libc6-dev"),
  radosgw: onPath("radosgw", "apt-get install radosgw"),
  cephMon: onPath("ceph-mon", "apt-get install ceph-mon ceph-common"),
  cephOsd: onPath("ceph-osd", "apt-get install ceph-osd"),
  python,
  libnbdModule,
  libvirt,
  virtnbdbackup: onPath("virtnbdbackup", "apt-get install virtnbdbackup"),
} as const satisfies Record<string, Program>;

/** Those that are not installed. */
export async function missingOf(programs: readonly Program[]): Promise<Program[]> {
  const there = await Promise.all(programs.map((program) => program.isThere()));
  return programs.filter((_, index) => there[index] !== true);
}

/** @throws naming each that is not installed, and how to get it */
export async function demand(...programs: readonly Program[]): Promise<void> {
  const missing = await missingOf(programs);
  if (missing.length === 0) return;
  throw new Error(`not installed: ${missing.map(({ name, install }) => `${name} (${install})`).join(", ")}`);
}
