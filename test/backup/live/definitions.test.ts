import { describe, expect, it } from "vitest";
import { stopOnErrors, withPolicies } from "../../../src/backup/live/error-policies.js";

const DISKS = `<domain type='kvm'><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' error_policy='enospace' cache='none' io='native'/><target dev='vda'/></disk>
  <disk type='file' device='disk'><source file='/b'/><target dev='vdb'/></disk>
  <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda'/></disk>
</devices></domain>`;

describe("the definition of a guest whose disks are filled", () => {
  it("stops at errors, and says of them what it said before when all is done, whatever else was changed", () => {
    const { xml, before } = stopOnErrors(DISKS, ["vda", "vdb"], "stop");
    expect(xml.match(/error_policy="stop"/g)).toHaveLength(4);
    expect(xml).toMatch(/<driver name="qemu" type="raw" ?\/>/);
    const after = withPolicies(xml.replace("<devices>", "<devices><added/>"), before);
    expect(after).toContain("<added/>");
    expect(after).toContain('error_policy="enospace"');
    expect(after).not.toMatch(/="stop"|rerror/);
  });

  it("tells the guest of reads that fail, if it is to go on in spite of damage", () => {
    const { xml } = stopOnErrors(DISKS, ["vdb"], "report");
    expect(xml.match(/error_policy="stop" rerror_policy="report"/g)).toHaveLength(1);
    expect(xml).toContain('error_policy="enospace"');
  });
});
