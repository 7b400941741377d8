/** Bytes of each read of the programs that read at random. */
export const READ_BYTES = 64 * 1024;

/** In an order that is the same in every run with the same seed, from 1. */
export function shuffled<T>(values: readonly T[], seed: number): T[] {
  let state = seed;
  const keyed = values.map((value) => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return { key: state, value };
  });
  return keyed.sort((one, other) => one.key - other.key).map(({ value }) => value);
}
