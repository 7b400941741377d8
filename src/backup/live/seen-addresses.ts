import { BlockList, isIP, isIPv6 } from "node:net";
import { networkInterfaces } from "node:os";
import type { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/** A guest that has more is not tried at all of them: it could take hundreds of leases. */
const MOST_ADDRESSES = 16;

/**
 * Where a guest is tried: at addresses that its network leased to it, then at those that it claims by ARP.
 * Any machine's address can be claimed so, and that machine would answer in its place; so only those count
 * that lie in the network itself, by the addresses that this host has there.
 * @throws as `Libvirt` does
 */
export async function seenAddresses(
  run: DomainRun,
  { libvirt, network }: { readonly libvirt: Libvirt; readonly network: string | undefined },
): Promise<string[]> {
  const { leased, claimed } = await run.addresses();
  const asks = claimed.length > 0 && network !== undefined;
  const isNear = neighboursOf(asks ? await libvirt.bridgeOf(network) : undefined);
  const seen = [...leased, ...claimed.filter(isNear)].filter((address) => isIP(address) !== 0);
  return [...new Set(seen)].slice(0, MOST_ADDRESSES);
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
