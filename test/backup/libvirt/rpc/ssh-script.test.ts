/** What runs on a host that is reached by ssh, in the shells that people log in with. */
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { quote } from "../../../../src/backup/host/ssh.js";
import { scriptOf } from "../../../../src/backup/libvirt/rpc/dial-ssh.js";

const URI = "qemu:///system";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-script-"));
});
afterEach(() => rm(folder, { recursive: true }));

/** A program that says how it was called. */
async function program(name: string, more = ""): Promise<void> {
  const path = join(folder, name);
  await writeFile(path, `#!/bin/sh\n${more}\necho "${name} $*"\n`);
  await chmod(path, 0o755);
}

/** What the script says on a host where `PATH` holds these programs before those of the system. */
async function run(
  way: Parameters<typeof scriptOf>[0],
): Promise<{ out: string; err: string; code: unknown }> {
  const script = scriptOf(way, URI);
  // As the login shell gets it.
  expect(script).not.toMatch(/\n/);
  const ran = await execa("sh", ["-c", `exec sh -c ${quote(script)}`], {
    env: { PATH: `${folder}:/usr/bin:/bin` },
    reject: false,
  });
  return { out: ran.stdout, err: ran.stderr, code: ran.exitCode };
}

describe("the script of a connection by ssh", () => {
  it("runs virt-ssh-helper where there is one, and nc at the first socket otherwise", async () => {
    const sockets = [join(folder, "it's none"), join(folder, "lib virt.sock")];
    await program("nc", `[ "$*" = -q ] && { echo "nc: option requires an argument -- 'q'" >&2; exit 1; }`);
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(sockets[1], resolve));
    try {
      const through = { sockets, netcat: "nc", proxy: "netcat" as const };
      expect(await run(through)).toMatchObject({ out: `nc -q0 -U ${sockets[1]}`, code: 0 });
      await program("nc", `[ "$*" = -q ] && exit 1`);
      expect(await run(through)).toMatchObject({ out: `nc -U ${sockets[1]}`, code: 0 });
      await program("virt-ssh-helper");
      const auto = { ...through, proxy: "auto" as const };
      expect(await run(auto)).toMatchObject({ out: `virt-ssh-helper ${URI}`, code: 0 });
    } finally {
      server.close();
    }
    expect(await run({ sockets: ["/nowhere/it's"], netcat: "nc", proxy: "netcat" })).toMatchObject({
      err: "no libvirt listens at /nowhere/it's",
      code: 1,
    });
  });
});
