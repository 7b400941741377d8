import { readFile } from "node:fs/promises";
import { addAbortSignal } from "node:stream";
import { text } from "node:stream/consumers";
import { UsageError } from "../../src/backup/base/errors.js";
import type { EncryptedPolicy } from "../../src/backup/guest/encrypted-disks.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { attach } from "../../src/backup/take/attach.js";
import type { JobSource } from "../../src/backup/take/job-view.js";
import { loadForPoint } from "../../src/backup/take/take-point.js";
import { keptLines } from "../kept-lines.js";
import { connectOf, rateLimitOf, reconnectOf, storageOf } from "../option-values.js";
import type {
  CopyOptions,
  CreateOptions,
  NetworkOptions,
  ProofOptions,
  ReconnectOptions,
  ScratchOptions,
  TrustOptions,
} from "../options.js";
import { OutageNotes } from "../outage-notes.js";
import { asDisks, human } from "../output.js";
import { proofText } from "../proof-text.js";
import type { Context } from "../run.js";
import { requireRepository } from "../target-repository.js";
import { prepareToWrite } from "../trust.js";

export interface AttachOptions
  extends CopyOptions,
    CreateOptions,
    NetworkOptions,
    ProofOptions,
    ReconnectOptions,
    ScratchOptions,
    TrustOptions {
  readonly encrypted: EncryptedPolicy;
  readonly to: string;
  readonly xml?: string;
  readonly domain?: string;
  readonly uuid?: string;
  readonly checkpoint?: string;
  readonly connect?: string;
  readonly endJob?: true;
}

/** Loads what the images of the point will need: once a job is read, an upgrade may have replaced it. */
export async function loadForAttach(options: AttachOptions): Promise<void> {
  await loadForPoint(storageOf(options));
}

export async function runAttach(
  { output, signal }: Context,
  options: AttachOptions,
  domain: string | undefined,
): Promise<void> {
  const storage = storageOf(options);
  const source = await jobSource(domain, options, signal);
  await requireRepository(options.to, options, signal);
  await prepareToWrite(options.to, undefined, options, output);
  const progress = await output.progress();
  const notes = new OutageNotes(output, progress);
  try {
    const { signal: _, ...connect } = await connectOf(options, signal, reconnectOf(options));
    const { manifest, folder, proofs, seconds, extents, requests, connections, jobEnded } = await attach({
      source,
      repositoryPath: options.to,
      trustRepository: options.trustRepository,
      checkpoint: options.checkpoint,
      encrypted: options.encrypted,
      endJob: options.endJob ?? false,
      scratchReserve: options.scratchReserve,
      ...storage,
      connect,
      rateLimit: rateLimitOf(options),
      signal,
      onProgress: (disk, p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
      onOutage: notes.note,
      onWarning: (message) => output.warn(message),
    });
    const lines = manifest.disks.map((disk) => {
      const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
      const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
      return `  ${disk.name}: ${human(disk.virtualSize)}, ${what}${why}, ${human(disk.storedBytes)} stored${proofText(proofs, disk.name)}`;
    });
    output.result(
      {
        id: manifest.id,
        domain: manifest.domain.name,
        uuid: manifest.domain.uuid,
        level: manifest.level,
        checkpoint: manifest.checkpoint?.name ?? null,
        createdAt: manifest.createdAt,
        folder,
        disks: asDisks(manifest.disks),
        files: manifest.files,
        notKept: manifest.notKept,
        proofs,
        extents,
        requests,
        connections,
        seconds,
        jobEnded,
        warnings: output.warnings,
      },
      [
        `${manifest.domain.name} ${manifest.id}: ${manifest.level} restore point in ${seconds.toFixed(2)} s`,
        ...lines,
        ...keptLines(manifest).map((line) => `  ${line}`),
      ],
    );
  } finally {
    progress.stop();
  }
}

async function jobSource(
  domain: string | undefined,
  options: AttachOptions,
  signal: AbortSignal,
): Promise<JobSource> {
  const xml = options.xml === undefined ? undefined : await readXml(options.xml, signal);
  if (domain !== undefined) {
    if (options.domain !== undefined)
      throw new UsageError("E_DOMAIN", "name the domain once: as argument, or with --domain");
    if (options.uuid !== undefined)
      throw new UsageError("E_USAGE", "--uuid goes with --domain: libvirt knows the UUID of its domains");
    return {
      kind: "libvirt",
      libvirt: new Libvirt({
        signal,
        ...(options.connect === undefined ? {} : { connect: options.connect }),
      }),
      domain,
      xml,
    };
  }
  if (xml === undefined)
    throw new UsageError("E_DOMAIN", "name a domain, or give the job's XML with --xml FILE --domain NAME");
  if (options.domain === undefined) {
    throw new UsageError("E_DOMAIN", "--xml alone does not say whose job it is: add --domain NAME");
  }
  return { kind: "xml", xml, domain: options.domain, uuid: options.uuid };
}

async function readXml(path: string, signal: AbortSignal): Promise<string> {
  if (path === "-") return await text(addAbortSignal(signal, process.stdin));
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError("E_XML_FILE", `the job's XML cannot be read: ${message}`, { cause });
  }
}
