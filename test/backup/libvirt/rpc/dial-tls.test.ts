/** Which certificates of a daemon are accepted where its authority is one of several. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer } from "node:tls";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { dialTls } from "../../../../src/backup/libvirt/rpc/dial-tls.js";
import { describeWith, findTool } from "../../../support/tools.js";

let pki: string;
beforeEach(async () => {
  pki = await mkdtemp(join(tmpdir(), "nbdpull-dial-tls-"));
});
afterEach(() => rm(pki, { recursive: true }));

const at = (name: string): string => join(pki, name);
const certtool = (...args: string[]) => execa(findTool("certtool") ?? "certtool", args);

/** Makes `NAME.pem` and `NAME.key`, signed by another one or by itself. */
async function certify(name: string, template: string, by?: string): Promise<void> {
  await certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile", at(`${name}.key`));
  await writeFile(at(`${name}.info`), `cn = "${name}"\nexpiration_days = 2\n${template}\n`);
  const signed = by
    ? [
        "--generate-certificate",
        "--load-ca-certificate",
        at(`${by}.pem`),
        "--load-ca-privkey",
        at(`${by}.key`),
      ]
    : ["--generate-self-signed"];
  const own = ["--load-privkey", at(`${name}.key`), "--template", at(`${name}.info`)];
  await certtool(...signed, ...own, "--outfile", at(`${name}.pem`));
}

/** The list of what an authority has revoked: nothing, or one certificate. */
async function listOf(authority: string, revoked?: string): Promise<string> {
  await writeFile(at("list.info"), "crl_next_update = 2\ncrl_number = 1\n");
  const ca = ["--load-ca-certificate", at(`${authority}.pem`), "--load-ca-privkey", at(`${authority}.key`)];
  const what = revoked ? ["--load-certificate", at(`${revoked}.pem`)] : [];
  const written = ["--template", at("list.info"), "--outfile", at("list.pem")];
  await certtool("--generate-crl", ...ca, ...what, ...written);
  return await readFile(at("list.pem"), "utf8");
}

describeWith(["certtool"], "a daemon whose authority is below another one", () => {
  it("is accepted with a list of each authority or with none, and else the message says what is missing", async () => {
    await certify("root", "ca\ncert_signing_key\ncrl_signing_key");
    await certify("middle", "ca\ncert_signing_key\ncrl_signing_key", "root");
    await certify("server", 'dns_name = "localhost"\ntls_www_server\nsigning_key', "middle");
    await writeFile(at("cacert.pem"), await readFile(at("root.pem")));
    const cert = Buffer.concat([await readFile(at("server.pem")), await readFile(at("middle.pem"))]);
    const server = createServer({ cert, key: await readFile(at("server.key")) }, (socket) => {
      socket.on("error", () => undefined);
      socket.write(Buffer.of(1));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    const dial = async (...lists: string[]): Promise<void> => {
      if (lists.length > 0) await writeFile(at("cacrl.pem"), lists.join(""));
      const way = { kind: "tls", host: "localhost", port, pki, verify: true } as const;
      const transport = await dialTls(way, new AbortController().signal);
      transport.close();
    };
    try {
      await dial();
      const [ofRoot, ofMiddle] = [await listOf("root"), await listOf("middle")];
      await dial(ofRoot, ofMiddle);
      await dial(ofMiddle, ofRoot);
      const missing = { code: "E_LIBVIRT_TLS", message: expect.stringContaining("a list of each authority") };
      await expect(dial(ofRoot)).rejects.toMatchObject(missing);
      await expect(dial(ofMiddle)).rejects.toMatchObject(missing);
      const revoked = { code: "E_LIBVIRT_TLS", message: expect.stringContaining("certificate revoked") };
      await expect(dial(ofRoot, await listOf("middle", "server"))).rejects.toMatchObject(revoked);
      await expect(dial(await listOf("root", "middle"), ofMiddle)).rejects.toMatchObject(revoked);
    } finally {
      server.close();
    }
  });
});
