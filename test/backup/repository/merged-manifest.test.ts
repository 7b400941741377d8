import { describe, expect, it } from "vitest";
import { parseManifest } from "../../../src/backup/repository/manifest.js";
import {
  changedManifest,
  mergeState,
  replacingManifest,
  withImagesAside,
} from "../../../src/backup/repository/merged-manifest.js";
import { redated } from "../../../src/backup/repository/read-manifest.js";
import { redatedInStore } from "../../../src/backup/repository/redated-in-store.js";

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

describe("a manifest with deep fields that this program knows nothing of", () => {
  const deep = (depth: number): string =>
    JSON.stringify(NEWER).replace("{", `{"deep":${"[".repeat(depth)}${"]".repeat(depth)},`);
  const ways: Record<string, (text: string) => string> = {
    changed: (text) => changedManifest(text, parseManifest(text, "a manifest")),
    replaced: (text) => replacingManifest(text, parseManifest(text, "a manifest")),
    aside: (text) => withImagesAside(text, new Map([["vda.qcow2", "vda.qcow2~0000000a"]])),
    redated: (text) => redated(text, NEWER.createdAt),
    "redated in a store": (text) => redatedInStore(text, NEWER.createdAt, "etag"),
    undone: (text) => mergeState(Buffer.from(text))?.text() ?? "",
  };

  it.each(Object.entries(ways))("is never longer than it may be when it is %s", (_, change) => {
    const text = change(deep(1_450));
    expect(text.length).toBeLessThan(4 * 1024 * 1024);
    expect(text).toContain("[".repeat(1_450));
    expect(change(deep(100))).toContain("\n  ");
  });

  it.each(Object.entries(ways))("is refused if it can't be %s", (_, change) => {
    for (const text of [deep(10_000), deep(1).replace("[]", `["${"\\u0000".repeat(800_000)}"]`)])
      expect(() => change(text)).toThrow(expect.objectContaining({ code: "E_MANIFEST" }));
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
