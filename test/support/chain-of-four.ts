import { MemoryChain } from "./memory-chain.js";

const MiB = 1024 * 1024;

/** A full point, an increment, a compressed one and a raw one. */
export async function chainOfFour(): Promise<MemoryChain> {
  const chain = await MemoryChain.start(12 * MiB);
  const change = (seed: number, from: number, length: number): void => {
    const bytes = Buffer.alloc(length, `change ${seed} `);
    chain.disk.write(from, bytes);
  };
  change(1, 0, 5 * MiB);
  await chain.take();
  for (let i = 0; i < 20; i += 1) change(2, (i * 541 + 3) * 1024, 700);
  await chain.take();
  change(3, 6 * MiB, 2 * MiB);
  await chain.take({ compress: "deflate" });
  for (let i = 0; i < 20; i += 1) change(4, (i * 389 + 7) * 1024, 9000);
  await chain.take({ format: "raw" });
  return chain;
}
