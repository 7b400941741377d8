/**
 * Tells whoever listens in this process that something is waited for that may be starting, such as an object
 * store: a command says so, and goes on waiting. The library itself writes nothing to the terminal.
 */
import { channel } from "node:diagnostics_channel";

export interface Waiting {
  /** For messages: the endpoint or "AWS". */
  readonly store: string;
  /** Why, to go on after "which". */
  readonly because: string;
  /** For about how long it is waited. */
  readonly seconds: number;
}

const WAITING = channel("nbdpull:waiting");

export function tellWaiting(waiting: Waiting): void {
  WAITING.publish(waiting);
}

/** @returns what ends it */
export function onWaiting(listener: (waiting: Waiting) => void): () => void {
  const heard = (message: unknown): void => listener(message as Waiting);
  WAITING.subscribe(heard);
  return () => void WAITING.unsubscribe(heard);
}
