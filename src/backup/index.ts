/** The backup engine: pull an export into an image, keep points in a repository, rebuild and verify them. */
export { type AttachOptions, type AttachResult, attach, type JobSource } from "./attach.js";
export { type BackupOptions, type BackupResult, backup } from "./backup.js";
export type { BlockTarget } from "./block-target.js";
export { findChain, type Link } from "./chain.js";
export { ChainView } from "./chain-view.js";
export { chooseDisks, chooseDomain, choosePoint } from "./choose-point.js";
export type { ImageCompression } from "./compressed-store.js";
export { DeviceTarget } from "./device-target.js";
export { DIGEST_ALGORITHMS, type DigestAlgorithm, parseDigestAlgorithm } from "./digest.js";
export type { HeldLock } from "./domain-lock.js";
export { BackupError, DamageError, PreconditionError, UsageError } from "./errors.js";
export { ALLOCATION_CONTEXT, dirtyContext, exportExtents } from "./export-extents.js";
export { ExportTarget } from "./export-target.js";
export type { Extent, ExtentState } from "./extent.js";
export type { CompressionMethod } from "./image/compress-cluster.js";
export type { ImageFormat } from "./image/image.js";
export type { Backing } from "./image/qcow2-writer.js";
export type { DigestTarget } from "./image-store.js";
export { type ImageToImport, type ImportOptions, importImages } from "./import.js";
export type { Definition } from "./keep-files.js";
export { LEVELS, type Level } from "./level.js";
export type { TcpServer } from "./libvirt/begin-xml.js";
export type { NotKept } from "./libvirt/boot-files.js";
export type { DiskChoice } from "./libvirt/choose-disks.js";
export type { Platform } from "./libvirt/domain-xml.js";
export type { Hypervisor } from "./libvirt/hypervisor.js";
export type { JobInfo } from "./libvirt/job-info.js";
export type { RestoredPlace } from "./libvirt/restored-domain.js";
export { type DomainRef, Virsh, type VirshOptions } from "./libvirt/virsh.js";
export { type DiskManifest, type KeptFile, type Manifest, parseManifest } from "./manifest.js";
export { type ByteSource, type OpenOptions, openExport } from "./open-export.js";
export type { Window } from "./pace.js";
export { PointView, type PointViewOptions } from "./point-view.js";
export {
  type DoneMerge,
  type PrunedPoint,
  type PruneOptions,
  type PruneResult,
  prune,
} from "./prune.js";
export type { Merge } from "./prune-plan.js";
export { refuseTarget } from "./publish.js";
export { type PullFileOptions, pullFile } from "./pull-file.js";
export {
  type DiskSource,
  type PullImageOptions,
  type PullProgress,
  type PullResult,
  pullImage,
} from "./pull-image.js";
export { RateLimit } from "./rate-limit.js";
export { type PendingPoint, type Reading, Repository } from "./repository.js";
export {
  type RestoredDisk,
  type RestoreOptions,
  type RestoreTarget,
  refuseInside,
  restore,
} from "./restore.js";
export { type OverwrittenDisk, type RestoreOverOptions, restoreOver } from "./restore-over.js";
export type { RestoreSourceOptions } from "./restore-source.js";
export { RestoredDefinition, type RestoredDefinitionOptions } from "./restored-definition.js";
export { type FileTarget, RestoredFiles, type RestoredFilesOptions } from "./restored-files.js";
export type { Retention } from "./retention.js";
export {
  type PointServer,
  type ServedDisk,
  type ServeEvent,
  type ServeOptions,
  servePoint,
} from "./serve.js";
export type { SshTarget } from "./ssh.js";
export {
  type ExportedPointDisk,
  type ImportedPointDisk,
  type PointDisk,
  type TakenPoint,
  type TakePointOptions,
  type TakeSettings,
  takePoint,
} from "./take-point.js";
export {
  type DiskReport,
  type Finding,
  type PointReport,
  type VerifyOptions,
  type VerifyProgress,
  verifyPoints,
} from "./verify.js";
