/** `nbdpull info`, held against nbdinfo. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { makeFolder, startNbdkit } from "../nbd/servers.js";
import { nbdpull } from "../support/nbdpull.js";
import { describeWith } from "../support/tools.js";

interface Info {
  readonly protocol: string;
  readonly exports: readonly Record<string, unknown>[];
  readonly errors?: readonly Record<string, unknown>[];
}

/** Lists three exports with descriptions, which no other reply has, and opens all but "locked". */
const THREE_EXPORTS = `#!/bin/sh
case "$1" in
  list_exports) printf 'INTERLEAVED\\nfirst\\nthe first disk\\nlocked\\nnot for you\\nlast\\nthe last disk\\n' ;;
  open) if [ "$3" = locked ]; then echo 'EPERM the key is missing' >&2; exit 1; fi; echo "$3" ;;
  get_size) echo 1M ;;
  pread) dd if=/dev/zero bs=65536 count=$(( ($3 + 65535) / 65536 )) 2>/dev/null | head -c "$3" ;;
  *) exit 2 ;;
esac
`;

describeWith(["nbdkit", "nbdinfo"], "information about exports", () => {
  it("has the descriptions of the server's list, and one export that can't be opened hides no other", async () => {
    await using folder = await makeFolder();
    const script = join(folder.path, "three.sh");
    await writeFile(script, THREE_EXPORTS, { mode: 0o755 });
    await using server = await startNbdkit(folder, "sh", script);

    const ran = await nbdpull("info", "--list", "--json", server.uri);
    expect(ran.code).toBe(4);
    expect(ran.stderr).toMatch(/^nbdpull: NBD_\w+: export "locked": the server refused GO/);
    const { exports, errors } = ran.json() as Info;
    expect(exports.map((each) => [each["export-name"], each["description"]])).toEqual([
      ["first", "the first disk"],
      ["last", "the last disk"],
    ]);
    expect(errors).toMatchObject([{ "export-name": "locked", code: expect.stringMatching(/^NBD_/) }]);

    const text = await nbdpull("info", "--list", server.uri);
    expect(text.code).toBe(4);
    expect(text.stdout).toMatch(/^export "first" \(the first disk\)$/m);
    expect(text.stdout).toMatch(/^export "last" \(the last disk\)$/m);
    expect((await nbdpull("info", server.uri.replace("/?", "/locked?"))).code).not.toBe(0);
  });

  it.each([
    ["newstyle-fixed", []],
    ["newstyle", ["--mask-handshake=0"]],
  ] as const)("says by which handshake it was reached: %s", async (protocol, options) => {
    await using folder = await makeFolder();
    await using server = await startNbdkit(folder, ...options, "memory", "1M");
    const ours = (await nbdpull("info", "--json", server.uri)).json() as Info;
    const theirs = JSON.parse((await execa("nbdinfo", ["--json", server.uri])).stdout) as Info;
    expect([ours.protocol, theirs.protocol]).toEqual([protocol, protocol]);
  });
});
