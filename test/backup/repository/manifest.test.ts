import { describe, expect, it } from "vitest";
import { DamageError } from "../../../src/backup/base/errors.js";
import { formatManifest, type Manifest, parseManifest } from "../../../src/backup/repository/manifest.js";

type Disk = Manifest["disks"][number];

const ID = "20261121T020000.004Z";
const PARENT = "20261120T113205.123Z";
const SHA256 = "0".repeat(64);

const full: Disk = {
  name: "vda",
  file: "vda.qcow2",
  format: "qcow2",
  mode: "full",
  parent: null,
  virtualSize: 1_000_000,
  clusterSize: 65_536,
  dirtyBytes: 1_000_000,
  dataBytes: 65_536,
  zeroBytes: 934_464,
  storedBytes: 65_536,
  exportName: "vda",
  bitmap: null,
  map: null,
  digests: null,
};
const increment: Disk = { ...full, mode: "incremental", parent: PARENT, bitmap: "b0" };
const identity = { source: "/i/vda.qcow2", format: "qcow2", device: "8:1", inode: "12", serial: null };
const nvram = { role: "nvram", file: "nvram.fd", source: "/n/web_VARS.fd", length: 3, sha256: SHA256 };
const map = { file: "vda.map", sha256: SHA256 };

function manifest(...disks: Disk[]): Manifest {
  return {
    format: "nbdpull-point",
    version: 1,
    id: ID,
    domain: { name: "guest", uuid: null },
    level: disks.every(({ mode }) => mode === "full") ? "full" : "incremental",
    checkpoint: null,
    createdAt: "2026-11-21T02:00:00.004Z",
    tool: "test",
    disks,
  };
}

const read = (value: object): Manifest => parseManifest(JSON.stringify(value), "point.json");

function refusal(value: object): unknown {
  try {
    read(value);
    return undefined;
  } catch (error) {
    return error;
  }
}

describe("a manifest", () => {
  it.each([
    ["a full disk", [full]],
    ["an increment", [increment]],
    ["a raw increment with its map", [{ ...increment, file: "vda.raw", format: "raw", map }]],
    ["a disk that is full in an increment", [increment, { ...full, name: "vdb", file: "vdb.qcow2" }]],
    ["where a disk was", [{ ...full, identity }]],
    ["the smallest clusters", [{ ...full, clusterSize: 16_384 }]],
    ["the largest clusters", [{ ...full, clusterSize: 2 ** 21 }]],
  ] satisfies [string, Disk[]][])("is read with %s", (_, disks) => {
    const point = manifest(...disks);
    expect(parseManifest(formatManifest(point), "point.json")).toEqual(point);
  });

  it("is read while an image lies aside", () => {
    const point = {
      ...manifest({ ...full, file: "vda.qcow2~0123abcd" }),
      aside: { "vda.qcow2~0123abcd": "vda.qcow2" },
    };
    expect(parseManifest(formatManifest(point), "point.json")).toEqual(point);
  });

  it("is read with the files that a domain boots with, and with what could not be kept", () => {
    const point = { ...manifest(full), files: [nvram], notKept: [{ what: "TPM state", reason: "swtpm's" }] };
    expect(parseManifest(formatManifest(point), "point.json")).toEqual(point);
  });

  it.each([
    ["a raw increment without a map", manifest({ ...increment, file: "vda.raw", format: "raw" })],
    ["a qcow2 increment with a map", manifest({ ...increment, map })],
    ["a raw full copy with a map", manifest({ ...full, file: "vda.raw", format: "raw", map })],
    ["a qcow2 full copy with a map", manifest({ ...full, map })],
    ["clusters of 0 bytes", manifest({ ...full, clusterSize: 0 })],
    ["clusters that are no power of two", manifest({ ...full, clusterSize: 65_536 + 512 })],
    ["clusters of 8 KiB", manifest({ ...full, clusterSize: 8192 })],
    ["clusters of 4 MiB", manifest({ ...full, clusterSize: 2 ** 22 })],
    ["two disks of one name", manifest(full, { ...full, file: "other.qcow2" })],
    ["level full and an incremental disk", { ...manifest(increment), level: "full" }],
    ["level incremental and only full disks", { ...manifest(full), level: "incremental" }],
    ["itself as parent", manifest({ ...increment, parent: ID })],
    ["a parent newer than itself", manifest({ ...increment, parent: "20261121T020000.005Z" })],
    ["an incremental disk without a parent", manifest({ ...increment, parent: null })],
    ["a full disk with a parent", manifest({ ...full, parent: PARENT })],
    ["a file in another folder", manifest({ ...full, file: "../vda.qcow2" })],
    ["no disk", manifest()],
    ["a kept file in another folder", { ...manifest(full), files: [{ ...nvram, file: "../nvram.fd" }] }],
    ["a kept file with a disk's name", { ...manifest(full), files: [{ ...nvram, file: "vda.raw" }] }],
    [
      "a kept file with the manifest's name",
      { ...manifest(full), files: [{ ...nvram, file: "point.json" }] },
    ],
    ["two kept files of one name", { ...manifest(full), files: [nvram, nvram] }],
    ["a disk's path without end", manifest({ ...full, identity: { ...identity, source: "x".repeat(5000) } })],
    ["a device that is no number", manifest({ ...full, identity: { ...identity, device: "8" } })],
    ["another version", { ...manifest(full), version: 2 }],
    ...[
      ["the manifest aside for an image", "vda.qcow2", "point.json"],
      ["the manifest's name for an image aside", "point.json~0123abcd", "point.json"],
      ["an image aside that is no disk's", "vdb.qcow2~0123abcd", "vdb.qcow2"],
      ["an image aside under its own name", "vda.qcow2", "vda.qcow2"],
    ].map(([what = "", file = "", name]): [string, object] => {
      const named = file.startsWith("vdb") ? full : { ...full, file };
      return [what, { ...manifest(named), aside: { [file]: name } }];
    }),
  ])("is refused with %s", (_, value) => {
    const error = refusal(value);
    expect(error).toBeInstanceOf(DamageError);
    expect(error).toMatchObject({ code: "E_MANIFEST" });
  });
});
