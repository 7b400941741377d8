/** The two documents that begin a backup job and create its checkpoint. */
import { XMLBuilder } from "fast-xml-parser";

/**
 * The job to begin. It names every disk of the domain: libvirt has its own rules for disks that are not
 * named.
 */
export interface JobRequest {
  readonly server: RequestedServer;
  readonly disks: readonly RequestedDisk[];
  /** Left out: the job has no checkpoint. */
  readonly checkpoint?: string | undefined;
}

type RequestedServer = { readonly transport: "unix"; readonly socket: string } | TcpServer;

export interface TcpServer {
  readonly transport: "tcp";
  /** Where QEMU listens: an address of the hypervisor, or a name that resolves there. */
  readonly host: string;
  readonly port: number;
  /** Whether clients must use TLS. The certificates are those of the hypervisor. */
  readonly tls: boolean;
}

interface RequestedDisk {
  /** The disk's target in the domain: `vda`. */
  readonly name: string;
  /** Left out: the disk takes no part. */
  readonly take?:
    | {
        /** Path of the scratch file, which libvirt creates. */
        readonly scratch: string;
        /** The checkpoint from which changes are counted. Left out: a full copy. */
        readonly base?: string | undefined;
        /** Whether the new checkpoint gets a bitmap of this disk. */
        readonly bitmap: boolean;
      }
    | undefined;
}

/** Takes objects in the form that the parser of `xml.ts` returns: attributes under `$`. */
const builder = new XMLBuilder({
  ignoreAttributes: false,
  attributesGroupName: "$",
  attributeNamePrefix: "",
  suppressEmptyNode: true,
  suppressBooleanAttributes: false,
  format: true,
});

/** `<domainbackup>` of a pull mode job. */
export function formatBackup({ server, disks }: JobRequest): string {
  const address =
    server.transport === "unix"
      ? { transport: "unix", socket: server.socket }
      : {
          transport: "tcp",
          name: server.host,
          port: String(server.port),
          ...(server.tls ? { tls: "yes" } : {}),
        };
  const disk = disks.map(({ name, take }) => {
    if (!take) return { $: { name, backup: "no" } };
    const mode =
      take.base === undefined
        ? { backupmode: "full" }
        : { backupmode: "incremental", incremental: take.base };
    return {
      $: { name, backup: "yes", type: "file", ...mode },
      driver: { $: { type: "qcow2" } },
      scratch: { $: { file: take.scratch } },
    };
  });
  return builder.build({ domainbackup: { $: { mode: "pull" }, server: { $: address }, disks: { disk } } });
}

/** `<domaincheckpoint>` of the same moment and the same disks. */
export function formatCheckpoint({ disks }: JobRequest, name: string): string {
  const disk = disks.map((each) => ({
    $: { name: each.name, checkpoint: each.take?.bitmap === true ? "bitmap" : "no" },
  }));
  return builder.build({ domaincheckpoint: { name, disks: { disk } } });
}
