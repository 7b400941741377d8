import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../nbd/index.js";
import { hasCode, messageOf } from "../base/errors.js";
import { canConnect } from "../host/can-connect.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { openPlain } from "../host/plain-files.js";
import type { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { refuseFull } from "./reserve.js";
import { SeenAddresses } from "./seen-addresses.js";

/** By what a guest shows that it came up. */
export type SignOfLife =
  /** Its agent answers. */
  | { readonly kind: "agent" }
  /** It says something on its first serial line. */
  | { readonly kind: "serial"; readonly pattern: RegExp }
  /** It takes connections to a TCP port. */
  | { readonly kind: "tcp"; readonly port: number };

export function signText(sign: SignOfLife): string {
  if (sign.kind === "serial") return `serial ${sign.pattern.source}`;
  return sign.kind === "tcp" ? `tcp ${sign.port}` : "agent";
}

interface Watched {
  readonly libvirt: Libvirt;
  readonly run: DomainRun;
  readonly domain: { readonly name: string; readonly uuid: string };
  /** The folder and the name of the file with what it said on its serial line. */
  readonly folder: HeldFolder;
  readonly serialLog: string;
  readonly sign: SignOfLife;
  /** The network of libvirt's that its cards are on. */
  readonly network: string | undefined;
  readonly withinMs: number;
  readonly signal: AbortSignal | undefined;
}

const LOOK_MS = 500;
/** An agent that takes longer to answer is asked again. */
const ANSWER_MS = 20_000;
/** A port that takes longer to take a connection is tried again. */
const CONNECT_MS = 5000;
/** What is kept in mind of a serial line, and read of it at a time. */
const KEPT_BYTES = 64 * 1024;

/**
 * Waits until the guest shows that it came up.
 * @returns undefined if it did; otherwise why it is taken not to
 * @throws {PreconditionError} `E_REHEARSAL`: what it writes has used up the room
 * @throws as `Libvirt` does, if that doesn't answer; the signal's reason
 */
export async function waitForSign(watched: Watched): Promise<string | undefined> {
  const { run, withinMs, signal } = watched;
  const deadline = performance.now() + withinMs;
  const ways = { line: new SerialLine(watched), addresses: new SeenAddresses(run, watched) };
  let last = "";
  for (;;) {
    signal?.throwIfAborted();
    const left = Math.max(deadline - performance.now(), LOOK_MS);
    const seen = await look(watched, left, ways);
    if (seen === undefined) return undefined;
    await refuseFull(watched.folder);
    last = seen;
    const state = await run.runState();
    if (state === "off") return "it shut itself off, or died";
    if (state === "stopped") return "QEMU has stopped it, because a disk failed";
    if (performance.now() >= deadline) return `${last} within ${Math.round(withinMs / 1000)} s`;
    await sleep(LOOK_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
  }
}

/** @returns undefined if it shows its sign */
async function look(
  watched: Watched,
  leftMs: number,
  { line, addresses }: { readonly line: SerialLine; readonly addresses: SeenAddresses },
): Promise<string | undefined> {
  const { sign } = watched;
  if (sign.kind === "agent") return await agentAnswers(watched, leftMs);
  if (sign.kind === "tcp") return await takesConnections(watched, sign.port, { leftMs, seen: addresses });
  return await saysOnLine(line, sign.pattern);
}

async function takesConnections(
  { folder, signal }: Watched,
  port: number,
  { leftMs, seen }: { readonly leftMs: number; readonly seen: SeenAddresses },
): Promise<string | undefined> {
  const end = performance.now() + leftMs;
  const addresses = await seen.now().catch((error: unknown) => {
    if (hasCode(error, "E_DOMAIN_OFF") || hasCode(error, "E_LIBVIRT_REFUSED")) return [];
    throw error;
  });
  if (addresses.length === 0) return "this host saw no address of it on the network";
  for (const host of addresses) {
    signal?.throwIfAborted();
    const timeoutMs = Math.min(end - performance.now(), CONNECT_MS);
    if (timeoutMs <= 0) break;
    if (await canConnect({ host, port, timeoutMs, signal })) return undefined;
    await refuseFull(folder);
  }
  return `nothing took connections to port ${port} of ${addresses.join(", ")}`;
}

/** @returns undefined if it does */
async function agentAnswers(
  { libvirt, domain, signal }: Watched,
  leftMs: number,
): Promise<string | undefined> {
  const patience = AbortSignal.timeout(Math.ceil(Math.min(leftMs, ANSWER_MS)));
  try {
    const bounded = libvirt.withSignal(anySignal(signal, patience));
    await bounded.mountpoints(domain);
    return undefined;
  } catch (error) {
    signal?.throwIfAborted();
    // libvirt calls a domain busy whose agent it still waits for.
    const isSilent = ["E_DOMAIN_OFF", "E_NO_AGENT", "E_DOMAIN_BUSY"].some((code) => hasCode(error, code));
    if (isSilent || patience.aborted) return "its agent did not answer";
    if (!hasCode(error, "E_LIBVIRT_REFUSED")) throw error;
    // The agent answers, if only that it can't tell. What else libvirt refuses is an answer that makes no
    // sense.
    if (messageOf(error).includes("guest-get-fsinfo")) return undefined;
    return `its agent answered what libvirt does not take (${messageOf(error)})`;
  }
}

async function saysOnLine(line: SerialLine, pattern: RegExp): Promise<string | undefined> {
  let isSaid = false;
  await line.follow((text) => {
    isSaid ||= pattern.test(text);
  });
  return isSaid ? undefined : "it did not say what was waited for";
}

/**
 * A serial line's log, which grows for as long as the guest likes, and which libvirt begins anew now and
 * then.
 */
export class SerialLine {
  readonly #folder: HeldFolder;
  readonly #name: string;
  #offset = 0;
  #tail = "";

  constructor({ folder, serialLog }: Pick<Watched, "folder" | "serialLog">) {
    this.#folder = folder;
    this.#name = serialLog;
  }

  /**
   * Reads what is new, piece by piece.
   * @param seen gets each piece, behind the last that was read before
   * @throws the file system's error
   */
  async follow(seen: (text: string) => void): Promise<void> {
    try {
      await using file = await openPlain(this.#folder.at(this.#name));
      const { size } = await file.stat();
      if (size < this.#offset) this.#offset = 0;
      const buffer = Buffer.alloc(KEPT_BYTES);
      while (this.#offset < size) {
        const { bytesRead } = await file.read(buffer, 0, buffer.length, this.#offset);
        if (bytesRead === 0) return;
        this.#offset += bytesRead;
        const text = this.#tail + buffer.toString("latin1", 0, bytesRead);
        seen(text);
        this.#tail = text.slice(-KEPT_BYTES);
      }
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }
}

/** The last that a guest has said on its serial line. */
export async function saidOn(folder: HeldFolder, serialLog: string): Promise<string> {
  try {
    await using file = await openPlain(folder.at(serialLog));
    const { size } = await file.stat();
    const buffer = Buffer.alloc(KEPT_BYTES);
    const { bytesRead } = await file.read(buffer, 0, buffer.length, Math.max(0, size - KEPT_BYTES));
    return buffer.toString("latin1", 0, bytesRead);
  } catch (error) {
    if (isMissing(error)) return "";
    throw error;
  }
}
