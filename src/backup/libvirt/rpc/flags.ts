/** Flags and other numbers that calls take, by their names in libvirt's headers. Pure. */

/** virConnectListAllDomainsFlags. */
export const LIST_DOMAINS = { active: 1, inactive: 2 } as const;
/** virDomainXMLFlags. */
export const DOMAIN_XML = { secure: 1, inactive: 2 } as const;
/** virDomainUndefineFlagsValues. */
export const UNDEFINE = { nvram: 4, keepNvram: 8 } as const;
/** virDomainInterfaceAddressesSource. */
export const ADDRESSES = { lease: 0, arp: 2 } as const;
/** virDomainStatsTypes, and virConnectGetAllDomainStatsFlags. */
export const STATS = { block: 1 << 5 } as const;
export const STATS_FLAGS = { backing: 1 << 30 } as const;
/** virDomainGetJobStatsFlags. */
export const JOB_STATS = { completed: 1, keepCompleted: 2 } as const;
/** virDomainBlockPullFlags: the bandwidth is in bytes per second. */
export const BLOCK_PULL = { bandwidthBytes: 1 << 6 } as const;
/** virDomainBlockCopyFlags. */
export const BLOCK_COPY = { shallow: 1, reuseExternal: 2, transientJob: 4 } as const;
/** virDomainBlockJobAbortFlags. */
export const BLOCK_ABORT = { pivot: 2 } as const;
/** virDomainCheckpointXMLFlags. */
export const CHECKPOINT_XML = { noDomain: 2, size: 4 } as const;
/** virDomainCheckpointCreateFlags. */
export const CHECKPOINT_CREATE = { redefine: 1 } as const;
/** virDomainCheckpointListFlags: a checkpoint comes after its parent. */
export const CHECKPOINT_LIST = { topological: 2 } as const;
/** virDomainCheckpointDeleteFlags. */
export const CHECKPOINT_DELETE = { metadataOnly: 2 } as const;

/** virDomainBlockJobType, by number, as virsh names them. */
export const BLOCK_JOBS = ["Unknown job", "Block Pull", "Block Copy", "Block Commit", "Active Block Commit"];
/** VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP. */
export const BACKUP_JOB = 5;
/** virStorageVolType, by number, as virsh names them. */
export const VOLUME_KINDS = ["file", "block", "dir", "network", "net-dir", "ploop"];
