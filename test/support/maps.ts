/** Whole meta contexts as our client and nbdinfo see them, and reads of bytes that depend on their offset. */

import { expect } from "vitest";
import type { NbdClient } from "../../src/nbd/index.js";
import { pattern } from "../nbd/servers.js";
import { type MapLine, newerMap } from "./newer-suite.js";

/** Reads a stretch of a disk that holds {@link pattern}. */
export async function expectRead(client: NbdClient, offset: number, length: number): Promise<void> {
  const target = Buffer.alloc(length, 0xee);
  await client.read(offset, target);
  expect(target.equals(pattern(offset, length)), `bytes from ${offset}, length ${length}`).toBe(true);
}

/** A whole context as our client sees it, in nbdinfo's shape, with equal neighbours joined. */
export async function mapOf(client: NbdClient, context: string, onlyFirst = false): Promise<MapLine[]> {
  const lines: MapLine[] = [];
  for await (const { contexts } of client.blockStatus({ onlyFirst })) {
    for (const { offset, length, flags } of contexts.get(context) ?? []) append(lines, offset, length, flags);
  }
  return lines;
}

function append(lines: MapLine[], offset: number, length: number, type: number): void {
  const last = lines.at(-1);
  if (last?.type === type) lines[lines.length - 1] = { ...last, length: last.length + length };
  else lines.push({ offset, length, type });
}

/** The context as nbdinfo sees it, with neighbours joined that it splits at the end of a reply. */
export async function theirMap(uri: string, context: string): Promise<MapLine[]> {
  const lines: MapLine[] = [];
  for (const { offset, length, type } of await newerMap(uri, context)) append(lines, offset, length, type);
  return lines;
}
