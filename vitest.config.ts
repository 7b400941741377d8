import { defineConfig } from "vitest/config";

const LIBVIRT = "test/libvirt/**/*.test.ts";

export default defineConfig({
  test: {
    pool: "forks",
    hookTimeout: 180_000,
    // What is waited for comes within milliseconds, but not on a machine that is busy with other things.
    expect: { poll: { timeout: 20_000 } },
    reporters: ["default", "./test/support/summary-reporter.ts"],
    projects: [
      {
        extends: true,
        test: {
          name: "main",
          include: ["test/**/*.test.ts"],
          exclude: [LIBVIRT],
          testTimeout: 60_000,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        // One file at a time, and patience: they share one libvirtd and the host's disk with everything else.
        extends: true,
        test: {
          name: "libvirt",
          include: [LIBVIRT],
          testTimeout: 180_000,
          maxWorkers: 1,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
