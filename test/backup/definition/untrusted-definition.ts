/** A definition as a repository has it, and what is made of it where the repository isn't trusted. */
import { type RestoredPlace, restoredDomain } from "../../../src/backup/definition/restored-domain.js";

export const VDA: RestoredPlace = { kind: "file", path: "/r/vda.qcow2", format: "qcow2" };
export const EMULATOR = "/usr/bin/qemu-system-x86_64";
export const QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0";

export function definition(devices: string, around = "", root = "type='kvm'"): string {
  return `<domain ${root} xmlns:qemu='${QEMU_NAMESPACE}'>
  <name>web</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  ${around}
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='/old/vda.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    ${devices}
  </devices>
</domain>
`;
}

export const restored = (
  xml: string,
  files: ReadonlyMap<string, string> = new Map(),
  emulators?: ReadonlySet<string>,
) =>
  restoredDomain(xml, "web2", {
    disks: new Map([["vda", VDA]]),
    files,
    lines: "/r/web2",
    trusted: false,
    emulators,
  });

export const made = (devices: string, around = "", files: ReadonlyMap<string, string> = new Map()) =>
  restored(definition(devices, around), files, new Set([EMULATOR]));

/** What was left out, without the line that says why. */
export function leftOut(warnings: readonly string[]): string[] {
  return warnings.flatMap((line) => (line.startsWith("left out: ") ? [line.slice("left out: ".length)] : []));
}
