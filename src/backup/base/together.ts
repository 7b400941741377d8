/**
 * Waits for all of several questions that are asked at the same time. Where more than one fails it is the first one's error
 * that counts, as if they had been asked one after the other.
 */
export async function together<T extends readonly unknown[]>(
  ...asked: { readonly [K in keyof T]: Promise<T[K]> }
): Promise<T> {
  const failed = (await Promise.allSettled(asked)).find((answer) => answer.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return (await Promise.all(asked)) as unknown as T;
}
