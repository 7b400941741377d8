import { z } from "zod";
import { type DocumentKind, element, oneOf, parseDocument, text, wholeNumber } from "./xml.js";

/** libvirt's record of a point in time, which a later increment can start from. */
export interface Checkpoint {
  readonly name: string;
  /** Whole seconds since 1970 by the hypervisor's clock, rounded down. */
  readonly creationTime: number;
  /** The checkpoint that was the newest one then. */
  readonly parent?: string | undefined;
  readonly disks: readonly CheckpointDisk[];
}

export interface CheckpointDisk {
  /** The disk's target in the domain: `vda`. */
  readonly name: string;
  /** The bitmap in the disk's image; absent where the checkpoint leaves the disk out. */
  readonly bitmap?: string | undefined;
  /**
   * Bytes that were changed since; only where they were asked for. Absent then: the bitmap is lost or broken, or one of
   * a later checkpoint is, without which it tells too little.
   */
  readonly size?: number | undefined;
}

const CHECKPOINT: DocumentKind = {
  code: "E_CHECKPOINT_XML",
  root: "domaincheckpoint",
  source: "virsh checkpoint-dumpxml DOMAIN NAME",
};

const diskSchema = element(
  {
    name: text,
    checkpoint: oneOf("bitmap", "no").default("bitmap"),
    bitmap: text.optional(),
    size: wholeNumber.optional(),
  },
  {},
);

const checkpointSchema = element(
  {},
  {
    name: text,
    creationTime: wholeNumber,
    parent: element({}, { name: text }).optional(),
    disks: element({}, { disk: z.array(diskSchema).default([]) }).optional(),
  },
);

/**
 * Reads the XML of a checkpoint.
 * @throws {BackupError} `E_CHECKPOINT_XML`, or that and an element's name
 */
export function parseCheckpoint(xml: string): Checkpoint {
  const checkpoint = parseDocument(CHECKPOINT, xml, checkpointSchema);
  return {
    name: checkpoint.name,
    creationTime: checkpoint.creationTime,
    parent: checkpoint.parent?.name,
    disks: (checkpoint.disks?.disk ?? []).map(({ $: disk }) => ({
      name: disk.name,
      bitmap: disk.checkpoint === "bitmap" ? (disk.bitmap ?? checkpoint.name) : undefined,
      size: disk.size,
    })),
  };
}
