/** A whole meta context, as our client and as nbdinfo see it; and reads whose bytes tell where they are from. */

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

/** A whole context as our client sees it, in nbdinfo's shape: neighbours that are alike are one. */
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

/** What nbdinfo sees; it leaves neighbours apart where a reply of the server ended. */
export async function theirMap(uri: string, context: string): Promise<MapLine[]> {
  const lines: MapLine[] = [];
  for (const { offset, length, type } of await newerMap(uri, context)) append(lines, offset, length, type);
  return lines;
}
