import { BlockList, isIP, isIPv6 } from "node:net";
import { networkInterfaces } from "node:os";
import { hasCode } from "../base/errors.js";
import { arpTable, askAround } from "../host/arp-table.js";
import type { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import * as remote from "../libvirt/rpc/procedures.js";

/** A guest that has more is not tried at all of them: it could take hundreds of leases. */
const MOST_ADDRESSES = 16;
/** How often a network is asked for a guest that has not been seen in it. */
const ASK_MS = 5000;

/**
 * Where a guest is tried: at addresses that its network leased to it, then at those that it claims by ARP.
 * Any machine's address can be claimed so, and that machine would answer in its place; so only those count
 * that lie in the network itself, by the addresses that this host has there.
 */
export class SeenAddresses {
  readonly #run: DomainRun;
  readonly #libvirt: Libvirt;
  readonly #network: string | undefined;
  #askNext = 0;

  /** @param network what its cards are connected to */
  constructor(
    run: DomainRun,
    { libvirt, network }: { readonly libvirt: Libvirt; readonly network: string | undefined },
  ) {
    this.#run = run;
    this.#libvirt = libvirt;
    this.#network = network;
  }

  /** @throws as `Libvirt` does */
  async now(): Promise<string[]> {
    const { leased, claimed } = await this.#run.addresses();
    const device = this.#network === undefined ? undefined : await bridgeOf(this.#libvirt, this.#network);
    const all = device === undefined ? [] : [...claimed, ...(await this.#claimedAt(device))];
    const seen = [...leased, ...all.filter(neighboursOf(device))].filter((address) => isIP(address) !== 0);
    if (seen.length === 0 && device !== undefined) await this.#ask(device);
    return [...new Set(seen)].slice(0, MOST_ADDRESSES);
  }

  async #claimedAt(device: string): Promise<string[]> {
    const table = await arpTable(device);
    const macs = table.length === 0 ? [] : await this.#run.macs();
    return table.flatMap(({ mac, address }) => (macs.includes(mac) ? [address] : []));
  }

  /** A guest with an address of its own choice may speak to nobody before it is spoken to. */
  async #ask(device: string): Promise<void> {
    if (performance.now() < this.#askNext) return;
    this.#askNext = performance.now() + ASK_MS;
    await askAround(device);
  }
}

/** The host's device that a network's cards are on; undefined: it has none, or is not known. */
async function bridgeOf(libvirt: Libvirt, network: string): Promise<string | undefined> {
  try {
    const found = await libvirt.calls.call(remote.NETWORK_LOOKUP_BY_NAME, network, network);
    return await libvirt.calls.call(remote.NETWORK_GET_BRIDGE_NAME, found, network);
  } catch (error) {
    if (hasCode(error, "E_LIBVIRT_REFUSED")) return undefined;
    throw error;
  }
}

/** Tells the addresses in the subnets of a device of this host that are not the host's own. */
function neighboursOf(device: string | undefined): (address: string) => boolean {
  const subnets = new BlockList();
  const own = new Set<string>();
  for (const { address, cidr, family } of networkInterfaces()[device ?? ""] ?? []) {
    own.add(address);
    const prefix = Number(cidr?.split("/")[1]);
    if (Number.isInteger(prefix)) subnets.addSubnet(address, prefix, family === "IPv6" ? "ipv6" : "ipv4");
  }
  return (address) =>
    isIP(address) !== 0 && !own.has(address) && subnets.check(address, isIPv6(address) ? "ipv6" : "ipv4");
}
