import { setTimeout as sleep } from "node:timers/promises";
import { hasCode, messageOf } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/** By what a guest shows that it came up. */
export type SignOfLife =
  /** Its agent answers. */
  | { readonly kind: "agent" }
  /** It says something on its first serial line. */
  | { readonly kind: "serial"; readonly pattern: RegExp };

export function signText(sign: SignOfLife): string {
  return sign.kind === "agent" ? "agent" : `serial ${sign.pattern.source}`;
}

interface Watched {
  readonly libvirt: Libvirt;
  readonly run: DomainRun;
  readonly domain: { readonly name: string; readonly uuid: string };
  /** The folder and the name of the file with what it said on its serial line. */
  readonly folder: HeldFolder;
  readonly serialLog: string;
  readonly sign: SignOfLife;
  readonly withinMs: number;
  readonly signal: AbortSignal | undefined;
}

const LOOK_MS = 500;
/** libvirt begins a new file long before. */
const MOST_SAID = 64 * 1024 * 1024;

/**
 * Waits until the guest shows that it came up.
 * @returns undefined if it did; otherwise why it is taken not to
 * @throws as `Libvirt` does, if that doesn't answer; the signal's reason
 */
export async function waitForSign(watched: Watched): Promise<string | undefined> {
  const { run, sign, withinMs, signal } = watched;
  const deadline = performance.now() + withinMs;
  let last = "";
  for (;;) {
    signal?.throwIfAborted();
    const seen =
      sign.kind === "agent" ? await agentAnswers(watched) : await saysOnLine(watched, sign.pattern);
    if (seen === undefined) return undefined;
    last = seen;
    const state = await run.state();
    if (state === "off") return "it shut itself off, or died";
    if (state === "stopped") return "QEMU has stopped it, because a disk failed";
    if (performance.now() >= deadline) return `${last} within ${Math.round(withinMs / 1000)} s`;
    await sleep(LOOK_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
  }
}

/** @returns undefined if it does */
async function agentAnswers({ libvirt, domain }: Watched): Promise<string | undefined> {
  try {
    await libvirt.mountpoints(domain);
    return undefined;
  } catch (error) {
    if (hasCode(error, "E_DOMAIN_OFF") || hasCode(error, "E_NO_AGENT")) return "its agent did not answer";
    // The agent answers, if only that it can't tell.
    if (hasCode(error, "E_LIBVIRT_REFUSED") && messageOf(error).includes("guest-get-fsinfo"))
      return undefined;
    throw error;
  }
}

async function saysOnLine({ folder, serialLog }: Watched, pattern: RegExp): Promise<string | undefined> {
  return pattern.test(await saidOn(folder, serialLog)) ? undefined : "it did not say what was waited for";
}

/** What a guest has said on its serial line so far. */
export async function saidOn(folder: HeldFolder, serialLog: string): Promise<string> {
  const found = await folder.find(serialLog);
  if (!found) return "";
  return (await folder.read(serialLog, MOST_SAID)).toString("latin1");
}
