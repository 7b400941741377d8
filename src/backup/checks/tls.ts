/** Checks QEMU's certificates for a job with TLS. libvirt notices most problems only when the job begins. */
import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { shellWord } from "../base/shell-word.js";
import { exists } from "../host/durable-files.js";
import { type Found, fail, pass, type Subject, warn } from "./check.js";

const CONFIGURATION = "/etc/libvirt/qemu.conf";
/** The folder that libvirt uses by default, if it exists. */
const FOLDER_OF_BACKUPS = "/etc/pki/libvirt-backup";
/** The default folder if the other one does not exist. */
const DEFAULT_FOLDER = "/etc/pki/qemu";
const NEEDED = ["ca-cert.pem", "server-cert.pem", "server-key.pem"];

export async function lookAtTls({ server, ssh }: Subject): Promise<readonly Found[]> {
  // The certificates of another host can't be read from here.
  if (!server?.tls || ssh) return [];
  const configuration = await readFile(CONFIGURATION, "utf8").catch((error: NodeJS.ErrnoException) => error);
  if (typeof configuration !== "string") {
    return [
      warn(
        `${CONFIGURATION} can't be read here (${configuration.code})`,
        "sudo nbdpull doctor --server tcp --tls",
      ),
    ];
  }
  const folder = await folderOf(configuration);
  const missing: string[] = [];
  for (const name of NEEDED) {
    const path = join(folder, name);
    await access(path).catch(() => missing.push(path));
  }
  if (missing.length === 0) return [pass(`QEMU's certificate and key are in ${folder}`)];
  return [
    fail("E_NO_CERTIFICATES", `QEMU has no certificate to serve with: ${missing.join(", ")} missing`, {
      advice: `put them there, or name another folder as backup_tls_x509_cert_dir in ${CONFIGURATION}`,
      mend: `grep -n tls_x509 ${CONFIGURATION}; ls -l ${shellWord(folder)}`,
      details: { missing },
    }),
  ];
}

/**
 * The folder that libvirt takes the certificates from. Settings are lines `name = "value"`; lines that begin
 * with `#` are comments.
 */
async function folderOf(configuration: string): Promise<string> {
  const setting = (name: string): string | undefined =>
    new RegExp(`^[ \\t]*${name}[ \\t]*=\\s*"([^"]*)"`, "m").exec(configuration)?.[1];
  const own = setting("backup_tls_x509_cert_dir");
  if (own !== undefined) return own;
  if (await exists(FOLDER_OF_BACKUPS)) return FOLDER_OF_BACKUPS;
  return setting("default_tls_x509_cert_dir") ?? DEFAULT_FOLDER;
}
