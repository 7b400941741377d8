import type { S3Client } from "@aws-sdk/client-s3";
import type { DamageError } from "../base/errors.js";
import type { S3Address } from "./address.js";

export interface StoredObject {
  /** The whole key, with the address's prefix. */
  readonly key: string;
  /** Bytes. */
  readonly size: number;
  /** Changes whenever the object is replaced. Without quotation marks. */
  readonly etag: string;
  /** By the store's clock. */
  readonly modifiedAt: Date;
}

/** An upload that was begun and neither completed nor aborted. */
export interface PendingUpload {
  readonly key: string;
  readonly uploadId: string;
  /** By the store's clock. */
  readonly begunAt: Date;
}

/** A part that was uploaded. */
export interface UploadedPart {
  /** Bytes. */
  readonly size: number;
  /** Without quotation marks: where nothing is encrypted by a key of the customer, the MD5 of its bytes. */
  readonly etag: string;
}

export interface AskOptions {
  readonly signal?: AbortSignal | undefined;
}

/** What requests go through: a bucket. */
export interface Asker {
  readonly address: S3Address;
  readonly client: S3Client;
  /** As `Bucket.ask`. */
  ask<T>(
    action: string,
    key: string | undefined,
    options: AskOptions,
    request: (signal: AbortSignal) => Promise<T>,
  ): Promise<T>;
  /** As `Bucket.nonsense`. */
  nonsense(what: string, key: string): DamageError;
}
