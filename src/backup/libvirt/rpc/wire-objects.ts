/**
 * Objects of libvirt in arguments and answers, as `src/remote/remote_protocol.x` of libvirt defines them. Pure
 * functions.
 */

import type { XdrReader, XdrWriter } from "./xdr.js";

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
export interface WireNetwork {
  readonly name: string;
  readonly uuid: string;
}

/** `remote_nonnull_storage_pool`. */
export interface WirePool {
  readonly name: string;
  readonly uuid: string;
}

/** `remote_nonnull_storage_vol`. */
export interface WireVolume {
  readonly pool: string;
  readonly name: string;
  readonly key: string;
}

export function writeDomain(out: XdrWriter, { name, uuid, id }: WireDomain): XdrWriter {
  return out.string(name).fixed(uuidBytes(uuid)).int(id);
}

export function readDomain(answer: XdrReader): WireDomain {
  return { name: answer.string(), uuid: uuidText(answer.fixed(16)), id: answer.int() };
}

export function writeCheckpoint(out: XdrWriter, { name, domain }: WireCheckpoint): XdrWriter {
  return writeDomain(out.string(name), domain);
}

export function readCheckpoint(answer: XdrReader): WireCheckpoint {
  return { name: answer.string(), domain: readDomain(answer) };
}

export function writeVolume(out: XdrWriter, { pool, name, key }: WireVolume): XdrWriter {
  return out.string(pool).string(name).string(key);
}

export function uuidBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll("-", ""), "hex");
}

export function uuidText(bytes: Buffer): string {
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
