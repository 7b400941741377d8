/**
 * The procedures that this program calls, as `src/remote/remote_protocol.x` of libvirt numbers them and
 * defines their arguments (`remote_NAME_args`) and answers (`remote_NAME_ret`). The order is that of the
 * numbers; the names are libvirt's. Pure functions.
 */

import { PROGRAM } from "./packets.js";
import { type TypedParams, typedParams } from "./typed-params.js";
import type { XdrReader, XdrWriter } from "./xdr.js";

export interface Procedure<Args, Answer> {
  /** Whose number it is; default: `PROGRAM.remote`. */
  readonly program?: number;
  /** In `enum remote_procedure`, or `enum qemu_procedure`. */
  readonly number: number;
  /** Without `REMOTE_PROC_`. */
  readonly name: string;
  /** Whether it changes nothing, so that it can be repeated if the answer was lost. */
  readonly repeatable: boolean;
  readonly encode: (out: XdrWriter, args: Args) => unknown;
  readonly decode: (answer: XdrReader) => Answer;
}

/** `remote_nonnull_domain`. libvirt finds a domain by its UUID alone. */
export interface WireDomain {
  readonly name: string;
  /** With hyphens. */
  readonly uuid: string;
  /** The number of its run; -1: it is off, or the number is unknown. */
  readonly id: number;
}

/** `remote_nonnull_domain_checkpoint`. */
export interface WireCheckpoint {
  readonly name: string;
  readonly domain: WireDomain;
}

/** `remote_nonnull_network`. */
interface WireNetwork {
  readonly name: string;
  readonly uuid: string;
}

/** `remote_nonnull_storage_pool`. */
interface WirePool {
  readonly name: string;
  readonly uuid: string;
}

/** `remote_nonnull_storage_vol`. */
interface WireVolume {
  readonly pool: string;
  readonly name: string;
  readonly key: string;
}

/** VIR_TYPED_PARAM_ULLONG. */
const UNSIGNED_64 = 4;
/** VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE. */
const FAIL_INCOMPATIBLE = 1;

export const CONNECT_OPEN: Procedure<{ readonly uri: string }, void> = {
  number: 1,
  name: "CONNECT_OPEN",
  repeatable: true,
  encode: (out, { uri }) => out.optionalString(uri).int(0),
  decode: nothing,
};

/** Of the hypervisor: 7002022 is 7.2.22. */
export const CONNECT_GET_VERSION = ask(4, "CONNECT_GET_VERSION", noArguments, (answer) =>
  answer.size("a version"),
);

export const CONNECT_GET_CAPABILITIES = ask(7, "CONNECT_GET_CAPABILITIES", noArguments, (answer) =>
  answer.string(),
);

export const DOMAIN_GET_XML_DESC = ask(
  14,
  "DOMAIN_GET_XML_DESC",
  (out, { domain, flags }: { readonly domain: WireDomain; readonly flags: number }) =>
    writeDomain(out, domain).int(flags),
  (answer) => answer.string(),
);

export const DOMAIN_LOOKUP_BY_ID = ask(
  22,
  "DOMAIN_LOOKUP_BY_ID",
  (out, id: number) => out.int(id),
  readDomain,
);

export const DOMAIN_LOOKUP_BY_NAME = ask(
  23,
  "DOMAIN_LOOKUP_BY_NAME",
  (out, name: string) => out.string(name),
  readDomain,
);

export const DOMAIN_LOOKUP_BY_UUID = ask(
  24,
  "DOMAIN_LOOKUP_BY_UUID",
  (out, uuid: string) => out.fixed(uuidBytes(uuid)),
  readDomain,
);

/** Lets a paused domain run. */
export const DOMAIN_RESUME = act(
  28,
  "DOMAIN_RESUME",
  (out, { domain }: { readonly domain: WireDomain }) => writeDomain(out, domain),
  nothing,
);

/** `feature`: VIR_DRV_FEATURE_*. */
export const CONNECT_SUPPORTS_FEATURE = ask(
  60,
  "CONNECT_SUPPORTS_FEATURE",
  (out, feature: number) => out.int(feature),
  (answer) => answer.int() === 1,
);

export const NETWORK_LOOKUP_BY_NAME = ask(
  46,
  "NETWORK_LOOKUP_BY_NAME",
  (out, name: string) => out.string(name),
  (answer): WireNetwork => ({ name: answer.string(), uuid: uuidText(answer.fixed(16)) }),
);

/** The device of this host that the network's cards are connected to. */
export const NETWORK_GET_BRIDGE_NAME = ask(
  45,
  "NETWORK_GET_BRIDGE_NAME",
  (out, { name, uuid }: WireNetwork) => out.string(name).fixed(uuidBytes(uuid)),
  (answer) => answer.string(),
);

export const STORAGE_POOL_LOOKUP_BY_NAME = ask(
  84,
  "STORAGE_POOL_LOOKUP_BY_NAME",
  (out, name: string) => out.string(name),
  (answer): WirePool => ({ name: answer.string(), uuid: uuidText(answer.fixed(16)) }),
);

export const STORAGE_VOL_LOOKUP_BY_NAME = ask(
  95,
  "STORAGE_VOL_LOOKUP_BY_NAME",
  (out, { pool, name }: { readonly pool: WirePool; readonly name: string }) =>
    out.string(pool.name).fixed(uuidBytes(pool.uuid)).string(name),
  (answer): WireVolume => ({ pool: answer.string(), name: answer.string(), key: answer.string() }),
);

/** `type`: virStorageVolType; in bytes: as the guest sees it, and what it occupies. */
export const STORAGE_VOL_GET_INFO = ask(98, "STORAGE_VOL_GET_INFO", writeVolume, (answer) => ({
  type: answer.int(),
  capacity: answer.size("a capacity"),
  allocation: answer.size("an allocation"),
}));

export const STORAGE_VOL_GET_PATH = ask(100, "STORAGE_VOL_GET_PATH", writeVolume, (answer) =>
  answer.string(),
);

/** The authentication that this client has to choose from: `enum remote_auth_type`. */
export const AUTH_LIST = ask(66, "AUTH_LIST", noArguments, (answer) => answer.list(() => answer.int()));

export const AUTH_POLKIT = ask(70, "AUTH_POLKIT", noArguments, (answer) => answer.int() === 1);

export const NETWORK_IS_ACTIVE = ask(
  152,
  "NETWORK_IS_ACTIVE",
  (out, { name, uuid }: WireNetwork) => out.string(name).fixed(uuidBytes(uuid)),
  (answer) => answer.int() === 1,
);

/** Of libvirt: 9000000 is 9.0.0. */
export const CONNECT_GET_LIB_VERSION = ask(157, "CONNECT_GET_LIB_VERSION", noArguments, (answer) =>
  answer.size("a version"),
);

export const DOMAIN_ABORT_JOB = act(
  164,
  "DOMAIN_ABORT_JOB",
  (out, { domain }: { readonly domain: WireDomain }) => writeDomain(out, domain),
  nothing,
);

export const DOMAIN_HAS_MANAGED_SAVE_IMAGE = ask(
  183,
  "DOMAIN_HAS_MANAGED_SAVE_IMAGE",
  (out, { domain }: { readonly domain: WireDomain }) => writeDomain(out, domain).int(0),
  (answer) => answer.int() === 1,
);

/** In bytes: of the image file, of the disk as the guest sees it, and of the image's end. */
export const DOMAIN_GET_BLOCK_INFO = ask(
  194,
  "DOMAIN_GET_BLOCK_INFO",
  (out, { domain, path }: { readonly domain: WireDomain; readonly path: string }) =>
    writeDomain(out, domain).string(path).int(0),
  (answer) => ({
    allocation: answer.size("an allocation"),
    capacity: answer.size("a capacity"),
    physical: answer.size("a size"),
  }),
);

/** Starts a domain that is defined; `flags`: virDomainCreateFlags. */
export const DOMAIN_CREATE_WITH_FLAGS = act(
  196,
  "DOMAIN_CREATE_WITH_FLAGS",
  (out, { domain, flags }: { readonly domain: WireDomain; readonly flags: number }) =>
    writeDomain(out, domain).int(flags),
  readDomain,
);

/** A picture of what a screen shows follows as a stream; the answer is its MIME type. */
export const DOMAIN_SCREENSHOT = act(
  211,
  "DOMAIN_SCREENSHOT",
  (out, { domain, screen }: { readonly domain: WireDomain; readonly screen: number }) =>
    writeDomain(out, domain).int(screen).int(0),
  (answer) => answer.optionalString(),
);

/** `state`: virDomainState. */
export const DOMAIN_GET_STATE = ask(
  212,
  "DOMAIN_GET_STATE",
  (out, { domain }: { readonly domain: WireDomain }) => writeDomain(out, domain).int(0),
  (answer) => ({ state: answer.int(), reason: answer.int() }),
);

/** `flags`: virDomainUndefineFlagsValues. */
export const DOMAIN_UNDEFINE_FLAGS = act(
  231,
  "DOMAIN_UNDEFINE_FLAGS",
  (out, { domain, flags }: { readonly domain: WireDomain; readonly flags: number }) =>
    writeDomain(out, domain).int(flags),
  nothing,
);

/** Ends a run as if the power were cut; `flags`: virDomainDestroyFlagsValues. */
export const DOMAIN_DESTROY_FLAGS = act(
  234,
  "DOMAIN_DESTROY_FLAGS",
  (out, { domain, flags }: { readonly domain: WireDomain; readonly flags: number }) =>
    writeDomain(out, domain).int(flags),
  nothing,
);

/** Ends the block job of a disk. `flags`: virDomainBlockJobAbortFlags. */
export const DOMAIN_BLOCK_JOB_ABORT = act(
  237,
  "DOMAIN_BLOCK_JOB_ABORT",
  (out, args: { readonly domain: WireDomain; readonly path: string; readonly flags: number }) =>
    writeDomain(out, args.domain).string(args.path).int(args.flags),
  nothing,
);

/** `type`: virDomainBlockJobType; `done` of `total` bytes; undefined: none runs. */
export const DOMAIN_GET_BLOCK_JOB_INFO = ask(
  238,
  "DOMAIN_GET_BLOCK_JOB_INFO",
  (out, { domain, path }: { readonly domain: WireDomain; readonly path: string }) =>
    writeDomain(out, domain).string(path).int(0),
  (answer) => {
    const found = answer.int() === 1;
    const type = answer.int();
    // Bandwidth.
    answer.bigint();
    const [done, total] = [answer.size("what is done"), answer.size("a total")];
    return found ? { type, done, total } : undefined;
  },
);

/** Repeatable: it sets the same again. `bandwidth` 0: without a limit. */
export const DOMAIN_BLOCK_JOB_SET_SPEED = ask(
  239,
  "DOMAIN_BLOCK_JOB_SET_SPEED",
  (out, args: { readonly domain: WireDomain; readonly path: string; readonly bandwidth: number }) =>
    writeDomain(out, args.domain).string(args.path).size(args.bandwidth).int(0),
  nothing,
);

/** Has QEMU copy what an image shows of its backing files into it. `flags`: virDomainBlockPullFlags. */
export const DOMAIN_BLOCK_PULL = act(
  240,
  "DOMAIN_BLOCK_PULL",
  (
    out,
    args: {
      readonly domain: WireDomain;
      readonly path: string;
      readonly bandwidth: number;
      readonly flags: number;
    },
  ) => writeDomain(out, args.domain).string(args.path).size(args.bandwidth).int(args.flags),
  nothing,
);

/** `flags`: virConnectListAllDomainsFlags; 0: all. */
export const CONNECT_LIST_ALL_DOMAINS = ask(
  273,
  "CONNECT_LIST_ALL_DOMAINS",
  (out, flags: number) => out.int(1).int(flags),
  (answer) => {
    const domains = answer.list(() => readDomain(answer));
    answer.uint();
    return domains;
  },
);

/** `type`: virDomainJobType; `flags`: virDomainGetJobStatsFlags. */
export const DOMAIN_GET_JOB_STATS = ask(
  298,
  "DOMAIN_GET_JOB_STATS",
  (out, { domain, flags }: { readonly domain: WireDomain; readonly flags: number }) =>
    writeDomain(out, domain).int(flags),
  (answer): { readonly type: number; readonly params: TypedParams } => ({
    type: answer.int(),
    params: typedParams(answer),
  }),
);

/** `event`: virDomainEventID. The answer is the number of the callback. */
export const CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY = act(
  316,
  "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY",
  (out, { event, domain }: { readonly event: number; readonly domain: WireDomain }) =>
    writeDomain(out.int(event).int(1), domain),
  (answer) => answer.int(),
);

export const CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY = act(
  317,
  "CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY",
  (out, callback: number) => out.int(callback),
  nothing,
);

/** The answer is the number of file systems. */
export const DOMAIN_FSFREEZE = act(335, "DOMAIN_FSFREEZE", writeMountpoints, (answer) => answer.int());

export const DOMAIN_FSTHAW = act(336, "DOMAIN_FSTHAW", writeMountpoints, (answer) => answer.int());

export const CONNECT_GET_DOMAIN_CAPABILITIES = ask(
  342,
  "CONNECT_GET_DOMAIN_CAPABILITIES",
  (
    out,
    wanted: {
      readonly emulator?: string | undefined;
      readonly arch?: string | undefined;
      readonly machine?: string | undefined;
      readonly type?: string | undefined;
    },
  ) =>
    out
      .optionalString(wanted.emulator)
      .optionalString(wanted.arch)
      .optionalString(wanted.machine)
      .optionalString(wanted.type)
      .int(0),
  (answer) => answer.string(),
);

/** `stats`: virDomainStatsTypes; `flags`: virConnectGetAllDomainStatsFlags. */
export const CONNECT_GET_ALL_DOMAIN_STATS = ask(
  344,
  "CONNECT_GET_ALL_DOMAIN_STATS",
  (out, args: { readonly domain: WireDomain; readonly stats: number; readonly flags: number }) =>
    writeDomain(out.int(1), args.domain).int(args.stats).int(args.flags),
  (answer) =>
    answer.list(() => {
      readDomain(answer);
      return typedParams(answer);
    })[0] ?? new Map(),
);

/**
 * Has QEMU copy a disk to another image while it is written to. `xml`: a `<disk>` with that image; `flags`:
 * virDomainBlockCopyFlags.
 */
export const DOMAIN_BLOCK_COPY = act(
  345,
  "DOMAIN_BLOCK_COPY",
  (
    out,
    args: {
      readonly domain: WireDomain;
      readonly path: string;
      readonly xml: string;
      /** Bytes per second; undefined: no limit. */
      readonly bandwidth: number | undefined;
      readonly flags: number;
    },
  ) => {
    writeDomain(out, args.domain).string(args.path).string(args.xml);
    if (args.bandwidth === undefined) out.int(0);
    else out.int(1).string("bandwidth").int(UNSIGNED_64).size(args.bandwidth);
    return out.int(args.flags);
  },
  nothing,
);

/** The answer has the mountpoint of each of the guest's file systems. */
export const DOMAIN_GET_FSINFO = ask(
  349,
  "DOMAIN_GET_FSINFO",
  (out, { domain }: { readonly domain: WireDomain }) => writeDomain(out, domain).int(0),
  (answer) => {
    const mountpoints = answer.list(() => {
      const mountpoint = answer.string();
      answer.string();
      answer.string();
      answer.list(() => answer.string());
      return mountpoint;
    });
    answer.uint();
    return mountpoints;
  },
);

/** Addresses of a running domain's cards; `source`: virDomainInterfaceAddressesSource. */
export const DOMAIN_INTERFACE_ADDRESSES = ask(
  353,
  "DOMAIN_INTERFACE_ADDRESSES",
  (out, { domain, source }: { readonly domain: WireDomain; readonly source: number }) =>
    writeDomain(out, domain).int(source).int(0),
  (answer) =>
    answer.list(() => {
      answer.string();
      const mac = answer.optionalString();
      const addresses = answer.list(() => {
        answer.int();
        const address = answer.string();
        answer.uint();
        return address;
      });
      return { mac, addresses };
    }),
);

export const DOMAIN_DEFINE_XML_FLAGS = act(
  350,
  "DOMAIN_DEFINE_XML_FLAGS",
  (out, xml: string) => out.string(xml).int(0),
  readDomain,
);

/**
 * `device`: `vda`, or `vda[5]` for another image of it; `bytes`: the offset in the image that a write passes.
 */
export const DOMAIN_SET_BLOCK_THRESHOLD = act(
  386,
  "DOMAIN_SET_BLOCK_THRESHOLD",
  (out, args: { readonly domain: WireDomain; readonly device: string; readonly bytes: number }) =>
    writeDomain(out, args.domain).string(args.device).size(args.bytes).int(0),
  nothing,
);

/** `cpu`: its `<cpu>` element. Refused with what is missing, if the host can't run it. */
export const CONNECT_COMPARE_HYPERVISOR_CPU = ask(
  393,
  "CONNECT_COMPARE_HYPERVISOR_CPU",
  (
    out,
    wanted: {
      readonly emulator?: string | undefined;
      readonly arch?: string | undefined;
      readonly machine?: string | undefined;
      readonly type?: string | undefined;
      readonly cpu: string;
    },
  ) =>
    out
      .optionalString(wanted.emulator)
      .optionalString(wanted.arch)
      .optionalString(wanted.machine)
      .optionalString(wanted.type)
      .string(wanted.cpu)
      .int(FAIL_INCOMPATIBLE),
  (answer) => answer.int(),
);

/** `flags`: virDomainCheckpointCreateFlags. */
export const DOMAIN_CHECKPOINT_CREATE_XML = act(
  411,
  "DOMAIN_CHECKPOINT_CREATE_XML",
  (out, args: { readonly domain: WireDomain; readonly xml: string; readonly flags: number }) =>
    writeDomain(out, args.domain).string(args.xml).int(args.flags),
  readCheckpoint,
);

/** `flags`: virDomainCheckpointXMLFlags. */
export const DOMAIN_CHECKPOINT_GET_XML_DESC = ask(
  412,
  "DOMAIN_CHECKPOINT_GET_XML_DESC",
  (out, args: { readonly checkpoint: WireCheckpoint; readonly flags: number }) =>
    writeCheckpoint(out, args.checkpoint).int(args.flags),
  (answer) => answer.string(),
);

/** `flags`: virDomainCheckpointListFlags. */
export const DOMAIN_LIST_ALL_CHECKPOINTS = ask(
  413,
  "DOMAIN_LIST_ALL_CHECKPOINTS",
  (out, { domain, flags }: { readonly domain: WireDomain; readonly flags: number }) =>
    writeDomain(out, domain).int(1).int(flags),
  (answer) => {
    const checkpoints = answer.list(() => readCheckpoint(answer));
    answer.int();
    return checkpoints;
  },
);

/** `flags`: virDomainCheckpointDeleteFlags. */
export const DOMAIN_CHECKPOINT_DELETE = act(
  417,
  "DOMAIN_CHECKPOINT_DELETE",
  (out, args: { readonly checkpoint: WireCheckpoint; readonly flags: number }) =>
    writeCheckpoint(out, args.checkpoint).int(args.flags),
  nothing,
);

export const DOMAIN_BACKUP_BEGIN = act(
  421,
  "DOMAIN_BACKUP_BEGIN",
  (
    out,
    args: {
      readonly domain: WireDomain;
      readonly backupXml: string;
      readonly checkpointXml: string | undefined;
    },
  ) => writeDomain(out, args.domain).string(args.backupXml).optionalString(args.checkpointXml).int(0),
  nothing,
);

export const DOMAIN_BACKUP_GET_XML_DESC = ask(
  422,
  "DOMAIN_BACKUP_GET_XML_DESC",
  (out, { domain }: { readonly domain: WireDomain }) => writeDomain(out, domain).int(0),
  (answer) => answer.string(),
);

/** Has the guest's agent do what `command` says, which is JSON, and so is the answer. */
export const DOMAIN_AGENT_COMMAND = {
  ...act(
    3,
    "DOMAIN_AGENT_COMMAND",
    (out, args: { readonly domain: WireDomain; readonly command: string; readonly timeoutSeconds: number }) =>
      writeDomain(out, args.domain).string(args.command).int(args.timeoutSeconds).int(0),
    (answer) => answer.optionalString(),
  ),
  program: PROGRAM.qemu,
};

/** A procedure that changes nothing. */
function ask<Args, Answer>(
  number: number,
  name: string,
  encode: Procedure<Args, Answer>["encode"],
  decode: Procedure<Args, Answer>["decode"],
): Procedure<Args, Answer> {
  return { number, name, repeatable: true, encode, decode };
}

/** A procedure that changes something. */
function act<Args, Answer>(
  number: number,
  name: string,
  encode: Procedure<Args, Answer>["encode"],
  decode: Procedure<Args, Answer>["decode"],
): Procedure<Args, Answer> {
  return { number, name, repeatable: false, encode, decode };
}

function noArguments(_out: XdrWriter, _none: undefined): void {}

function nothing(): void {}

function writeMountpoints(
  out: XdrWriter,
  { domain, mountpoints }: { readonly domain: WireDomain; readonly mountpoints: readonly string[] },
): XdrWriter {
  return writeDomain(out, domain).strings(mountpoints).int(0);
}

function writeDomain(out: XdrWriter, { name, uuid, id }: WireDomain): XdrWriter {
  return out.string(name).fixed(uuidBytes(uuid)).int(id);
}

export function readDomain(answer: XdrReader): WireDomain {
  return { name: answer.string(), uuid: uuidText(answer.fixed(16)), id: answer.int() };
}

function writeVolume(out: XdrWriter, { pool, name, key }: WireVolume): XdrWriter {
  return out.string(pool).string(name).string(key);
}

function writeCheckpoint(out: XdrWriter, { name, domain }: WireCheckpoint): XdrWriter {
  return writeDomain(out.string(name), domain);
}

function readCheckpoint(answer: XdrReader): WireCheckpoint {
  return { name: answer.string(), domain: readDomain(answer) };
}

function uuidBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll("-", ""), "hex");
}

function uuidText(bytes: Buffer): string {
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
