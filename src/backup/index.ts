/** The backup engine: pull an export into an image, keep points in a repository, rebuild and verify them. */

export type { Damage } from "./base/damage.js";
export { BackupError, DamageError, PreconditionError, UsageError } from "./base/errors.js";
export type { Extent, ExtentState } from "./base/extent.js";
export type { Assurance } from "./chain/assurance.js";
export { findChain, type Link } from "./chain/chain.js";
export type { Adaptation } from "./definition/fit-to-host.js";
export type { RestoredPlace } from "./definition/restored-domain.js";
export {
  DEFAULT_DIGESTS,
  DIGEST_ALGORITHMS,
  type DigestAlgorithm,
  parseDigestAlgorithm,
} from "./digest/algorithms.js";
export { ALLOCATION_CONTEXT, dirtyContext, exportExtents } from "./export/export-extents.js";
export { type ByteSource, type OpenOptions, openExport } from "./export/open-export.js";
export type { OutageNews } from "./export/outages.js";
export type { Definition } from "./guest/keep-files.js";
export { type FullEvery, LEVELS, type Level } from "./guest/levels.js";
export type { HeldFolder } from "./host/held-folder.js";
export { refuseTarget } from "./host/publish.js";
export type { SshTarget } from "./host/ssh.js";
export type { ImageFormat } from "./image/image.js";
export type { ReadOptions } from "./image/image-file.js";
export type { CreateOptions, NewFile, NewPlace, RemoteNewFile } from "./image/new-file.js";
export type { FilePlace, ReadableFile, RemoteFile, RemoteOptions } from "./image/readable-file.js";
export type { DiskChoice, LeftOutDisk } from "./libvirt/choose-disks.js";
export type { TcpServer } from "./libvirt/documents/begin-xml.js";
export type { NotKept } from "./libvirt/documents/boot-files.js";
export type { Platform } from "./libvirt/documents/domain-xml.js";
export type { Hypervisor } from "./libvirt/hypervisor.js";
export type { JobInfo } from "./libvirt/job-info.js";
export { type DomainRef, Libvirt, type LibvirtOptions } from "./libvirt/libvirt.js";
export type { Proof, ProofAmount } from "./prove/prove-base.js";
export type { PrunedPoint } from "./prune/decide.js";
export {
  type DoneMerge,
  type PruneOptions,
  type PruneResult,
  prune,
} from "./prune/prune.js";
export type { Merge } from "./prune/prune-plan.js";
export type { Retention } from "./prune/retention.js";
export type { ImageCompression } from "./pull/compressed-store.js";
export type { DigestTarget } from "./pull/image-store.js";
export {
  type DiskSource,
  type PullImageOptions,
  type PullProgress,
  type PullResult,
  pullImage,
} from "./pull/pull-image.js";
export { RateLimit } from "./pull/rate-limit.js";
export type { Window } from "./pull/window.js";
export type { CompressionMethod } from "./qcow2/can-compress.js";
export type { Backing } from "./qcow2/writer.js";
export { chooseDomain, type DomainChoice } from "./repository/choose-domain.js";
export { chooseDisks, choosePoint } from "./repository/choose-point.js";
export { domainFolder } from "./repository/domain-folder.js";
export type { HeldLock } from "./repository/domain-lock.js";
export {
  type DiskIdentity,
  type DiskManifest,
  type KeptFile,
  type Manifest,
  parseManifest,
} from "./repository/manifest.js";
export {
  type ClockDoubt,
  type MendClockOptions,
  type MendedTime,
  mendClock,
} from "./repository/mend-clock.js";
export type { BegunPoint, ManifestText, PendingPoint } from "./repository/pending-point.js";
export type { Reading } from "./repository/reading.js";
export { Repository, type RepositoryOptions } from "./repository/repository.js";
export type { BlockTarget } from "./restore/block-target.js";
export { DeviceTarget } from "./restore/device-target.js";
export { ExportTarget } from "./restore/export-target.js";
export {
  type RestoredDisk,
  type RestoreOptions,
  type RestoreTarget,
  refuseInside,
  restore,
} from "./restore/restore.js";
export { type OverwrittenDisk, type RestoreOverOptions, restoreOver } from "./restore/restore-over.js";
export type { RestoreSourceOptions } from "./restore/restore-source.js";
export { RestoredDefinition, type RestoredDefinitionOptions } from "./restore/restored-definition.js";
export { type FileTarget, RestoredFiles, type RestoredFilesOptions } from "./restore/restored-files.js";
export { ChainView } from "./serve/chain-view.js";
export type { DiskCacheOptions } from "./serve/disk-cache.js";
export { type DiskReads, PointView, type PointViewOptions } from "./serve/point-view.js";
export {
  type PointServer,
  type ServedDisk,
  type ServeEvent,
  type ServeOptions,
  servePoint,
} from "./serve/serve.js";
export type { StoredEntry, StoredFolder, StoredStatus } from "./storage/stored-folder.js";
export { type AttachOptions, type AttachResult, attach } from "./take/attach.js";
export { type BackupResult, backup } from "./take/backup.js";
export type { BackupOptions } from "./take/backup-options.js";
export { type ImageToImport, type ImportOptions, importImages } from "./take/import.js";
export type { JobSource } from "./take/job-view.js";
export type { DiskProof, ProveSettings } from "./take/prove-disk.js";
export { type PullFileOptions, pullFile } from "./take/pull-file.js";
export type {
  ExportedPointDisk,
  ImportedPointDisk,
  PointDisk,
  TakePointOptions,
  TakeSettings,
} from "./take/take-options.js";
export { type TakenPoint, takePoint } from "./take/take-point.js";
export {
  type LiveDiskReport,
  type LiveProgress,
  type LiveReport,
  type VerifyLiveOptions,
  verifyLive,
} from "./take/verify-live.js";
export {
  type DiskReport,
  type Finding,
  type PointReport,
  type VerifyOptions,
  type VerifyProgress,
  verifyPoints,
} from "./verify/verify.js";
