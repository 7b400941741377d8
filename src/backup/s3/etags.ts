import { createHash, type Hash } from "node:crypto";
import { PartLayout } from "./part-layout.js";

/**
 * The ETag that a store gives these bytes if it encrypts nothing by keys of its own: their MD5. One that
 * gives another has what is there sent again.
 * @returns undefined where this host's rules forbid MD5
 */
export function bytesETag(bytes: Uint8Array): string | undefined {
  return newHash()?.update(bytes).digest("hex");
}

/**
 * The ETag that most stores give an object that was put together of parts with these ETags.
 * @returns undefined: those of the parts are no MD5, or this host's rules forbid it
 */
export function partsETag(etags: readonly (string | undefined)[]): string | undefined {
  const digests = etags.map((etag) => /^[0-9a-f]{32}$/.exec(bareETag(etag))?.[0]);
  if (digests.includes(undefined)) return undefined;
  return joinedETag(digests.map((digest) => Buffer.from(digest ?? "", "hex")));
}

/** @param digests of the parts */
function joinedETag(digests: readonly Buffer[]): string | undefined {
  const all = bytesETag(Buffer.concat(digests));
  return all === undefined ? undefined : `${all}-${digests.length}`;
}

/** An ETag without quotation marks: some stores compare it with them, some without. */
export function bareETag(etag: string | undefined): string {
  return (etag ?? "").replaceAll('"', "");
}

function newHash(): Hash | undefined {
  try {
    return createHash("md5");
  } catch {
    return undefined;
  }
}

/** The ETag of a whole object that is written from front to back, as `ObjectUpload` cuts it into parts. */
export class ObjectETag {
  readonly #layout: PartLayout;
  readonly #size: number;
  readonly #parts: Buffer[] = [];
  #hash = newHash();
  #position = 0;

  /** @param size of the object, in bytes */
  constructor(size: number) {
    this.#layout = new PartLayout({ mostBytes: size });
    this.#size = size;
  }

  /** The next bytes. */
  update(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const end = this.#layout.startOf(this.#parts.length + 1);
      const piece = bytes.subarray(done, done + end - this.#position);
      this.#hash?.update(piece);
      this.#position += piece.length;
      done += piece.length;
      if (this.#position === end) this.#endPart();
    }
  }

  #endPart(): void {
    if (!this.#hash) return;
    this.#parts.push(this.#hash.digest());
    this.#hash = newHash();
  }

  /** @returns undefined where this host's rules forbid MD5 */
  digest(): string | undefined {
    if (!this.#hash) return undefined;
    const isEven = this.#parts.length > 0 && this.#position === this.#layout.startOf(this.#parts.length);
    if (!isEven) this.#parts.push(this.#hash.digest());
    const [first, ...others] = this.#parts;
    if (this.#size <= this.#layout.bytesOf(0))
      return others.length === 0 ? first?.toString("hex") : undefined;
    return joinedETag(this.#parts);
  }
}
