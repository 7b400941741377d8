import type { Workload } from "../workload.js";
import { fineGrained } from "./fine-grained.js";
import { fourDisks } from "./four-disks.js";
import { fullFromCompressed } from "./full-from-compressed.js";
import { fullFromRaw } from "./full-from-raw.js";
import { fullQcow2 } from "./full-qcow2.js";
import { fullRaw } from "./full-raw.js";
import { hugeMap } from "./huge-map.js";
import { hugePull } from "./huge-pull.js";
import { latency } from "./latency.js";
import { libvirtFull } from "./libvirt-full.js";
import { libvirtIncremental } from "./libvirt-incremental.js";
import { libvirtMany } from "./libvirt-many.js";
import { libvirtRestore } from "./libvirt-restore.js";
import { limitedRate } from "./limited-rate.js";
import { prune } from "./prune.js";
import { readOnly } from "./read-only.js";
import { restoreChain } from "./restore-chain.js";
import { restoreCompressed } from "./restore-compressed.js";
import { scattered } from "./scattered.js";
import { starts } from "./start.js";
import { storeBackup } from "./store-backup.js";
import { storeReads } from "./store-reads.js";
import { storeRestore } from "./store-restore.js";
import { tcp } from "./tcp.js";
import { tenthDirty } from "./tenth-dirty.js";
import { tls } from "./tls.js";
import { toCompressed } from "./to-compressed.js";
import { verify, verifySha256 } from "./verify.js";
import { zeroKnown } from "./zero-known.js";
import { zeroUnknown } from "./zero-unknown.js";

/** In the order in which they run and are shown: those that share an input are neighbours. */
export const WORKLOADS: readonly Workload[] = [
  fullRaw,
  fullQcow2,
  readOnly,
  tcp,
  fullFromRaw,
  tls,
  fourDisks,
  latency,
  limitedRate,
  scattered,
  fineGrained,
  tenthDirty,
  hugeMap,
  hugePull,
  toCompressed,
  fullFromCompressed,
  zeroKnown,
  zeroUnknown,
  restoreChain,
  verify,
  verifySha256,
  restoreCompressed,
  storeBackup,
  storeRestore,
  storeReads,
  prune,
  libvirtFull,
  libvirtIncremental,
  libvirtMany,
  libvirtRestore,
  ...starts,
];
