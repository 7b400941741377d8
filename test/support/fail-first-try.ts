/**
 * `NBDPULL_TEST_TWICE=1` fails the first try of each test that would be repeated, at its end: whatever a try
 * leaves (folders, prefixes in a bucket, domains) must not be in the way of the second one.
 */
import { afterEach } from "vitest";

if (process.env["NBDPULL_TEST_TWICE"]) {
  afterEach(({ task: { result, retry } }) => {
    const repeats = typeof retry === "number" ? retry : (retry?.count ?? 0);
    if (repeats > 0 && result?.state === "pass" && !result.retryCount)
      throw new Error("the first try fails on purpose");
  });
}
