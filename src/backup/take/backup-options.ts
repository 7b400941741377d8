import type { EncryptedPolicy } from "../guest/encrypted-disks.js";
import type { FullEvery, Level } from "../guest/levels.js";
import type { DiskChoice } from "../libvirt/choose-disks.js";
import type { TcpServer } from "../libvirt/documents/begin-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { TakeSettings } from "./take-options.js";

export interface BackupOptions extends TakeSettings {
  readonly libvirt: Libvirt;
  /** Name, UUID or the number of its run. */
  readonly domain: string;
  /** Created if the path does not exist or is an empty folder. */
  readonly repositoryPath: string;
  /** As root too, write to a repository that other users can write to; default: refuse it (`E_STRANGERS`). */
  readonly trustRepository?: boolean | undefined;
  readonly level: Level;
  /** With level `auto`: when a running domain gets a full point; default: only where nothing else can be. */
  readonly fullEvery?: FullEvery | undefined;
  readonly disks: DiskChoice;
  /** What becomes of disks that are encrypted on their host; default: stored, with a warning. */
  readonly encrypted?: EncryptedPolicy | undefined;
  /** The folder under which the job gets a folder of its own, for its socket and scratch files. */
  readonly scratchParent: string;
  /**
   * Bytes that must stay free for scratch files, or the backup is given up; default a tenth of the room at
   * the beginning, at most 4 GiB.
   */
  readonly scratchReserve?: number | undefined;
  /** Undefined: the job is served on a Unix socket in its folder. */
  readonly server?: TcpServer | undefined;
  /** Mountpoints in the guest that are frozen while the job begins; empty: all; undefined: none. */
  readonly freeze?: readonly string[] | undefined;
  /** Where this host records which checkpoints are whose; default: `usualStateFolder`. */
  readonly stateFolder?: string | undefined;
  /** The repository was moved to where it is now, and keeps its checkpoints. Default: false. */
  readonly moved?: boolean | undefined;
  /**
   * Go on with a point that a killed run has begun, if its job still runs and all of it fits; default: true.
   * A point without digests can't be gone on with.
   */
  readonly resume?: boolean | undefined;
}
