/**
 * Who reads a point in an object store knows by the ETag of its manifest that no prune has changed it.
 * Another time gives the manifest another ETag too, so it says then which manifests it differs from in
 * nothing else.
 */
import { z } from "zod";
import { parseJson } from "../base/json.js";
import { manifestTextOf } from "./manifest-text.js";
import { redated } from "./read-manifest.js";

const dated = z.looseObject({
  revision: z.string().optional(),
  redated: z
    .object({
      /** Of the manifests before it, the oldest first. */
      etags: z.array(z.string()),
      /** That of the manifest itself, when this was written. */
      revision: z.string().optional(),
    })
    .optional(),
});

/**
 * The text of a manifest in an object store with another `createdAt`.
 * @param etag of the manifest with `text`
 * @throws {DamageError} as `manifestTextOf`
 */
export function redatedInStore(text: string, createdAt: string, etag: string): string {
  const point = JSON.parse(redated(text, createdAt)) as { revision?: unknown };
  const note = { etags: [...etagsBefore(text), etag], revision: point.revision };
  return manifestTextOf({ ...point, redated: note });
}

/** The ETags of the manifests that this one has replaced with nothing changed but the time. */
export function etagsBefore(text: string): readonly string[] {
  const { revision, redated: note } = dated.safeParse(parseJson(text)).data ?? {};
  // A merge takes the note over, and gives the manifest another revision.
  return note && note.revision === revision ? note.etags : [];
}
