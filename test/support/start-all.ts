/**
 * Waits until all have started. Where one fails, those that have started end, and what it failed of is thrown:
 * nobody else has a name for them yet.
 */
export async function startAll<const All extends readonly AsyncDisposable[]>(
  ...starting: { [Index in keyof All]: Promise<All[Index]> }
): Promise<All> {
  const settled = await Promise.allSettled<AsyncDisposable>(starting);
  const started = settled.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
  const errors = settled.flatMap((each) => (each.status === "rejected" ? [each.reason as unknown] : []));
  if (errors.length === 0) return started as unknown as All;
  for (const each of started) await each[Symbol.asyncDispose]();
  throw errors.length === 1 ? errors[0] : new AggregateError(errors, errors.map(String).join("; "));
}
