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
          // They take seconds; the slowest machine that was seen took thirty times as long for some.
          testTimeout: 240_000,
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
          testTimeout: 360_000,
          maxWorkers: 1,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
