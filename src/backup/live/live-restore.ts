/**
 * The live room runs a guest on a restore point while its disks are still in the repository.
 *
 * Read this file first: `restoreLive` makes images (`live-files.ts`) that are based on the served point
 * (`live-server.ts`), defines and starts the domain, and has QEMU fill the images (`fill-disks.ts`) until
 * they need nobody.
 * `live-state.ts` is the file beside them by which a killed one goes on, and `error-policies.ts` has the
 * guest stop, instead of seeing errors, while the server is away.
 *
 * What the guest writes goes into its own images only. Nothing here changes a point or the old domain.
 */

import { join } from "node:path";
import { type DamageError, hasCode, PreconditionError } from "../base/errors.js";
import { together } from "../base/in-parallel.js";
import { refuseKnownDamage } from "../chain/chain.js";
import type { Adaptation } from "../definition/fit-to-host.js";
import { freeBytes } from "../host/free-bytes.js";
import { HeldFolder } from "../host/held-folder.js";
import { DomainRun } from "../libvirt/domain-run.js";
import { PATIENCE_MS } from "../libvirt/libvirt.js";
import { diskOf, type Manifest } from "../repository/manifest.js";
import { withRestorable } from "../repository/points-without-damage.js";
import { turnFor } from "../restore/domain-turn.js";
import { RestoredDefinition } from "../restore/restored-definition.js";
import type { DiskCacheOptions } from "../serve/disk-cache.js";
import type { PointServer } from "../serve/serve.js";
import { forgetBeside, noteBeside, noteOf } from "./beside-point.js";
import { BootReads, fetchBoot } from "./boot-reads.js";
import { decideSwitches } from "./doubtful-switch.js";
import { type FillEvent, fillDisks } from "./fill-disks.js";
import { finishLive, settleDisk } from "./finish-live.js";
import { endLeftCopies } from "./left-copies.js";
import { openDisplays } from "./live-definition.js";
import {
  definitionOf,
  imageOf,
  isForgotten,
  mayBeOurs,
  notStarted,
  proveOurs,
  refuseTaken,
  refuseUnfitLive,
  unknown,
} from "./live-domain.js";
import { type LiveFilesOptions, makeFiles, planFiles } from "./live-files.js";
import { lockLive } from "./live-lock.js";
import { refuseChangeable } from "./live-place.js";
import { LIVE_SOCKET, serveLive } from "./live-server.js";
import { type LiveState, readLiveState, removeLiveState, STATE, writeLiveState } from "./live-state.js";
import { isFilled, proveImages, removeMade } from "./made-files.js";
import { WholeImages } from "./whole-images.js";

export interface LiveRestoreOptions extends LiveFilesOptions {
  /** Says which disks of which point, for a new live restore; one that goes on keeps its own. */
  readonly choose: () => Promise<{ readonly point: Manifest; readonly disks: readonly string[] }>;
  /** Where the images are made: a folder that exists. */
  readonly folder: string;
  /** Only go on with one that was begun. */
  readonly resume: boolean;
  /** Bytes per second for filling the disks; undefined: no limit. */
  readonly rate: number | undefined;
  /** Where clusters are kept that were read; undefined: only in memory. */
  readonly cache?: DiskCacheOptions | undefined;
  readonly onEvent: (event: LiveEvent) => void;
}

export type LiveEvent =
  | FillEvent
  /** What its network cards are connected to: `network default`. It is told before the guest can run. */
  | { readonly type: "networks"; readonly name: string; readonly networks: readonly string[] }
  /** What its definition has in the place of what this host has not. It is told before the guest can run. */
  | { readonly type: "adapted"; readonly name: string; readonly adapted: readonly Adaptation[] }
  /** From now on the guest may run. `seconds` since the call. */
  | {
      readonly type: "live";
      readonly name: string;
      readonly point: string;
      readonly isStarted: boolean;
      readonly seconds: number;
    }
  /** A place of the point can't be read: the guest has an error there, or stops. */
  | { readonly type: "damaged"; readonly error: DamageError }
  | { readonly type: "warning"; readonly message: string };

interface LiveResult {
  readonly name: string;
  readonly uuid: string;
  readonly point: string;
  /** The disks, and their images. */
  readonly disks: readonly { readonly disk: string; readonly path: string }[];
  /** What the definition has in the place of what this host has not. */
  readonly adapted: readonly Adaptation[];
  readonly seconds: number;
}

/**
 * Has a domain run from a point at once, and fills its disks meanwhile. Resolves when they need nobody any
 * more. If it fails before the guest can have run, nothing is left. Later the guest needs this process until
 * it resolves: a second call for the same folder goes on where one was killed.
 *
 * @throws {PreconditionError} `E_LIVE_UNSUPPORTED`: libvirt or QEMU is too old, or on another host;
 *   `E_NOTHING_TO_RESUME`; `E_LIVE_PLACE`; `E_LIVE_STATE`; `E_LIVE_USER`; `E_ADDRESS_IN_USE`: another process
 *   does it already; `E_LIVE_NOT_STARTED`; and as {@link RestoredDefinition.prepare}
 * @throws {DamageError} the point is known to be damaged
 * @throws {UsageError} a file exists
 * @throws the signal's reason; once the guest may run, its disks are not filled then
 */
export async function restoreLive(options: LiveRestoreOptions): Promise<LiveResult> {
  const began = performance.now();
  const { libvirt, resume } = options;
  await refuseUnfitLive(libvirt);
  await using folder = await HeldFolder.open(options.folder);
  await refuseChangeable(folder.realPath);
  await using lock = await lockLive(folder);
  void lock;
  const left = await readLiveState(folder);
  if (left) await refuseOther(options, folder.realPath, left);
  if (left?.phase === "ready") return await goOn(options, folder, left, began);
  // One that was killed before its guest can have run.
  if (left) await undo(options, folder, left);
  if (resume) {
    const message = `no live restore was begun in ${options.folder} that could go on: leave out --resume`;
    throw new PreconditionError("E_NOTHING_TO_RESUME", message, { details: { folder: options.folder } });
  }
  return await begin(options, folder, began);
}

async function begin(options: LiveRestoreOptions, folder: HeldFolder, began: number): Promise<LiveResult> {
  const { repository, domain, libvirt } = options;
  const { point, disks } = await options.choose();
  const withOthers = async (error: unknown): Promise<never> => {
    throw await withRestorable(error, repository, domain, disks);
  };
  if (!options.salvage) {
    // What else there is to see of its chains is seen when they are opened.
    const looks = disks.map((disk) => refuseKnownDamage(repository, domain, point, disk));
    await together(...looks).catch(withOthers);
  }
  const plan = await planFiles(options, folder, { point, disks });
  const { definition, state } = plan;
  const boot = new BootReads();
  await using server = await serveLive(options, { ...state, boot }).catch(withOthers);
  const fetched = fetchBoot(options, server);
  await writeLiveState(folder, { ...state, phase: "preparing" });
  try {
    await makeFiles(options, folder, server, plan);
  } catch (error) {
    await undo(options, folder, state);
    throw error;
  }
  const { name } = definition;
  const warnings = [...definition.warnings, ...openDisplays(definition.xml)];
  for (const message of warnings) options.onEvent({ type: "warning", message });
  await warnOfRoom(options, point, disks, folder.realPath);
  options.onEvent({ type: "networks", name, networks: definition.networks });
  if (state.adapted.length > 0) options.onEvent({ type: "adapted", name, adapted: state.adapted });
  const steady = libvirt.withSignal(undefined);
  const run = new DomainRun(steady, state.domain);
  let mayBeDefined = false;
  let isDefined = false;
  try {
    await using turn = await turnFor(state.domain.uuid);
    void turn;
    await refuseTaken(steady, state.domain);
    mayBeDefined = true;
    await steady.define(name, definitionOf(definition.xml, state));
    isDefined = true;
    if (options.start) await run.start();
  } catch (error) {
    const isOurs = mayBeOurs(error, { mayBeDefined, isDefined });
    if (isOurs && !(await isForgotten(run))) throw unknown(state, options.folder, error);
    await writeLiveState(folder, { ...state, phase: "preparing" });
    await undo(options, folder, state);
    throw hasCode(error, "E_DOMAIN_EXISTS") ? error : notStarted(name, error);
  }
  return await fill(options, folder, state, { server, isStarted: options.start, began, boot, fetched });
}

/** Goes on with one that was killed after its guest could run. */
async function goOn(
  options: LiveRestoreOptions,
  folder: HeldFolder,
  state: LiveState,
  began: number,
): Promise<LiveResult> {
  const { libvirt } = options;
  const steady = libvirt.withSignal(undefined).withPatience(PATIENCE_MS);
  const run = new DomainRun(steady, state.domain);
  await decideSwitches({ libvirt: steady, run }, folder, state);
  const present = new Set(await folder.names());
  const gone = state.disks.map(imageOf).find((file) => !present.has(file));
  if (gone !== undefined) {
    const message = `${join(folder.path, gone)} is gone, and with it what ${state.domain.name} has written: the live restore can't go on. To begin again, remove ${join(folder.path, STATE)}, what else is left there, and, if it is there, ${noteOf(state)}`;
    throw new PreconditionError("E_LIVE_STATE", message, { details: { folder: folder.path } });
  }
  const filled = await Promise.all(state.disks.map((disk) => isFilled(folder, imageOf(disk))));
  await proveImages(folder, state, join(folder.realPath, LIVE_SOCKET));
  const isDefined = await steady.hasDomain(state.domain.uuid);
  if (isDefined) await proveOurs(run, folder, state);
  // It was killed just before its end, and the point may be gone since.
  if (filled.every(Boolean)) return await finish(options, folder, state, began);
  await using server = await serveLive(options, state);
  await noteBeside(options, state, { place: folder.realPath, server, hasRun: true });
  if (!isDefined) {
    await using turn = await turnFor(state.domain.uuid);
    void turn;
    await refuseTaken(steady, state.domain, { state, folder: folder.path });
    const xml = (await folder.read(state.xml, 4 * 1024 * 1024)).toString("utf8");
    await steady.define(state.domain.name, definitionOf(xml, state));
  }
  const isOff = (await run.runState()) === "off";
  const fetched = isOff ? fetchBoot(options, server) : undefined;
  if (isOff && options.start) await run.start();
  const standing = await endLeftCopies(run, folder, state);
  const isStarted = !isOff || options.start;
  return await fill(options, folder, state, { server, isStarted, began, standing, fetched });
}

async function fill(
  options: LiveRestoreOptions,
  folder: HeldFolder,
  state: Omit<LiveState, "format" | "version" | "phase">,
  {
    server,
    isStarted,
    began,
    standing = new Set(),
    boot,
    fetched,
  }: {
    readonly server: PointServer;
    readonly isStarted: boolean;
    readonly began: number;
    /** Disks whose guest is on the whole image already. */
    readonly standing?: ReadonlySet<string>;
    /** What its guest reads while it boots, for the next one. */
    readonly boot?: BootReads | undefined;
    /** Settles when its guest needs most of the connection no longer. */
    readonly fetched?: Promise<void> | undefined;
  },
): Promise<LiveResult> {
  const { libvirt, rate, signal, onEvent, force } = options;
  const { name } = state.domain;
  onEvent({ type: "live", name, point: state.point, isStarted, seconds: (performance.now() - began) / 1000 });
  const run = new DomainRun(libvirt, state.domain);
  const disks = state.disks.map((disk) => ({ disk: disk.name, image: join(folder.realPath, imageOf(disk)) }));
  const socket = join(folder.realPath, LIVE_SOCKET);
  const write = async (): Promise<void> => await writeLiveState(folder, { ...state, phase: "ready" });
  await using wholes = new WholeImages({
    ...{ repository: options.repository, domain: options.domain, point: server.point },
    ...{ folder, state, rate, signal, force, write, standing, after: fetched },
    noteMade: async (made) => {
      state.made.push(...made);
      await write();
    },
    onProgress: (disk, done, total) => onEvent({ type: "filling", disk, done, total }),
    onFailure: (message) => {
      // QEMU may read all of the disk then.
      boot?.stop();
      onEvent({ type: "trouble", message });
    },
  });
  await fillDisks({
    ...{ run, name, disks, wholes, socket, rate, signal, onEvent },
    onAlone: (disk) => settleDisk(options, folder, state, { name: disk, write }),
  });
  await boot?.record({ ...options, point: state.point, isWhole: false });
  return await finish(options, folder, state, began);
}

async function finish(
  options: LiveRestoreOptions,
  folder: HeldFolder,
  state: Omit<LiveState, "format" | "version" | "phase">,
  began: number,
): Promise<LiveResult> {
  await finishLive(options, folder, state);
  const disks = state.disks.map((disk) => ({ disk: disk.name, path: join(folder.path, imageOf(disk)) }));
  const { domain, point, adapted } = state;
  return { ...domain, point, disks, adapted, seconds: (performance.now() - began) / 1000 };
}

/**
 * @throws {PreconditionError} `E_LIVE_STATE`: another live restore was begun in the folder, or in another
 * place
 */
async function refuseOther(
  { repository, domain, folder, name, libvirt }: LiveRestoreOptions,
  place: string,
  left: LiveState,
): Promise<void> {
  const isSame = left.repository === repository.id && left.folder === domain;
  const uri = await libvirt.uri();
  const isHere = left.place === place && left.libvirt === uri;
  if (isSame && isHere && (name === undefined || name === left.domain.name)) return;
  const where = isHere ? "" : `, in ${left.place} at ${left.libvirt}`;
  const message = `the live restore of ${left.folder} at ${left.point} as ${left.domain.name}${where} was begun in ${folder} and hasn't ended: go on with that one there, or name another folder`;
  throw new PreconditionError("E_LIVE_STATE", message, { details: { folder } });
}

/** Removes what was made for a guest that has not run. */
async function undo(
  options: LiveRestoreOptions,
  folder: HeldFolder,
  state: Pick<LiveState, "made" | "temporaries" | "point" | "domain" | "note">,
): Promise<void> {
  await removeMade(folder, state);
  await forgetBeside(options, state);
  await removeLiveState(folder);
}

async function warnOfRoom(
  { onEvent }: LiveRestoreOptions,
  point: Manifest,
  disks: readonly string[],
  place: string,
): Promise<void> {
  const free = await freeBytes(place);
  // Each disk has two images until its guest is switched over.
  const most = 2 * disks.reduce((sum, name) => sum + (diskOf(point, name)?.virtualSize ?? 0), 0);
  if (free >= most) return;
  const message = `${place} has ${free} bytes free, and the disks can grow to ${most} by what is restored and what the guest writes, which takes room twice until the guest is switched over: where there is no room the guest stops, and goes on when there is`;
  onEvent({ type: "warning", message });
}
