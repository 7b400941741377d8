import { describe, expect, it } from "vitest";
import { withoutBitmap } from "../../../../src/backup/libvirt/documents/checkpoint-edit.js";

const XML = `<domaincheckpoint>
  <name>a &amp; b</name>
  <disks>
    <disk name='vda' checkpoint='bitmap' bitmap='a &amp; b'/>
    <disk name='vdb' checkpoint='bitmap' bitmap='a &amp; b'/>
    <disk name='sda' checkpoint='no'/>
  </disks>
  <domain type='kvm'><name>web</name><devices><disk type='file'/></devices></domain>
</domaincheckpoint>`;

describe("a checkpoint without one disk's bitmap", () => {
  it("is otherwise unchanged", () => {
    expect(withoutBitmap(XML, "vdb")?.replaceAll('"', "'")).toBe(
      `${XML.replace(
        "<disk name='vdb' checkpoint='bitmap' bitmap='a &amp; b'/>",
        "<disk name='vdb' checkpoint='no'/>",
      )}\n`,
    );
  });

  it("is undefined if no other disk has a bitmap", () => {
    expect(withoutBitmap(withoutBitmap(XML, "vdb") ?? "", "vda")).toBeUndefined();
  });
});
