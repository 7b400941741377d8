/**
 * The types of the harness: a workload prepares a scene, contenders run on it, targets state what is
 * required.
 */

import type { Image } from "./images.js";
import type { Inputs } from "./inputs.js";
import type { Program } from "./programs.js";
import type { Target } from "./result.js";

/** One piece of work, done by each contender in turn. */
export interface Workload {
  /** What `--only` selects. */
  readonly name: string;
  readonly title: string;
  /** For the reader of the figures: what is special about it. */
  readonly about: string;
  /** The contender that ratios are taken against. */
  readonly reference: string;
  readonly contenders: readonly Contender[];
  readonly targets: readonly Target[];
  /**
   * Takes the inputs and starts the server, once for every run: a server that has been used behaves
   * differently (QEMU serves requests of 1 MiB for a third of the CPU time after one of 2 MiB, since glibc
   * then keeps such memory).
   */
  setUp(stage: Stage): Promise<Scene>;
}

/** Where a workload is set up. */
export interface Stage {
  /** A folder of its own, removed afterwards. */
  readonly folder: string;
  readonly inputs: Inputs;
  /** 1 for the sizes that are published; sizes and numbers of extents are multiplied by it. */
  readonly scale: number;
}

export interface Scene extends AsyncDisposable {
  /** The server's process, whose CPU time is counted; left out where nothing is served. */
  readonly serverPid?: number;
  /** One, unless the workload is about several disks, or about what is stored. */
  readonly sources: readonly Source[];
  readonly stored?: Stored;
  readonly guest?: Guest;
  /** Several domains that are backed up by one run. */
  readonly guests?: readonly Guest[];
}

/** A running libvirt domain that has not been backed up yet. It has one disk. */
export interface Guest {
  readonly domain: string;
  readonly disk: string;
  /** For what a backup needs while it runs: sockets, scratch files. */
  readonly folder: string;
  /** Equals the disk as it is at first. */
  readonly before: Image;
  /** Equals the disk once it was changed. */
  readonly after: Image;
  /** The guest writes. */
  change(): Promise<void>;
  /** The URI of libvirt, where the program is not to take its own. */
  readonly uri?: string;
}

/** One disk in all points of a repository. */
export interface Stored {
  /** Its folder. */
  readonly repository: string;
  readonly domain: string;
  readonly disk: string;
  /** The images, the full one first: each is based on the one before. */
  readonly images: readonly Image[];
  /** Equals the disk at the newest point. */
  readonly expected: Image;
  /** The folder of virtnbdbackup's backups of the same disk at the same points, where that was wanted. */
  readonly virtnbdbackup?: string | undefined;
}

/** An export, and what a right copy of it is. */
export interface Source {
  readonly uri: string;
  readonly at: Address;
  /** Without TLS if left out. */
  readonly tls?: Tls;
  readonly exportName: string;
  /** Set where only dirty extents are wanted. */
  readonly bitmap?: string;
  /** Equals a right output: the disk itself, or a sparse image with the dirty extents only. */
  readonly expected: Image;
  /** Bytes. */
  readonly virtualSize: number;
}

export type Address =
  | { readonly kind: "unix"; readonly socket: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

export interface Tls {
  /** Holds ca-cert.pem, client-cert.pem and client-key.pem, as QEMU and libnbd want them. */
  readonly certificates: string;
}

/** One way to do the work. */
export interface Contender {
  readonly name: string;
  /** Without one of these it is listed as missing. */
  readonly needs: readonly Program[];
  /** What is run and measured. Files that it needs may be made here: that isn't measured. */
  command(task: Task): Command | Promise<Command>;
  /** The median time of its reads in ms, out of what the run has printed. */
  readMs?(command: Command): Promise<number>;
  /** Looks at what the warm-up run has made, and throws if it isn't right. Returns how that was judged. */
  verify(task: Task, command: Command): Promise<string>;
}

/** One run. */
export interface Task {
  readonly sources: readonly Source[];
  readonly stored?: Stored;
  readonly guest?: Guest;
  readonly guests?: readonly Guest[];
  /** Empty before every run. All outputs go there. */
  readonly output: string;
  /** Programs that the harness has built. */
  readonly built: { readonly minimalClient: string; readonly untilRequest: string };
}

export interface Command {
  readonly program: string;
  readonly args: readonly string[];
  /** A file for its standard output, which is thrown away otherwise. */
  readonly stdout?: string;
}

/** The source of a workload that is about one disk. */
export function onlySource(task: Pick<Task, "sources">): Source {
  const [source, ...more] = task.sources;
  if (source === undefined || more.length > 0) throw new Error("this contender copies one disk");
  return source;
}

/** What a workload that is about a repository has stored. */
export function storedIn({ stored }: Pick<Task, "stored">): Stored {
  if (stored === undefined) throw new Error("this contender works on a repository");
  return stored;
}

/** The domains of a workload that is about several. */
export function guestsOf({ guests }: Pick<Task, "guests">): readonly Guest[] {
  if (guests === undefined) throw new Error("this contender backs several domains up");
  return guests;
}

/** The domain of a workload that is about one. */
export function guestOf({ guest }: Pick<Task, "guest">): Guest {
  if (guest === undefined) throw new Error("this contender backs a domain up");
  return guest;
}
