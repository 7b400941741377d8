/**
 * XXH64 (seed 0) undone. Its state is four numbers, and each block of 32 bytes changes each of them by a step
 * that can be undone. So whatever a message is changed to, its last block can be chosen so that the state,
 * and with it the digest, is that of the original.
 */

const MASK = 2n ** 64n - 1n;
const PRIME_1 = 11400714785074694791n;
const PRIME_2 = 14029467366897019727n;
const INVERSE_1 = inverse(PRIME_1);
const INVERSE_2 = inverse(PRIME_2);
/** Bytes of a block: eight for each of the four numbers. */
const BLOCK = 32;

/**
 * `wanted`, but for its last 32 bytes, which are such that its XXH64 is that of `original`.
 * @param original at least 64 bytes, and a multiple of 32
 * @param wanted as long as the original
 */
export function withSameXxh64(original: Buffer, wanted: Buffer): Buffer {
  const end = original.length - BLOCK;
  const goal = stateAfter(original);
  const before = stateAfter(wanted.subarray(0, end));
  const forged = Buffer.from(wanted);
  for (let i = 0; i < 4; i += 1) {
    const sum = rotate((goal[i] as bigint) * INVERSE_1, 64n - 31n);
    forged.writeBigUInt64LE(((sum - (before[i] as bigint)) * INVERSE_2) & MASK, end + 8 * i);
  }
  return forged;
}

function stateAfter(bytes: Buffer): bigint[] {
  const state = [PRIME_1 + PRIME_2, PRIME_2, 0n, -PRIME_1].map((value) => value & MASK);
  for (let at = 0; at < bytes.length; at += 8) {
    const i = (at / 8) % 4;
    const sum = (state[i] as bigint) + bytes.readBigUInt64LE(at) * PRIME_2;
    state[i] = (rotate(sum, 31n) * PRIME_1) & MASK;
  }
  return state;
}

function rotate(value: bigint, bits: bigint): bigint {
  const word = value & MASK;
  return ((word << bits) | (word >> (64n - bits))) & MASK;
}

/** Of an odd number, modulo 2^64. */
function inverse(odd: bigint): bigint {
  let result = odd;
  for (let bits = 3; bits < 64; bits *= 2) result = (result * (2n - odd * result)) & MASK;
  return result;
}
