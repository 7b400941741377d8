/**
 * The tests of libvirt with that of Debian 13: libvirt 11, QEMU 10. They take minutes, and Debian 13 is
 * fetched once: `NBDPULL_TEST_NEWER_LIBVIRT=1`.
 */
import { execa } from "execa";
import { describe, expect, it } from "vitest";

const FILES = [
  "backup",
  "backup-events",
  "iothread",
  "libvirtd-restart",
  "resume",
  "restore-define",
  "scratch-full",
];

describe.skipIf(process.env["NBDPULL_TEST_NEWER_LIBVIRT"] !== "1")("libvirt 11 and QEMU 10", () => {
  it("pass the tests of the versions of Debian 12", async () => {
    const files = FILES.map((name) => `test/libvirt/${name}.test.ts`);
    const run = await execa("test/support/with-newer-libvirt.sh", ["vitest", "run", ...files], {
      env: { CI: "true" },
      reject: false,
    });
    expect({ code: run.exitCode, said: run.exitCode === 0 ? "" : run.stdout }).toEqual({ code: 0, said: "" });
  }, 1_800_000);
});
