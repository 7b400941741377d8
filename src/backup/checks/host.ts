/** Checks the programs on this host, and libvirt. */
import { shellWord } from "../base/shell-word.js";
import { toolProcess } from "../host/tool-process.js";
import { parseBackupSupport } from "../libvirt/documents/capabilities-xml.js";
import { canCompress } from "../qcow2/can-compress.js";
import { type Found, fail, pass, type Subject, warn } from "./check.js";

export async function lookAtNode(): Promise<readonly Found[]> {
  const zstd = canCompress("zstd") ? "with zstd" : "no zstd, which --compress=zstd needs: from 22.15 on";
  return [pass(`Node ${process.versions.node}, ${zstd}`)];
}

/** The tools that read and serve the images of domains that are off. */
export async function lookAtQemuTools(): Promise<readonly Found[]> {
  const { execa } = await import("execa");
  const found: Found[] = [];
  for (const tool of ["qemu-img", "qemu-nbd"]) {
    const { failed, stdout } = await execa(tool, ["--version"], {
      ...toolProcess(),
      ...{ reject: false, stdin: "ignore" },
    });
    const version = /\d+\.[\d.]+/.exec(stdout ?? "")?.[0] ?? "";
    found.push(
      failed
        ? warn("it isn't installed, and serves the images of domains that are off", INSTALL_TOOLS, tool)
        : pass(version, tool),
    );
  }
  return found;
}

const INSTALL_TOOLS = "apt install qemu-utils";

export async function lookAtLibvirt({ libvirt }: Subject): Promise<readonly Found[]> {
  const versions = await libvirt.versions();
  const uri = await libvirt.uri();
  const what = `libvirt ${versions.libvirt} with QEMU ${versions.hypervisor} at ${uri}`;
  if (!/^qemu(\+\w+)?:/.test(uri)) {
    return [
      fail("E_NOT_QEMU", `${uri} is no libvirt of QEMU's`, {
        advice: "name one with --connect qemu:///system",
        mend: "virsh -c qemu:///system version",
      }),
    ];
  }
  if (/^qemu(\+\w+)?:\/\/[^/]*\/session/.test(uri)) {
    return [warn(`${what}: it is one user's own, the system's domains are not there`, SYSTEM)];
  }
  return [pass(what)];
}

const SYSTEM = "sudo nbdpull doctor --connect qemu:///system";

/** Asks libvirt whether this QEMU supports backups with checkpoints. */
export async function lookAtSupport({ libvirt, domain }: Subject): Promise<readonly Found[]> {
  const supported = parseBackupSupport(await libvirt.domainCapabilities(domain?.platform));
  const whose = domain?.platform?.emulator ?? "the host's QEMU";
  if (supported === undefined) {
    return [pass(`libvirt doesn't say whether it makes backups with ${whose}, as older ones don't`)];
  }
  if (supported) return [pass(`libvirt makes backups with checkpoints with ${whose}`)];
  return [
    fail("E_NO_BACKUP_SUPPORT", `libvirt makes no backups with checkpoints with ${whose}`, {
      advice: "that takes libvirt 7.6 and QEMU 6.1 or newer",
      mend: "virsh version; virsh domcapabilities | grep backup",
    }),
  ];
}

/** Checks for AppArmor and SELinux: libvirt reports a denial by a profile as a lack of permissions. */
export async function lookAtConfinement({
  domain,
  security,
  server,
  scratchParent,
}: Subject): Promise<readonly Found[]> {
  const models = domain?.id === undefined ? (security?.confinedBy ?? []) : domain.confinedBy;
  if (models.length === 0) return [pass("neither AppArmor nor SELinux confines QEMU")];
  return models.map((model) => {
    if (server !== undefined) {
      return pass("scratch files are let through by libvirt, and no socket file is needed", model);
    }
    const cause = `it may keep QEMU from making a socket below ${scratchParent}`;
    return warn(`${cause}: --server tcp needs none`, MEND_CONFINEMENT[model]?.(scratchParent), model);
  });
}

const MEND_CONFINEMENT: Readonly<Record<string, (scratch: string) => string>> = {
  apparmor: (scratch) =>
    `echo ${shellWord(`${scratch}/nbdpull-*/qemu/nbd.sock rw,`)} >> /etc/apparmor.d/local/abstractions/libvirt-qemu`,
  selinux: () => "ausearch -m avc -c qemu-kvm | audit2allow -M nbdpull && semodule -i nbdpull.pp",
};
