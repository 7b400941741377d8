import { readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import type { CopiedPoint, CopyResult } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { MemoryChain } from "./memory-chain.js";
import { nbdpull, type Ran } from "./nbdpull.js";
import { qemuImg } from "./qemu-nbd.js";
import { beginsWith } from "./same-bytes.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

/** A full point and three increments, of a disk that ends inside a sector, and where they are copied to. */
export class CopyLab implements AsyncDisposable {
  readonly chain: MemoryChain;
  readonly from: string;
  readonly to: string;

  private constructor(chain: MemoryChain) {
    this.chain = chain;
    this.from = chain.repository.path;
    this.to = join(chain.folder, "copy");
  }

  static async start(): Promise<CopyLab> {
    const lab = new CopyLab(await MemoryChain.start(8 * MiB + 577));
    lab.chain.disk.write(0, Buffer.alloc(3 * MiB, "first"));
    await lab.chain.take({ full: true, digests: "sha256", granularity: 4096 });
    for (const round of [1, 2, 3]) await lab.takeIncrement(round);
    return lab;
  }

  async takeIncrement(round: number): Promise<void> {
    const { chain } = this;
    chain.disk.write(round * 700_000, Buffer.alloc(200_000, `round ${round}`));
    chain.disk.write(5 * MiB + round * 4096, Buffer.alloc(4096, round));
    chain.disk.writeZeroes(round * 300_000, 100_000);
    await chain.take({ digests: "sha256", granularity: 4096 });
  }

  ids(): string[] {
    return this.chain.points.map(({ id }) => id);
  }

  copy(...more: readonly string[]): Promise<Ran> {
    return nbdpull("copy", this.from, this.to, "--create", ...more);
  }

  async copied(...more: readonly string[]): Promise<readonly CopiedPoint[]> {
    const ran = await this.copy("--json", ...more);
    return (ran.json() as { domains: CopyResult[] }).domains[0]?.points ?? [];
  }

  /** The copy stands alone: its points verify, and stock QEMU opens them. */
  async expectSound(wanted: readonly string[]): Promise<void> {
    const { chain, from, to } = this;
    await rename(from, `${from}.away`);
    try {
      const repository = await Repository.open(to);
      expect(await repository.pointIds(NAME)).toEqual(wanted);
      const verified = await nbdpull("verify", to);
      expect(verified).toMatchObject({ code: 0 });
      const theirs = join(chain.folder, "theirs.raw");
      for (const id of wanted) {
        await qemuImg("convert", "-O", "raw", join(repository.pointFolder(NAME, id), "vda.qcow2"), theirs);
        expect(beginsWith(theirs, await chain.contentOf(id))).toBe(true);
      }
    } finally {
      await rename(`${from}.away`, from);
    }
  }

  /** Points of the copy, and what killed runs have left there. */
  async namesInCopy(): Promise<string[]> {
    const names = await readdir(join(this.to, NAME));
    return names.filter((name) => name !== ".copied.json" && !name.startsWith(".reader"));
  }

  imageOf(repository: string, point: number, file = "vda.qcow2"): string {
    return join(repository, NAME, this.ids()[point] ?? "", file);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.chain[Symbol.asyncDispose]();
  }
}

export const statesOf = (points: readonly CopiedPoint[]): string[] => points.map(({ state }) => state);
