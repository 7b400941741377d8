import { z } from "zod";
import { type DocumentKind, element, oneOf, parseDocument, text, wholeNumber } from "./xml.js";

/** libvirt's record of a point in time, from which a later increment can start. */
export interface Checkpoint {
  readonly name: string;
  /** Whole seconds since 1970 by the hypervisor's clock, rounded down. */
  readonly creationTime: number;
  /** The newest checkpoint at that time. */
  readonly parent?: string | undefined;
  readonly disks: readonly CheckpointDisk[];
}

interface CheckpointDisk {
  /** The disk's target in the domain: `vda`. */
  readonly name: string;
  /** The bitmap in the disk's image; absent if the checkpoint leaves the disk out. */
  readonly bitmap?: string | undefined;
  /**
   * Bytes changed since the checkpoint, if sizes were requested. It is absent even then if the bitmap is lost
   * or broken, or if that of a later checkpoint is, which holds part of the changes.
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
 * @throws {BackupError} `E_CHECKPOINT_XML`, or that followed by an element's name
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
