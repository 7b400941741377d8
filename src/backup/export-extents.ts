import type { NbdClient } from "../nbd/index.js";
import type { Extent } from "./extent.js";
import { classify } from "./extent-algebra.js";

export const ALLOCATION_CONTEXT = "base:allocation";

/** The meta context of QEMU that serves the dirty bitmap `name`. */
export function dirtyContext(name: string): string {
  return `qemu:dirty-bitmap:${name}`;
}

/**
 * Everything that the export's negotiated contexts say, as gapless extents from byte 0 to its end, asked for lazily and
 * handed on in batches.
 * Without `bitmap` (a full copy) nothing is clean. Without contexts the whole export is data.
 *
 * @throws {NbdError} block status failed, or left something unsaid
 */
export async function* exportExtents(
  client: NbdClient,
  options: { readonly bitmap?: string | undefined; readonly signal?: AbortSignal | undefined },
): AsyncGenerator<readonly Extent[]> {
  const { size, contexts } = client.export;
  if (size === 0) return;
  if (contexts.length === 0) {
    yield [{ offset: 0, length: size, state: "data" }];
    return;
  }
  const dirtyName = options.bitmap === undefined ? undefined : dirtyContext(options.bitmap);
  for await (const batch of client.blockStatus(options.signal ? { signal: options.signal } : {})) {
    const dirty = dirtyName === undefined ? undefined : batch.contexts.get(dirtyName);
    if (dirtyName !== undefined && dirty === undefined) throw new Error(`${dirtyName} was not negotiated`);
    const allocation = batch.contexts.get(ALLOCATION_CONTEXT);
    yield [...classify({ offset: batch.offset, length: batch.length, dirty, allocation })];
  }
}
