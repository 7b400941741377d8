import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { demand, findProgram, PROGRAMS } from "./programs.js";
import type { Tls } from "./workload.js";

/**
 * A temporary CA with a server certificate for localhost and a client certificate. Existing ones in the
 * folder are reused.
 */
export async function makeCertificates(folder: string): Promise<Tls> {
  if (existsSync(join(folder, "client-cert.pem"))) return { certificates: folder };
  await demand(PROGRAMS.certtool);
  await mkdir(folder, { recursive: true });
  const file = (name: string): string => join(folder, name);
  const certtool = (...args: readonly string[]) => execa(findProgram("certtool") ?? "certtool", args);
  const key = (name: string) => certtool("--generate-privkey", "--ecc", "--outfile", file(name));
  const template = async (name: string, ...lines: readonly string[]): Promise<string> => {
    await writeFile(file(name), ["cn = bench", "expiration_days = 2", ...lines, ""].join("\n"));
    return file(name);
  };

  await Promise.all([key("ca-key.pem"), key("server-key.pem"), key("client-key.pem")]);
  await certtool(
    ...["--generate-self-signed", "--load-privkey", file("ca-key.pem")],
    ...["--template", await template("ca.info", "ca", "cert_signing_key")],
    ...["--outfile", file("ca-cert.pem")],
  );
  const sign = async (role: "server" | "client", ...lines: readonly string[]): Promise<void> => {
    await certtool(
      ...["--generate-certificate", "--load-privkey", file(`${role}-key.pem`)],
      ...["--load-ca-certificate", file("ca-cert.pem"), "--load-ca-privkey", file("ca-key.pem")],
      ...["--template", await template(`${role}.info`, `tls_www_${role}`, "signing_key", ...lines)],
      ...["--outfile", file(`${role}-cert.pem`)],
    );
  };
  await sign("server", "dns_name = localhost");
  await sign("client");
  return { certificates: folder };
}
