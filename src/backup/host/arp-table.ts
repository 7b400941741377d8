import { createSocket } from "node:dgram";
import { readFile } from "node:fs/promises";
import { networkInterfaces } from "node:os";

interface Neighbour {
  readonly address: string;
  /** In lower case. */
  readonly mac: string;
}

/** ATF_COM: the neighbour has answered. */
const COMPLETE = 2;
/** The port of the discard service. What is sent there only makes the kernel ask whose the address is. */
const DISCARD = 9;
/** A network with more addresses is not asked around in: the kernel keeps some thousand neighbours. */
const MOST_ADDRESSES = 1024;

/** The neighbours that this host's kernel knows by ARP behind one of its devices. */
export async function arpTable(device: string): Promise<Neighbour[]> {
  const table = await readFile("/proc/net/arp", "utf8").catch(() => "");
  return parseArpTable(table, device);
}

/** Of `/proc/net/arp`: address, kind, flags, MAC, mask and device in columns. Pure. */
export function parseArpTable(table: string, device: string): Neighbour[] {
  return table
    .split("\n")
    .slice(1)
    .flatMap((line) => {
      const [address, , flags, mac, , behind] = line.trim().split(/\s+/);
      if (address === undefined || mac === undefined || behind !== device) return [];
      return (Number(flags) & COMPLETE) === 0 ? [] : [{ address, mac: mac.toLowerCase() }];
    });
}

/**
 * Has the kernel ask for each address of the device's IPv4 networks, so that a machine gets into its table
 * that speaks to nobody by itself. Settles when it was told to; answers come later.
 */
export async function askAround(device: string): Promise<void> {
  for (const { family, address, netmask } of networkInterfaces()[device] ?? []) {
    if (family !== "IPv4") continue;
    const socket = createSocket("udp4");
    // What can't be sent is not answered.
    socket.on("error", () => undefined);
    try {
      await new Promise<void>((resolve) => socket.bind({ address }, resolve).once("error", () => resolve()));
      await Promise.all(
        addressesBeside(address, netmask).map(
          (each) => new Promise<void>((sent) => socket.send("", DISCARD, each, () => sent())),
        ),
      );
    } finally {
      socket.close();
    }
  }
}

/** The other addresses of an IPv4 network; none if it is too large. Pure. */
export function addressesBeside(address: string, netmask: string): string[] {
  const [own, mask] = [numberOf(address), numberOf(netmask)];
  const first = (own & mask) >>> 0;
  const count = 2 ** 32 - mask;
  if (count > MOST_ADDRESSES) return [];
  const all = Array.from({ length: Math.max(0, count - 2) }, (_, index) => first + 1 + index);
  return all.filter((each) => each !== own).map(textOf);
}

function numberOf(address: string): number {
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

function textOf(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join(".");
}
