import { describe, expect, it } from "vitest";
import { parseManifest } from "../../../src/backup/repository/manifest.js";
import {
  changedManifest,
  replacingManifest,
  withImagesAside,
} from "../../../src/backup/repository/merged-manifest.js";

const ID = "20261129T220000.000Z";
const BYTES = { virtualSize: 65_536, dirtyBytes: 0, dataBytes: 0, zeroBytes: 0, storedBytes: 0 };
const SHA = "a".repeat(64);
const disk = (name: string) => ({
  ...{ name, file: `${name}.qcow2`, format: "qcow2", mode: "full", parent: null, clusterSize: 65_536 },
  ...{ ...BYTES, exportName: "", bitmap: null, map: null, reason: "first", new1: { of: name } },
  digests: { file: `${name}.digests`, algorithm: "xxh64", sha256: SHA, new2: [name] },
});
/** As a newer version may write it. */
const NEWER = {
  ...{ format: "nbdpull-point", version: 1, id: ID, level: "full", checkpoint: null, tool: "newer" },
  ...{ domain: { name: "vm", uuid: null, new3: 3 }, createdAt: "2026-11-29T22:00:00.000Z" },
  disks: [disk("vda"), disk("vdb")],
  files: [{ role: "nvram", file: "nvram", source: "/x", length: 1, sha256: SHA, new4: 4 }],
  new5: { deep: [{ er: 1 }] },
};

describe("a manifest that takes the place of another one", () => {
  const text = JSON.stringify(NEWER);
  const known = parseManifest(text, "a manifest");
  const [vda, vdb] = known.disks;
  if (!vda || !vdb) throw new Error("there is no disk");
  const { reason: _, ...others } = vda;
  const changed = { ...others, mode: "full" as const, dataBytes: 7, digests: null };
  const digests = { file: "vdb.digests~0000000a", algorithm: "sha256" as const, sha256: "b".repeat(64) };
  const after = { ...known, disks: [changed, { ...vdb, digests }] };
  const { reason: __, ...wanted } = { ...NEWER.disks[0], dataBytes: 7, digests: null };
  const expected = {
    ...NEWER,
    disks: [wanted, { ...NEWER.disks[1], digests: { ...digests, new2: ["vdb"] } }],
  };

  it("keeps what this program knows nothing of, and changes what it knows", () => {
    expect(JSON.parse(changedManifest(text, after))).toEqual(expected);
    const { revision, ...rest } = JSON.parse(replacingManifest(text, after)) as { revision: string };
    expect(rest).toEqual(expected);
    expect(revision).toMatch(/./);
    expect(JSON.parse(changedManifest(text, known))).toEqual(NEWER);
  });

  it("tells disks by their names, wherever they stand", () => {
    const swapped = { ...known, disks: known.disks.toReversed() };
    expect(JSON.parse(changedManifest(text, swapped))).toEqual({
      ...NEWER,
      disks: NEWER.disks.toReversed(),
    });
  });
});

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
