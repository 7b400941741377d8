import { join } from "node:path";
import { defineConfig } from "vitest/config";

/** They put other functions in the place of Node's, or of a module's, before what uses those is loaded. */
const MOCKING = [
  "test/bin/config-file.test.ts",
  "test/backup/digest/digest-behind.test.ts",
  "test/backup/live/whole-images.test.ts",
  "test/backup/prune/merge-threads.test.ts",
  "test/backup/pull/flush-order.test.ts",
  "test/backup/restore/copy-threads.test.ts",
  "test/backup/verify/verify-threads.test.ts",
];
const LIBVIRT = "test/libvirt/**/*.test.ts";
const INTEROP = "test/interop/**/*.test.ts";
/** Stops libvirtd, which all others need, or keeps it from hearing of what happens. */
const ALONE = "test/libvirt/libvirtd-restart.test.ts";

/** They have nothing to do with libvirt, and take as long as the one that is alone with it. */
const BESIDE = ["test/nbd/**/*.test.ts", "test/backup/qcow2/**/*.test.ts"];

/** Files at a time, on two cores: they wait for a third of their time. */
const WORKERS = 5;

/**
 * A test of other people's servers is repeated once if it fails, and the summary names it: QEMU 7.2 crashes
 * or hangs by itself one time in many, and libvirt 9 hears of it half a minute late.
 */
const REPEATS = 1;

/** They take seconds; the slowest machine that was seen took thirty times as long for some. */
const SLOWEST_TEST = 360_000;

export default defineConfig({
  test: {
    // What a backup records of its checkpoints outside of the repository.
    env: { NBDPULL_STATE_FOLDER: join(import.meta.dirname, "node_modules", ".cache", "nbdpull-state") },
    pool: "forks",
    // A process takes one file after the other: to start it and to load our modules takes longer than most
    // files.
    isolate: false,
    setupFiles: ["test/support/equal-bytes.ts", "test/support/fail-first-try.ts"],
    hookTimeout: SLOWEST_TEST,
    // What is waited for comes within milliseconds, but not on a machine that is busy with other things; libvirt's
    // one thread for events has been half a minute late.
    expect: { poll: { timeout: 120_000 } },
    testTimeout: SLOWEST_TEST,
    reporters: ["default", "./test/support/summary-reporter.ts"],
    maxWorkers: WORKERS,
    projects: [
      {
        extends: true,
        test: { name: "alone", include: [ALONE], retry: REPEATS, sequence: { groupOrder: 0 } },
      },
      { extends: true, test: { name: "beside", include: BESIDE, sequence: { groupOrder: 0 } } },
      {
        extends: true,
        test: { name: "mocking", include: MOCKING, isolate: true, sequence: { groupOrder: 0 } },
      },
      // By their names: those of libvirt begin, as they take longest, and a domain of libvirt's is a test's
      // own.
      {
        extends: true,
        test: {
          name: "libvirt",
          include: [LIBVIRT],
          exclude: [ALONE],
          retry: REPEATS,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: { name: "interop", include: [INTEROP], retry: REPEATS, sequence: { groupOrder: 1 } },
      },
      {
        extends: true,
        test: {
          name: "main",
          include: ["test/**/*.test.ts"],
          exclude: [LIBVIRT, INTEROP, ...BESIDE, ...MOCKING],
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
