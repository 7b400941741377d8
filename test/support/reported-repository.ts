import { open, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { MemoryChain } from "./memory-chain.js";
import { nbdpull } from "./nbdpull.js";

const MiB = 1024 ** 2;
const GiB = 1024 ** 3;
const HOUR = 3600 * 1000;
const DAY = 24 * HOUR;
const DAYS = 12;

/** Names that a page must show as they are. */
export const HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "a&amp;\u202eb"];

/**
 * A repository with twelve days of a domain `guest`, `database` whose base is damaged, `mail` that was not
 * backed up for five days, one that can't be restored at all, and domains with hostile names.
 */
export async function makeReportedRepository(now: number): Promise<MemoryChain> {
  const chain = await MemoryChain.start(20 * GiB);
  const write = (at: number, length: number, byte: number): void =>
    chain.disk.write(at, Buffer.alloc(length, byte));
  write(0, 24 * MiB, 1);
  write(9 * GiB, 8 * MiB, 2);
  for (let day = 0; day < DAYS; day += 1) {
    const { manifest } = await chain.take({ full: day === 0 || day === 6 });
    await date(chain, "guest", manifest, now - (DAYS - 1 - day) * DAY - 2 * HOUR);
    write((day * 3 + 1) * GiB * 0.5, (1 + (day % 4)) * MiB, day + 3);
    write(64 * MiB + day * MiB, MiB, day + 3);
    if (day % 3 === 0) chain.disk.writeZeroes(15 * GiB, GiB);
  }
  const take = async (name: string, times: readonly number[]): Promise<Manifest[]> => {
    const taken: Manifest[] = [];
    for (const [i, time] of times.entries()) {
      const { manifest } = await chain.take({ full: i === 0, domain: { name, uuid: null } });
      await date(chain, name, manifest, time);
      taken.push(manifest);
      write(2 * GiB + i * MiB, MiB, 0x40 + i);
    }
    return taken;
  };
  const back = (days: number): number => now - days * DAY - HOUR;
  await take("mail", [back(7), back(6), back(5)]);
  const [base] = await take("database", [back(3), back(2), back(1)]);
  const { manifest: apart } = await chain.take({ full: true, domain: { name: "database", uuid: null } });
  await date(chain, "database", apart, back(0));
  await flip(join(chain.repository.pointFolder("database", base?.id ?? ""), "vda.qcow2"), MiB);
  await nbdpull("verify", chain.repository.path, "database");
  const [lost] = await take("lost", [back(1)]);
  await writeFile(join(chain.repository.pointFolder("lost", lost?.id ?? ""), "point.json"), "{");
  for (const name of HOSTILE) await take(name, [back(0)]);
  return chain;
}

async function date(chain: MemoryChain, domain: string, { id }: Manifest, time: number): Promise<void> {
  const path = join(chain.repository.pointFolder(domain, id), "point.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as object;
  await writeFile(path, JSON.stringify({ ...manifest, createdAt: new Date(time).toISOString() }));
}

async function flip(path: string, at: number): Promise<void> {
  await using file = await open(path, "r+");
  await file.write(Buffer.from([0xee]), 0, 1, at);
}
