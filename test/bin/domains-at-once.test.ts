import { afterEach, expect, it, vi } from "vitest";
import { domainsAtOnce } from "../../bin/domains-at-once.js";
import { Output } from "../../bin/output.js";

afterEach(() => void vi.restoreAllMocks());

it.each([
  ["s3://backups/vms", 8, 12, false, 3, "--jobs 8: 3 domains at a time"],
  ["s3://backups/vms", 8, 12, true, 4, "--jobs 8: 4 domains at a time"],
  ["s3://backups/vms", 8, 3, false, 3, undefined],
  ["s3://backups/vms", undefined, 12, false, 2, undefined],
  ["s3://backups/vms", undefined, 0, true, 1, undefined],
  ["/srv/backups", 8, 12, false, 8, undefined],
])(
  "are as many as were asked for, or it is told: to %s, --jobs %s of %s",
  (to, jobs, count, isCopied, most, told) => {
    const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    const output = new Output({ json: false, quiet: false, verbose: false });
    expect(domainsAtOnce(output, { to, jobs, usual: 2, count, isCopied })).toBe(most);
    const lines = write.mock.calls.map(([line]) => line).join("");
    if (told === undefined) expect(lines).toBe("");
    else expect(lines).toContain(told);
  },
);
