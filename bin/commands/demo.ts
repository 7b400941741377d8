import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DamageError } from "../../src/backup/base/errors.js";
import { DEFAULT_DIGESTS } from "../../src/backup/digest/algorithms.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { restore } from "../../src/backup/restore/restore.js";
import { type TakenPoint, takePoint } from "../../src/backup/take/take-point.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { MemoryDisk, NbdServer, parseNbdUri, type ServedExport } from "../../src/nbd/index.js";
import { human } from "../output.js";
import type { Context } from "../run.js";
import { version } from "../version.js";

const MiB = 1024 * 1024;
const DISK_SIZE = 256 * MiB + 7 * 512;
const DOMAIN = "demo";
const BITMAP = "since-last-point";

/** One line of the report. */
interface Proof {
  readonly step: string;
  readonly figures: string;
}

export async function runDemo({ output, signal }: Context): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-demo-"));
  try {
    const proofs = await demonstrate(folder, signal);
    const lines = ["Proved, on this machine, just now:", ...proofs.map(asText)];
    output.result({ proved: proofs }, lines);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function asText({ step, figures }: Proof): string {
  return `  ${step.padEnd(52)} ${figures}`;
}

/** A guest's disk in memory and three points in time, each of which is rebuilt. */
async function demonstrate(folder: string, signal: AbortSignal): Promise<Proof[]> {
  const proofs: Proof[] = [];
  const prove = (step: string, figures: string): void => {
    proofs.push({ step, figures });
  };
  const disk = new MemoryDisk({ size: DISK_SIZE });
  const random = new Random(20_261_120);
  for (let i = 0; i < 60; i += 1) disk.write(random.sector(DISK_SIZE - MiB), random.bytes(MiB));

  // The server always serves the latest frozen point while the guest keeps writing.
  let frozen = freeze(disk);
  await using server = await NbdServer.listen({
    exports: (name) => (name === "vda" ? frozen : undefined),
    address: { path: join(folder, "nbd.sock") },
  });
  const repository = await Repository.openOrCreate(join(folder, "repo"), { trusted: true });
  const take = (parent: Manifest | undefined): Promise<TakenPoint> =>
    takePoint({
      repository,
      domain: { name: DOMAIN, uuid: null },
      disks: [
        {
          name: "vda",
          address: parseNbdUri(server.uri("vda")),
          increment: parent && { bitmap: BITMAP, parent },
        },
      ],
      checkpoint: null,
      format: "qcow2",
      digests: DEFAULT_DIGESTS,
      sync: true,
      tool: `nbdpull ${version()}`,
      connect: {},
      signal,
      confirm: async () => undefined,
    });

  const references: { readonly point: Manifest; readonly content: ServedExport }[] = [];
  for (let round = 0; round < 3; round += 1) {
    const pulling = take(references.at(-1)?.point);
    guestWrites(disk, random);
    const { manifest, seconds } = await pulling;
    references.push({ point: manifest, content: frozen });
    const [vda] = manifest.disks;
    prove(
      `${manifest.level} pull while the guest was writing`,
      `${human(vda?.dirtyBytes ?? 0)} dirty, ${human(vda?.dataBytes ?? 0)} of it data, in ${seconds.toFixed(2)} s`,
    );
    frozen = freeze(disk);
  }

  for (const { point, content } of references) {
    const path = join(folder, `${point.id}.raw`);
    await restore({
      repository,
      domain: DOMAIN,
      point,
      targets: [{ disk: "vda", path, format: "raw" }],
      force: false,
      sync: false,
      signal,
    });
    await compare(path, content, point.id);
    prove(`point ${point.id} restored`, `${human(DISK_SIZE)} equal to the frozen disk, byte for byte`);
    await rm(path);
  }

  const ids = references.map(({ point }) => point.id);
  const reports = await verifyPoints(repository, DOMAIN, ids, { signal });
  const findings = reports.flatMap((report) => report.findings);
  if (findings.length > 0) throw new DamageError("E_DEMO", `verify found damage: ${findings[0]?.message}`);
  const verified = reports
    .flatMap((report) => report.disks)
    .reduce((sum, { verifiedBytes }) => sum + verifiedBytes, 0);
  prove("every stored byte verified against its digest", `${human(verified)} in ${ids.length} points`);

  const last = references.at(-1)?.point;
  if (last) prove("one flipped bit in the newest increment was found", await flipAndFind(repository, last));
  return proofs;
}

/** Freezes the disk as it is now, with the bitmap since the last freeze, and starts a new bitmap. */
function freeze(disk: MemoryDisk): ServedExport {
  const frozen = disk.freeze();
  disk.startBitmap(BITMAP);
  return frozen;
}

/** Writes data, zeroes and discards at odd multiples of 512 bytes, as guests do. */
function guestWrites(disk: MemoryDisk, random: Random): void {
  for (let i = 0; i < 40; i += 1)
    disk.write(random.sector(DISK_SIZE - MiB), random.bytes(random.upTo(256) * 512));
  for (let i = 0; i < 20; i += 1) disk.writeZeroes(random.sector(DISK_SIZE - MiB), random.upTo(2048) * 512);
  for (let i = 0; i < 10; i += 1) disk.discard(random.sector(DISK_SIZE - MiB), random.upTo(2048) * 512);
}

/** @throws {DamageError} at the first piece that differs */
async function compare(path: string, content: ServedExport, point: string): Promise<void> {
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    if (size !== content.size)
      throw new DamageError("E_DEMO", `${point}: ${size} bytes instead of ${content.size}`);
    const bytes = Buffer.alloc(MiB);
    for (let offset = 0; offset < size; offset += MiB) {
      const { bytesRead } = await file.read(bytes, 0, MiB, offset);
      if (!bytes.subarray(0, bytesRead).equals(await content.read(offset, bytesRead))) {
        throw new DamageError("E_DEMO", `${point}: the restored disk differs in the MiB at ${offset}`);
      }
    }
  } finally {
    await file.close();
  }
}

async function flipAndFind(repository: Repository, point: Manifest): Promise<string> {
  const [vda] = point.disks;
  const file = await open(join(repository.pointFolder(DOMAIN, point.id), vda?.file ?? ""), "r+");
  try {
    const byte = Buffer.alloc(1);
    const position = (vda?.clusterSize ?? 0) + 4711;
    await file.read(byte, 0, 1, position);
    await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, position);
  } finally {
    await file.close();
  }
  const [report] = await verifyPoints(repository, DOMAIN, [point.id]);
  const [finding] = report?.findings ?? [];
  if (!finding) throw new DamageError("E_DEMO", "a flipped bit went unnoticed");
  return `disk ${finding.disk}, guest offset ${finding.guestOffset}: ${finding.message}`;
}

/** The same numbers in every run (xorshift32), so that results are reproducible. */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed;
  }

  #next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x >>> 0;
    return this.#state;
  }

  /** 1 .. most. */
  upTo(most: number): number {
    return (this.#next() % most) + 1;
  }

  /** A byte offset below `size`, aligned to a sector. */
  sector(size: number): number {
    return Math.floor((this.#next() % size) / 512) * 512;
  }

  bytes(length: number): Buffer {
    const words = new Uint32Array(length / 4);
    for (let i = 0; i < words.length; i += 1) words[i] = this.#next();
    return Buffer.from(words.buffer);
  }
}
