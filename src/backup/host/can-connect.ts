import { connect } from "node:net";

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
  const socket = connect({ host, port, signal: AbortSignal.any(signal ? [signal, patience] : [patience]) });
  try {
    return await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true));
      socket.once("error", () => resolve(false));
    });
  } finally {
    socket.destroy();
  }
}
