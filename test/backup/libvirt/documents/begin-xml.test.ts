import { describe, expect, it } from "vitest";
import {
  formatBackup,
  formatCheckpoint,
  type JobRequest,
} from "../../../../src/backup/libvirt/documents/begin-xml.js";
import { parseBackupJob } from "../../../../src/backup/libvirt/documents/job-xml.js";

const request: JobRequest = {
  server: { transport: "unix", socket: "/a & b/'nbd'.sock" },
  disks: [
    { name: "vda", take: { scratch: "/s/<vda>", base: "monday", bitmap: true } },
    { name: "vdb", take: { scratch: "/s/vdb", bitmap: false } },
    { name: "sda" },
  ],
};

describe("the documents that begin a job", () => {
  it("parse back to the request, as a running job's XML does", () => {
    expect(parseBackupJob(formatBackup(request))).toMatchObject({
      server: { transport: "unix", socket: "/a & b/'nbd'.sock" },
      disks: [
        { name: "vda", mode: "incremental", incremental: "monday", scratch: { path: "/s/<vda>" } },
        { name: "vdb", mode: "full", scratch: { path: "/s/vdb" } },
        { name: "sda", backup: false },
      ],
    });
    for (const tls of [false, true]) {
      const server = { transport: "tcp", host: "127.0.0.1", port: 10809, tls } as const;
      expect(parseBackupJob(formatBackup({ ...request, server })).server).toEqual(server);
    }
  });

  it("name every disk in the checkpoint, with bitmaps only for the disks that get one", () => {
    const xml = formatCheckpoint(request, "nbdpull-<1>");
    expect(xml).toContain("<name>nbdpull-&lt;1&gt;</name>");
    expect([...xml.matchAll(/<disk name="(\w+)" checkpoint="(\w+)"\/>/g)].map((m) => [m[1], m[2]])).toEqual([
      ["vda", "bitmap"],
      ["vdb", "no"],
      ["sda", "no"],
    ]);
  });
});
