/** How far a domain's images are written, and an alarm where a write passes an offset in one. */

import type { DomainRef, Libvirt } from "./libvirt.js";
import { STATS, STATS_FLAGS } from "./rpc/flags.js";
import * as remote from "./rpc/procedures.js";
import type { TypedParams } from "./rpc/typed-params.js";

/** What libvirt calls an image of a disk: `vda[5]`. */
export interface ImageName {
  /** The disk's target: `vda`. */
  readonly target: string;
  /** libvirt's number for the image, as documents of the running domain and its job have it. */
  readonly index: number;
}

export interface ImageSize extends ImageName {
  /** The end of what was ever written into the file or device, in bytes: where a scratch image grows. */
  readonly allocation: number;
  /** Of the file (what it occupies) or of the device, in bytes. */
  readonly physical: number;
}

/**
 * Every image of the domain's disks: what they are based on, and scratch images too.
 * @throws as `Libvirt` does
 */
export async function imageSizes(libvirt: Libvirt, domain: DomainRef): Promise<readonly ImageSize[]> {
  const args = { stats: STATS.block, flags: STATS_FLAGS.backing };
  return imageSizesOf(await libvirt.calls.ask(remote.CONNECT_GET_ALL_DOMAIN_STATS, domain, args));
}

/**
 * Has libvirt tell (`EVENT.blockThreshold`), once, that a write has passed this offset.
 * @throws as `Libvirt` does
 */
export async function setThreshold(
  libvirt: Libvirt,
  domain: DomainRef,
  { target, index }: ImageName,
  bytes: number,
): Promise<void> {
  const device = `${target}[${index}]`;
  await libvirt.calls.ask(remote.DOMAIN_SET_BLOCK_THRESHOLD, domain, { device, bytes });
}

/**
 * Reads `block.count`, and of each image `block.N.name`, `.backingIndex`, `.allocation` and `.physical`, as
 * `virConnectGetAllDomainStats` gives them with VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING. Images of which
 * one is missing are left out. Pure.
 */
function imageSizesOf(stats: TypedParams): readonly ImageSize[] {
  const count = stats.get("block.count");
  const sizes: ImageSize[] = [];
  for (let at = 0; at < Number(count ?? 0); at += 1) {
    const [target, index, allocation, physical] = ["name", "backingIndex", "allocation", "physical"].map(
      (fact) => stats.get(`block.${at}.${fact}`),
    );
    if (typeof target !== "string" || typeof index !== "number") continue;
    if (typeof allocation !== "number" || typeof physical !== "number") continue;
    sizes.push({ target, index, allocation, physical });
  }
  return sizes;
}
