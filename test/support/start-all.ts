/**
 * Waits until all have started. Where one fails, those that have started end, and what it failed of is thrown:
 * nobody else has a name for them yet. What else fails of those that end, comes behind it.
 */
export async function startAll<const All extends readonly AsyncDisposable[]>(
  ...starting: { [Index in keyof All]: Promise<All[Index]> }
): Promise<All> {
  const settled = await Promise.allSettled<AsyncDisposable>(starting);
  const started = settled.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
  const errors = settled.flatMap((each) => (each.status === "rejected" ? [each.reason as unknown] : []));
  if (errors.length === 0) return started as unknown as All;
  const ended = await Promise.allSettled(started.map(async (each) => await each[Symbol.asyncDispose]()));
  errors.push(...ended.flatMap((each) => (each.status === "rejected" ? [each.reason as unknown] : [])));
  throw errors.length === 1 ? errors[0] : new AggregateError(errors, errors.map(String).join("; "));
}
