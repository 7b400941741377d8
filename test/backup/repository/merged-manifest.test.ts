import { describe, expect, it } from "vitest";
import { withImagesAside } from "../../../src/backup/repository/merged-manifest.js";

describe("a manifest whose images lie aside", () => {
  it("keeps the names that images had before all merges", () => {
    const disks = [{ file: "vda.qcow2" }, { file: "vdb.qcow2" }];
    const once = withImagesAside(
      JSON.stringify({ disks }),
      new Map(disks.map(({ file }) => [file, `${file}~0000000a`])),
    );
    const twice = withImagesAside(once, new Map([["vda.qcow2~0000000a", "vda.qcow2~0000000b"]]));
    expect(JSON.parse(twice)).toMatchObject({
      disks: [{ file: "vda.qcow2~0000000b" }, { file: "vdb.qcow2~0000000a" }],
      aside: { "vda.qcow2~0000000b": "vda.qcow2", "vdb.qcow2~0000000a": "vdb.qcow2" },
    });
    expect(Object.keys(JSON.parse(twice).aside)).toHaveLength(2);
  });
});
