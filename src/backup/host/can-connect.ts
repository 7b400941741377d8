import { connect } from "node:net";
import { anySignal } from "../../nbd/index.js";

/** Whether somebody takes a TCP connection, which is ended at once. */
export async function canConnect({
  host,
  port,
  timeoutMs,
  signal,
}: {
  readonly host: string;
  readonly port: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}): Promise<boolean> {
  const patience = AbortSignal.timeout(Math.ceil(timeoutMs));
  const socket = connect({ host, port, signal: anySignal(signal, patience) });
  try {
    return await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true));
      socket.once("error", () => resolve(false));
    });
  } finally {
    socket.destroy();
  }
}
