/**
 * What is in a repository is opened by one module, below held folders. This counts who else opens paths: each
 * file that does is listed with what it opens, and none of it is in a repository.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Those that open what is in a repository: only names below a held folder, and no link at the end. */
const MODULE = [
  /^src\/backup\/host\//,
  /^src\/backup\/image\/image-file\.ts$/,
  /^src\/backup\/repository\/find-folders\.ts$/,
];

const ELSEWHERE: Readonly<Record<string, string>> = {
  "bin/commands/attach.ts": "the XML that the user named",
  "bin/commands/demo.ts": "a folder of its own",
  "bin/compiled-code.ts": "the user's cache folder",
  "bin/destination.ts": "where the user wants a restore",
  "bin/metrics-file.ts": "the metrics file",
  "bin/option-values.ts": "a certificate that the user named",
  "bin/settings.ts": "whether there is a configuration file",
  "bin/place-of.ts": "whether a setting is about the same repository",
  "bin/report-file.ts": "the page that the user wants",
  "bin/version.ts": "this package",
  "src/backup/checks/bitmaps-in-images.ts": "a guest's images",
  "src/backup/checks/scratch.ts": "a folder of its own, below the user's",
  "src/backup/checks/tls.ts": "QEMU's certificates",
  "src/backup/guest/confined-tool.ts": "/proc and /etc",
  "src/backup/guest/dead-trials.ts": "folders of trials below the job's",
  "src/backup/guest/disk-identity.ts": "a guest's images",
  "src/backup/guest/frozen-mark.ts": "/proc",
  "src/backup/guest/image-use.ts": "a guest's images",
  "src/backup/guest/job-connection.ts": "a folder of its own",
  "src/backup/guest/job-folder.ts": "the job's folder",
  "src/backup/guest/local-job-folder.ts": "the job's folder",
  "src/backup/guest/look-at-disk.ts": "a guest's images",
  "src/backup/guest/qemu-nbd.ts": "/proc, and the job's folder",
  "src/backup/guest/scratch-guard.ts": "the job's folder",
  "src/backup/guest/stopped-disk.ts": "a guest's images",
  "src/backup/libvirt/connection-uri.ts": "libvirt.conf",
  "src/backup/libvirt/rpc/dial-tls.ts": "libvirt's certificates",
  "src/backup/live/images-in-use.ts": "the images that a domain is on",
  "src/backup/live/live-server.ts": "its own socket, beside the disks",
  "src/backup/live/rehearse.ts": "a folder of its own",
  "src/backup/mount/fuse-mounts.ts": "/proc",
  "src/backup/mount/mount-folder.ts": "where the user wants a mount",
  "src/backup/mount/mount-point.ts": "/dev/fuse, and where the user wants a mount",
  "src/backup/restore/device-target.ts": "/sys",
  "src/backup/restore/restore.ts": "where the user wants a restore",
  "src/backup/restore/restored-definition.ts": "where the user wants the XML",
  "src/backup/s3/client.ts": "certificates that the user named",
  "src/backup/storage/kept-locally.ts": "a folder of its own",
  "src/backup/take/foreign-image.ts": "images that the user named",
  "src/backup/take/pull-file.ts": "images that the user named",
  "src/nbd/same-server.ts": "an NBD server's socket",
  "src/nbd/tls.ts": "certificates that the user named",
};

/** What takes a descriptor or nothing at all. */
const BY_DESCRIPTOR =
  /^(?:type .*|constants|close(?:Sync)?|f(?:data)?sync|f(?:stat|truncate)(?:Sync)?|fdatasync|ftruncateSync|read(?:Sync)?|write(?:Sync)?)$/;

function opensPaths(file: string): string[] {
  const source = readFileSync(join(root, file), "utf8");
  const imported = [
    ...source.matchAll(/^import (?!type )(\w+|\{[^}]*\}) from "(?:node:)?fs(?:\/promises)?";$/gm),
  ];
  return imported
    .flatMap(([, names = ""]) => names.replaceAll(/[{}]/g, "").split(","))
    .map((name) => name.trim())
    .filter((name) => name !== "" && !BY_DESCRIPTOR.test(name));
}

const opening = ["bin", "src"]
  .flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).map((name) => join(folder, name)),
  )
  .filter((file) => /\.tsx?$/.test(file) && opensPaths(file).length > 0)
  .filter((file) => !MODULE.some((room) => room.test(file)));

describe("paths of a repository", () => {
  it("are opened by one module: nobody else opens any that is not listed here with its reason", () => {
    expect(opening.sort()).toEqual(Object.keys(ELSEWHERE).sort());
  });

  it("are opened by no other room that stores or reads points", () => {
    const rooms =
      /^src\/backup\/(?:chain|compress|digest|export|pull|prove|prune|qcow2|repository|serve|verify|image|threads)\//;
    expect(opening.filter((file) => rooms.test(file))).toEqual([]);
    // The count sees what it counts: these two rooms open files, through the module.
    expect(opensPaths("src/backup/host/held-folder.ts").length).toBeGreaterThan(5);
    expect(opensPaths("src/backup/image/image-file.ts")).toEqual(["open", "unlink"]);
    expect(opensPaths("src/backup/repository/find-folders.ts")).toEqual(["stat"]);
  });
});
