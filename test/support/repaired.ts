import { expect } from "vitest";
import { nbdpull } from "./nbdpull.js";

/** What `nbdpull repair --json` tells of a domain. */
export interface Repaired {
  readonly mended: readonly { point: string; what: string; guestOffset?: number; from: string }[];
  readonly cleared: readonly { point: string; objects: number; uploads: number; noted: boolean }[];
  readonly left: readonly { point: string; severity: string; guestOffset?: number }[];
  readonly unrestorable: readonly { id: string }[];
}

/** Repairs a repository of one domain, without a word on standard error. */
export async function repaired(
  code: number,
  repository: string,
  ...more: readonly string[]
): Promise<Repaired> {
  const ran = await nbdpull("repair", repository, "--json", ...more);
  expect([ran.code, ran.stderr]).toEqual([code, ""]);
  const [domain] = (ran.json() as { domains: Repaired[] }).domains;
  if (!domain) throw new Error("nothing was told of the domain");
  return domain;
}
