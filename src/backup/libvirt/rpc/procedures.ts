/**
 * The procedures that this program calls, as `src/remote/remote_protocol.x` of libvirt numbers them and
 * defines their arguments (`remote_NAME_args`) and answers (`remote_NAME_ret`). The order is that of the
 * numbers, and those of QEMU's own program come last; the names are libvirt's. Those about disks and their
 * jobs stand in disk-procedures.ts. Pure functions.
 */

import { PROGRAM } from "./packets.js";
import {
  act,
  domainAlone,
  domainAndFlags,
  domainWithoutFlags,
  noArguments,
  nothing,
  type Procedure,
  question,
} from "./procedure.js";
import { typedParams } from "./typed-params.js";
import {
  readDomain,
  uuidBytes,
  uuidText,
  type WireDomain,
  type WireNetwork,
  type WirePool,
  type WireVolume,
  writeDomain,
  writeVolume,
} from "./wire-objects.js";
import type { XdrWriter } from "./xdr.js";

export * from "./disk-procedures.js";

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
export const CONNECT_GET_VERSION = question(4, "CONNECT_GET_VERSION", noArguments, (answer) =>
  answer.size("a version"),
);

export const CONNECT_GET_CAPABILITIES = question(7, "CONNECT_GET_CAPABILITIES", noArguments, (answer) =>
  answer.string(),
);

export const DOMAIN_GET_XML_DESC = question(14, "DOMAIN_GET_XML_DESC", domainAndFlags, (answer) =>
  answer.string(),
);

export const DOMAIN_LOOKUP_BY_ID = question(
  22,
  "DOMAIN_LOOKUP_BY_ID",
  (out, id: number) => out.int(id),
  readDomain,
);

export const DOMAIN_LOOKUP_BY_NAME = question(
  23,
  "DOMAIN_LOOKUP_BY_NAME",
  (out, name: string) => out.string(name),
  readDomain,
);

export const DOMAIN_LOOKUP_BY_UUID = question(
  24,
  "DOMAIN_LOOKUP_BY_UUID",
  (out, uuid: string) => out.fixed(uuidBytes(uuid)),
  readDomain,
);

/** Lets a paused domain run. */
export const DOMAIN_RESUME = act(28, "DOMAIN_RESUME", domainAlone, nothing);

/** The device of this host that the network's cards are connected to. */
export const NETWORK_GET_BRIDGE_NAME = question(
  45,
  "NETWORK_GET_BRIDGE_NAME",
  (out, { name, uuid }: WireNetwork) => out.string(name).fixed(uuidBytes(uuid)),
  (answer) => answer.string(),
);

export const NETWORK_LOOKUP_BY_NAME = question(
  46,
  "NETWORK_LOOKUP_BY_NAME",
  (out, name: string) => out.string(name),
  (answer): WireNetwork => ({ name: answer.string(), uuid: uuidText(answer.fixed(16)) }),
);

/** `feature`: VIR_DRV_FEATURE_*. */
export const CONNECT_SUPPORTS_FEATURE = question(
  60,
  "CONNECT_SUPPORTS_FEATURE",
  (out, feature: number) => out.int(feature),
  (answer) => answer.int() === 1,
);

/** The authentication that this client has to choose from: `enum remote_auth_type`. */
export const AUTH_LIST = question(66, "AUTH_LIST", noArguments, (answer) => answer.list(() => answer.int()));

export const AUTH_POLKIT = question(70, "AUTH_POLKIT", noArguments, (answer) => answer.int() === 1);

export const STORAGE_POOL_LOOKUP_BY_NAME = question(
  84,
  "STORAGE_POOL_LOOKUP_BY_NAME",
  (out, name: string) => out.string(name),
  (answer): WirePool => ({ name: answer.string(), uuid: uuidText(answer.fixed(16)) }),
);

export const STORAGE_VOL_LOOKUP_BY_NAME = question(
  95,
  "STORAGE_VOL_LOOKUP_BY_NAME",
  (out, { pool, name }: { readonly pool: WirePool; readonly name: string }) =>
    out.string(pool.name).fixed(uuidBytes(pool.uuid)).string(name),
  (answer): WireVolume => ({ pool: answer.string(), name: answer.string(), key: answer.string() }),
);

/** `type`: virStorageVolType; in bytes: as the guest sees it, and what it occupies. */
export const STORAGE_VOL_GET_INFO = question(98, "STORAGE_VOL_GET_INFO", writeVolume, (answer) => ({
  type: answer.int(),
  capacity: answer.size("a capacity"),
  allocation: answer.size("an allocation"),
}));

export const STORAGE_VOL_GET_PATH = question(100, "STORAGE_VOL_GET_PATH", writeVolume, (answer) =>
  answer.string(),
);

export const NETWORK_IS_ACTIVE = question(
  152,
  "NETWORK_IS_ACTIVE",
  (out, { name, uuid }: WireNetwork) => out.string(name).fixed(uuidBytes(uuid)),
  (answer) => answer.int() === 1,
);

/** Of libvirt: 9000000 is 9.0.0. */
export const CONNECT_GET_LIB_VERSION = question(157, "CONNECT_GET_LIB_VERSION", noArguments, (answer) =>
  answer.size("a version"),
);

export const DOMAIN_HAS_MANAGED_SAVE_IMAGE = question(
  183,
  "DOMAIN_HAS_MANAGED_SAVE_IMAGE",
  domainWithoutFlags,
  (answer) => answer.int() === 1,
);

/** Starts a domain that is defined; `flags`: virDomainCreateFlags. */
export const DOMAIN_CREATE_WITH_FLAGS = act(196, "DOMAIN_CREATE_WITH_FLAGS", domainAndFlags, readDomain);

/** A picture of what a screen shows follows as a stream; the answer is its MIME type. */
export const DOMAIN_SCREENSHOT = act(
  211,
  "DOMAIN_SCREENSHOT",
  (out, { domain, screen }: { readonly domain: WireDomain; readonly screen: number }) =>
    writeDomain(out, domain).int(screen).int(0),
  (answer) => answer.optionalString(),
);

/** `state`: virDomainState. */
export const DOMAIN_GET_STATE = question(212, "DOMAIN_GET_STATE", domainWithoutFlags, (answer) => ({
  state: answer.int(),
  reason: answer.int(),
}));

/** `flags`: virDomainUndefineFlagsValues. */
export const DOMAIN_UNDEFINE_FLAGS = act(231, "DOMAIN_UNDEFINE_FLAGS", domainAndFlags, nothing);

/** Ends a run as if the power were cut; `flags`: virDomainDestroyFlagsValues. */
export const DOMAIN_DESTROY_FLAGS = act(234, "DOMAIN_DESTROY_FLAGS", domainAndFlags, nothing);

/** `flags`: virConnectListAllDomainsFlags; 0: all. */
export const CONNECT_LIST_ALL_DOMAINS = question(
  273,
  "CONNECT_LIST_ALL_DOMAINS",
  (out, flags: number) => out.int(1).int(flags),
  (answer) => {
    const domains = answer.list(() => readDomain(answer));
    answer.uint();
    return domains;
  },
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

export const CONNECT_GET_DOMAIN_CAPABILITIES = question(
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
export const CONNECT_GET_ALL_DOMAIN_STATS = question(
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

/** The answer has the mountpoint of each of the guest's file systems. */
export const DOMAIN_GET_FSINFO = question(349, "DOMAIN_GET_FSINFO", domainWithoutFlags, (answer) => {
  const mountpoints = answer.list(() => {
    const mountpoint = answer.string();
    answer.string();
    answer.string();
    answer.list(() => answer.string());
    return mountpoint;
  });
  answer.uint();
  return mountpoints;
});

export const DOMAIN_DEFINE_XML_FLAGS = act(
  350,
  "DOMAIN_DEFINE_XML_FLAGS",
  (out, xml: string) => out.string(xml).int(0),
  readDomain,
);

/** Addresses of a running domain's cards; `source`: virDomainInterfaceAddressesSource. */
export const DOMAIN_INTERFACE_ADDRESSES = question(
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

/** `cpu`: its `<cpu>` element. Refused with what is missing, if the host can't run it. */
export const CONNECT_COMPARE_HYPERVISOR_CPU = question(
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

function writeMountpoints(
  out: XdrWriter,
  { domain, mountpoints }: { readonly domain: WireDomain; readonly mountpoints: readonly string[] },
): XdrWriter {
  return writeDomain(out, domain).strings(mountpoints).int(0);
}
