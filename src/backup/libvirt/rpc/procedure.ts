import { type WireDomain, writeDomain } from "./wire-objects.js";
import type { XdrReader, XdrWriter } from "./xdr.js";

/** How libvirt is asked to do something, and what it answers. */
export interface Procedure<Args, Answer> {
  /** Whose number it is; default: `PROGRAM.remote`. */
  readonly program?: number;
  /** In `enum remote_procedure`, or `enum qemu_procedure`. */
  readonly number: number;
  /** Without `REMOTE_PROC_`. */
  readonly name: string;
  /** Whether it changes nothing, so that it can be repeated if the answer was lost. */
  readonly repeatable: boolean;
  readonly encode: (out: XdrWriter, args: Args) => unknown;
  readonly decode: (answer: XdrReader) => Answer;
}

/** A procedure that changes nothing. */
export function question<Args, Answer>(
  number: number,
  name: string,
  encode: Procedure<Args, Answer>["encode"],
  decode: Procedure<Args, Answer>["decode"],
): Procedure<Args, Answer> {
  return { number, name, repeatable: true, encode, decode };
}

/** A procedure that changes something. */
export function act<Args, Answer>(
  number: number,
  name: string,
  encode: Procedure<Args, Answer>["encode"],
  decode: Procedure<Args, Answer>["decode"],
): Procedure<Args, Answer> {
  return { number, name, repeatable: false, encode, decode };
}

export function noArguments(_out: XdrWriter, _none: undefined): void {}

export function nothing(): void {}

export function domainAlone(out: XdrWriter, { domain }: { readonly domain: WireDomain }): XdrWriter {
  return writeDomain(out, domain);
}

export function domainAndFlags(
  out: XdrWriter,
  { domain, flags }: { readonly domain: WireDomain; readonly flags: number },
): XdrWriter {
  return writeDomain(out, domain).int(flags);
}

/** For a procedure that takes flags of which this program knows none. */
export function domainWithoutFlags(out: XdrWriter, { domain }: { readonly domain: WireDomain }): XdrWriter {
  return writeDomain(out, domain).int(0);
}
