/**
 * The procedures about a domain's disks: block jobs, backup jobs and checkpoints. See procedures.ts.
 */

import { act, domainAlone, domainAndFlags, domainWithoutFlags, nothing, question } from "./procedure.js";
import { type TypedParams, typedParams } from "./typed-params.js";
import {
  readCheckpoint,
  type WireCheckpoint,
  type WireDomain,
  writeCheckpoint,
  writeDomain,
} from "./wire-objects.js";

/** VIR_TYPED_PARAM_ULLONG. */
const UNSIGNED_64 = 4;

export const DOMAIN_ABORT_JOB = act(164, "DOMAIN_ABORT_JOB", domainAlone, nothing);

/** In bytes: of the image file, of the disk as the guest sees it, and of the image's end. */
export const DOMAIN_GET_BLOCK_INFO = question(
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

/** Ends the block job of a disk. `flags`: virDomainBlockJobAbortFlags. */
export const DOMAIN_BLOCK_JOB_ABORT = act(
  237,
  "DOMAIN_BLOCK_JOB_ABORT",
  (out, args: { readonly domain: WireDomain; readonly path: string; readonly flags: number }) =>
    writeDomain(out, args.domain).string(args.path).int(args.flags),
  nothing,
);

/** `type`: virDomainBlockJobType; `done` of `total` bytes; undefined: none runs. */
export const DOMAIN_GET_BLOCK_JOB_INFO = question(
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
export const DOMAIN_BLOCK_JOB_SET_SPEED = question(
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

/** `type`: virDomainJobType; `flags`: virDomainGetJobStatsFlags. */
export const DOMAIN_GET_JOB_STATS = question(
  298,
  "DOMAIN_GET_JOB_STATS",
  domainAndFlags,
  (answer): { readonly type: number; readonly params: TypedParams } => ({
    type: answer.int(),
    params: typedParams(answer),
  }),
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

/** `flags`: virDomainCheckpointCreateFlags. */
export const DOMAIN_CHECKPOINT_CREATE_XML = act(
  411,
  "DOMAIN_CHECKPOINT_CREATE_XML",
  (out, args: { readonly domain: WireDomain; readonly xml: string; readonly flags: number }) =>
    writeDomain(out, args.domain).string(args.xml).int(args.flags),
  readCheckpoint,
);

/** `flags`: virDomainCheckpointXMLFlags. */
export const DOMAIN_CHECKPOINT_GET_XML_DESC = question(
  412,
  "DOMAIN_CHECKPOINT_GET_XML_DESC",
  (out, args: { readonly checkpoint: WireCheckpoint; readonly flags: number }) =>
    writeCheckpoint(out, args.checkpoint).int(args.flags),
  (answer) => answer.string(),
);

/** `flags`: virDomainCheckpointListFlags. */
export const DOMAIN_LIST_ALL_CHECKPOINTS = question(
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

export const DOMAIN_BACKUP_GET_XML_DESC = question(
  422,
  "DOMAIN_BACKUP_GET_XML_DESC",
  domainWithoutFlags,
  (answer) => answer.string(),
);
