/** Parts of a time-out. A suspension of this process costs the peer one of them at most. */
const PARTS = 4;

/**
 * Calls `onTimeout` once, after `ms` in which this process was running: time in which it was stopped, or too
 * busy to look, isn't the peer's fault.
 * @returns a function that ends the wait
 */
export function countedTimeout(ms: number, onTimeout: () => void): () => void {
  let left = PARTS;
  const timer = setInterval(() => {
    left -= 1;
    if (left > 0) return;
    clearInterval(timer);
    onTimeout();
  }, ms / PARTS);
  return () => clearInterval(timer);
}
