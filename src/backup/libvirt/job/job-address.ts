import type { NbdAddress } from "../../../nbd/index.js";
import type { BackupServer } from "../documents/job-xml.js";

/** The NBD address of an export of a job. */
export function addressOf(server: BackupServer, exportName: string): NbdAddress {
  const transport: NbdAddress["transport"] =
    server.transport === "unix"
      ? { kind: "unix", path: server.socket }
      : { kind: "tcp", host: server.host, port: server.port };
  return { transport, exportName, ...(server.tls ? { tls: {} } : {}) };
}
