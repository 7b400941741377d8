/** The events that libvirt sends to who has registered for them. Pure functions. */

import { type TypedParams, typedParams } from "./typed-params.js";
import { readDomain, type WireDomain } from "./wire-objects.js";
import type { XdrReader } from "./xdr.js";

/** virDomainEventID: what to register for. */
export const EVENT = { lifecycle: 0, blockJob: 16, jobCompleted: 21, blockThreshold: 24 } as const;

export type DomainEvent =
  | {
      readonly kind: "lifecycle";
      readonly domain: WireDomain;
      /** virDomainEventType, and its detail. */
      readonly event: number;
      readonly detail: number;
    }
  | {
      /** A block job of a disk is ready or has ended. */
      readonly kind: "blockJob";
      readonly domain: WireDomain;
      /** `vda`. */
      readonly device: string;
      /** virConnectDomainEventBlockJobStatus. */
      readonly status: number;
    }
  | { readonly kind: "jobCompleted"; readonly domain: WireDomain; readonly params: TypedParams }
  | {
      /** A write has passed the threshold of an image, which has none from then on. */
      readonly kind: "blockThreshold";
      readonly domain: WireDomain;
      /** `vda[5]`. */
      readonly device: string;
      /** Where the write ends, an offset in bytes. */
      readonly end: number;
    };

/** By the number of the procedure: `remote_domain_event_callback_..._msg`. */
const EVENTS: Readonly<Record<number, (message: XdrReader) => DomainEvent>> = {
  // DOMAIN_EVENT_CALLBACK_LIFECYCLE
  318: (message) => {
    message.int();
    return {
      kind: "lifecycle",
      domain: readDomain(message),
      event: message.int(),
      detail: message.int(),
    };
  },
  // DOMAIN_EVENT_BLOCK_JOB_2
  339: (message) => {
    message.int();
    const [domain, device] = [readDomain(message), message.string()];
    // The job's type.
    message.int();
    return { kind: "blockJob", domain, device, status: message.int() };
  },
  // DOMAIN_EVENT_CALLBACK_JOB_COMPLETED
  363: (message) => {
    message.int();
    return { kind: "jobCompleted", domain: readDomain(message), params: typedParams(message) };
  },
  // DOMAIN_EVENT_BLOCK_THRESHOLD
  385: (message) => {
    message.int();
    const domain = readDomain(message);
    const device = message.string();
    // The image's path.
    message.optionalString();
    const [threshold, excess] = [message.size("a threshold"), message.size("an excess")];
    return { kind: "blockThreshold", domain, device, end: threshold + excess };
  },
};

/** @returns undefined for an event that nobody here registers for */
export function decodeEvent(procedure: number, message: XdrReader): DomainEvent | undefined {
  return EVENTS[procedure]?.(message);
}
