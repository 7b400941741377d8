/** A domain started, resumed and ended, and QEMU told to fill its disks from what they are based on. */
import { hasCode } from "../base/errors.js";
import { formatTree, parseTree, XmlElement } from "./documents/xml-tree.js";
import { hasCrashed, type RunState, runStateOf } from "./domain-state.js";
import { imageSizes } from "./image-sizes.js";
import type { DomainRef, Libvirt } from "./libvirt.js";
import { EVENT } from "./rpc/events.js";
import * as flag from "./rpc/flags.js";
import * as remote from "./rpc/procedures.js";

/**
 * Only what the image has of its own, into an image that is there. A domain that is defined has to be told
 * that the job doesn't outlive its run.
 */
const MERGE = flag.BLOCK_COPY.shallow | flag.BLOCK_COPY.reuseExternal | flag.BLOCK_COPY.transientJob;
/** Larger than a screen of 8K without compression. */
const MOST_PICTURE = 256 * 1024 * 1024;
/** A definition that is whole, to be defined again. */
const WHOLE_DEFINITION = flag.DOMAIN_XML.secure | flag.DOMAIN_XML.inactive;

/** How far QEMU is with filling a disk, in bytes of the guest's disk. */
export interface FillProgress {
  readonly done: number;
  readonly total: number;
}

/** Every method rejects as those of `Libvirt` do. */
export class DomainRun {
  readonly #libvirt: Libvirt;
  readonly #domain: DomainRef;

  constructor(libvirt: Libvirt, domain: DomainRef) {
    this.#libvirt = libvirt;
    this.#domain = domain;
  }

  async start(): Promise<void> {
    await this.#libvirt.calls.ask(remote.DOMAIN_CREATE_WITH_FLAGS, this.#domain, { flags: 0 });
  }

  /** Lets it run, and QEMU try again what failed. */
  async resume(): Promise<void> {
    await this.#libvirt.calls.ask(remote.DOMAIN_RESUME, this.#domain, {});
  }

  /** Ends it as if the power were cut. */
  async destroy(): Promise<void> {
    await this.#libvirt.calls.ask(remote.DOMAIN_DESTROY_FLAGS, this.#domain, { flags: 0 });
  }

  /** Makes libvirt forget it, and remove what it made for it: NVRAM, and the state of a TPM. */
  async forget(): Promise<void> {
    await this.#libvirt.calls.ask(remote.DOMAIN_UNDEFINE_FLAGS, this.#domain, { flags: flag.UNDEFINE.nvram });
  }

  /** What `Libvirt.domainState` names, as far as it matters here. */
  async runState(): Promise<RunState> {
    return runStateOf(await this.#libvirt.calls.ask(remote.DOMAIN_GET_STATE, this.#domain, {}));
  }

  /** Whether it is off because its QEMU has died. */
  async hasCrashed(): Promise<boolean> {
    return hasCrashed(await this.#libvirt.calls.ask(remote.DOMAIN_GET_STATE, this.#domain, {}));
  }

  /** What its first screen shows: a PPM or PNG image. */
  async screenshot(): Promise<{ readonly type: string; readonly bytes: Buffer }> {
    const call = remote.DOMAIN_SCREENSHOT;
    const { answer, bytes } = await this.#libvirt.calls.download(
      call,
      this.#domain,
      { screen: 0 },
      MOST_PICTURE,
    );
    return { type: answer ?? "", bytes };
  }

  /**
   * What the guest's agent answers to a command of QEMU's guest agent protocol, as it came.
   * @param timeoutMs how long libvirt waits for it
   */
  async askAgent(command: object, timeoutMs: number): Promise<string> {
    const timeoutSeconds = Math.max(1, Math.ceil(timeoutMs / 1000));
    const args = { command: JSON.stringify(command), timeoutSeconds };
    return (await this.#libvirt.calls.ask(remote.DOMAIN_AGENT_COMMAND, this.#domain, args)) ?? "";
  }

  /**
   * Addresses that its cards have, as this host saw them: `leased` to them by its networks, and `claimed` by
   * them in ARP, where a guest can say any. The guest's agent is not asked, since a guest may lie.
   */
  async addresses(): Promise<{ readonly leased: string[]; readonly claimed: string[] }> {
    // libvirt 9.0 can't read the ARP table of newer kernels ("wrong nlmsg len").
    const claimed = await this.#addresses(flag.ADDRESSES.arp).catch((error: unknown) => {
      if (!hasCode(error, "E_LIBVIRT_REFUSED")) throw error;
      return [];
    });
    return { leased: await this.#addresses(flag.ADDRESSES.lease), claimed };
  }

  /** The MAC addresses of its cards, in lower case. */
  async macs(): Promise<string[]> {
    const cards = parseTree(await this.#libvirt.domainXml(this.#domain), "domain").all(
      "devices",
      "interface",
    );
    return cards.flatMap((card) => card.first("mac")?.attributeText("address")?.toLowerCase() ?? []);
  }

  async #addresses(source: number): Promise<string[]> {
    const cards = await this.#libvirt.calls.ask(remote.DOMAIN_INTERFACE_ADDRESSES, this.#domain, { source });
    return cards.flatMap(({ addresses }) => addresses);
  }

  /** Its definition as it runs now, or as it will if it is off. */
  async definition(): Promise<string> {
    return await this.#libvirt.domainXml(this.#domain);
  }

  /** Its definition as it will be at the next start, with the passwords in it: only for defining it again. */
  async wholeDefinition(): Promise<string> {
    return await this.#libvirt.calls.ask(remote.DOMAIN_GET_XML_DESC, this.#domain, {
      flags: WHOLE_DEFINITION,
    });
  }

  /** Has QEMU copy into a disk's image what the images show that it is based on. Returns at once. */
  async fill(disk: string, bytesPerSecond: number | undefined): Promise<void> {
    const args = { path: disk, bandwidth: bytesPerSecond ?? 0, flags: flag.BLOCK_PULL.bandwidthBytes };
    await this.#libvirt.calls.ask(remote.DOMAIN_BLOCK_PULL, this.#domain, args);
  }

  /**
   * Has QEMU copy what a disk's image has of its own into another image, which shows the same as what the
   * image is based on. Returns at once. What the guest writes goes to both, until {@link switchOver}. Only
   * for a disk that {@link isOnlyOn} its image: what lies between would be left out.
   * @param image the path of a qcow2 image that is based on nothing
   */
  async mergeInto(disk: string, image: string, bytesPerSecond: number | undefined): Promise<void> {
    const target = XmlElement.create("disk", { type: "file" });
    target.append(XmlElement.create("driver", { name: "qemu", type: "qcow2" }));
    target.append(XmlElement.create("source", { file: image }));
    // It is based on nothing, and libvirt need not look into it.
    target.append(XmlElement.create("backingStore"));
    const args = { path: disk, xml: formatTree(target), bandwidth: bytesPerSecond, flags: MERGE };
    await this.#libvirt.calls.ask(remote.DOMAIN_BLOCK_COPY, this.#domain, args);
  }

  /** The image that a disk is being copied into, and whether it has all by now. */
  async merging(disk: string): Promise<{ readonly image: string; readonly isReady: boolean } | undefined> {
    const domain = parseTree(await this.#libvirt.domainXml(this.#domain), "domain");
    const isDisk = (each: XmlElement): boolean => each.first("target")?.attributeText("dev") === disk;
    const mirror = domain.all("devices", "disk").find(isDisk)?.first("mirror");
    const image = mirror?.first("source")?.attributeText("file");
    if (mirror?.attribute("job") !== "copy" || image === undefined) return undefined;
    return { image, isReady: mirror.attribute("ready") === "yes" };
  }

  /** Whether the running disk is on that image, and that directly on the NBD server at `socket`. */
  async isOnlyOn(
    disk: string,
    { image, socket }: { readonly image: string; readonly socket: string },
  ): Promise<boolean> {
    const [own, base, ...others] = sourcesOf(
      parseTree(await this.#libvirt.domainXml(this.#domain), "domain"),
      disk,
    );
    const isServed = base?.first("host")?.attributeText("socket") === socket;
    return own?.attributeText("file") === image && isServed && others.length === 0;
  }

  /** Ends a copy without any change to the disk. */
  async endCopy(disk: string): Promise<void> {
    await this.#libvirt.calls.ask(remote.DOMAIN_BLOCK_JOB_ABORT, this.#domain, { path: disk, flags: 0 });
  }

  /** Has the guest go on with the image that its disk was copied into. Rejects if that is not ready. */
  async switchOver(disk: string): Promise<void> {
    await this.#libvirt.calls.ask(remote.DOMAIN_BLOCK_JOB_ABORT, this.#domain, {
      path: disk,
      flags: flag.BLOCK_ABORT.pivot,
    });
  }

  /** How far that is; undefined if no block job runs on the disk. */
  async filling(disk: string): Promise<FillProgress | undefined> {
    return await this.#libvirt.calls.ask(remote.DOMAIN_GET_BLOCK_JOB_INFO, this.#domain, { path: disk });
  }

  /**
   * Whether a disk of the running domain is based on nothing: as its definition says, and as QEMU does, by
   * the images that it has open for it. One that is on another image by now (somebody has copied it, or made
   * a snapshot) is if none of its images is on the NBD server at `socket`.
   * @returns undefined if the domain is off
   */
  async standsAlone(
    disk: string,
    { image, socket }: { readonly image: string; readonly socket: string },
  ): Promise<boolean | undefined> {
    const domain = parseTree(await this.#libvirt.domainXml(this.#domain), "domain");
    if (domain.attribute("id") === undefined) return undefined;
    const [own, ...below] = sourcesOf(domain, disk);
    if (own === undefined) return false;
    if (own.attributeText("file") !== image) {
      return ![own, ...below].some((source) => source.first("host")?.attributeText("socket") === socket);
    }
    if (below.length > 0) return false;
    const open = (await imageSizes(this.#libvirt, this.#domain)).filter(({ target }) => target === disk);
    return open.length <= 1;
  }

  /**
   * Calls `wake` when something happens to the domain or to a block job of its disks, until disposed. It
   * isn't called any more when the connection to libvirt is lost: look now and then all the same.
   */
  async watch(wake: () => void): Promise<AsyncDisposable> {
    const { stop } = await this.#libvirt.calls.listen(this.#domain, [EVENT.lifecycle, EVENT.blockJob], wake);
    return { [Symbol.asyncDispose]: stop };
  }
}

/** The sources of a disk and of what it is based on, the disk's own first; none: there is no such disk. */
export function sourcesOf(domain: XmlElement, disk: string): XmlElement[] {
  const isDisk = (each: XmlElement): boolean => each.first("target")?.attributeText("dev") === disk;
  const chain: XmlElement[] = [];
  let layer = domain.all("devices", "disk").find(isDisk);
  while (layer) {
    const source = layer.first("source");
    if (source) chain.push(source);
    layer = layer.first("backingStore");
  }
  return chain;
}

/** Whether an error says that the domain is off, or that libvirt has forgotten it. */
export function isOff(error: unknown): boolean {
  return hasCode(error, "E_DOMAIN_OFF") || hasCode(error, "E_NO_SUCH_DOMAIN");
}
