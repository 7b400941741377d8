import type { Socket } from "node:net";
import type { Transport } from "./connection.js";

export function overSocket(socket: Socket): Transport {
  return {
    stream: socket,
    keepAwake: (awake) => (awake ? socket.ref() : socket.unref()),
    reason: async () => undefined,
    close: () => socket.destroy(),
  };
}

/** Resolves when the socket is connected; destroys it otherwise. */
export function opened<T extends Socket>(socket: T, signal: AbortSignal, event = "connect"): Promise<T> {
  return settled(socket, signal, (resolve) => socket.once(event, () => resolve(socket)));
}

/** Resolves with the first byte that comes. */
export function firstByte(socket: Socket, signal: AbortSignal): Promise<Buffer> {
  return settled(socket, signal, (resolve) =>
    socket.once("readable", () => {
      const byte = socket.read(1) as Buffer | null;
      if (byte === null) socket.destroy(new Error("the daemon hung up"));
      else resolve(byte);
    }),
  );
}

function settled<T>(
  socket: Socket,
  signal: AbortSignal,
  wait: (resolve: (value: T) => void) => void,
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const abort = (): void => {
      socket.destroy();
      reject(signal.reason);
    };
    const done = (): void => {
      signal.removeEventListener("abort", abort);
      socket.off("error", failed).off("close", closed);
      // Until its next owner listens, an error must not be unhandled.
      socket.on("error", () => undefined);
    };
    const failed = (error: Error): void => {
      done();
      reject(error);
    };
    const closed = (): void => failed(new Error("the daemon hung up"));
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    socket.once("error", failed).once("close", closed);
    wait((value) => {
      done();
      resolve(value);
    });
  });
}
