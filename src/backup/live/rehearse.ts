/**
 * A point's guest started in a box, to see whether it comes up. Nothing of it stays but the record beside the
 * point.
 */
import { randomBytes } from "node:crypto";
import { chmod, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type DamageError, hasCode, messageOf, PreconditionError } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { Adaptation } from "../definition/fit-to-host.js";
import { HeldFolder } from "../host/held-folder.js";
import { temporaryPathFor } from "../host/publish.js";
import { parseHostSecurity } from "../libvirt/documents/capabilities-xml.js";
import { DomainRun } from "../libvirt/domain-run.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Manifest } from "../repository/manifest.js";
import { type RehearsalRecord, recordRehearsal } from "../repository/rehearsal-record.js";
import type { Repository } from "../repository/repository.js";
import { RestoredDefinition } from "../restore/restored-definition.js";
import { RestoredFiles } from "../restore/restored-files.js";
import { BootReads, fetchBoot } from "./boot-reads.js";
import { type CommandRun, runInGuest } from "./guest-command.js";
import { clearLeftRehearsals, noteOwner, removeDomain } from "./left-rehearsals.js";
import { refuseChangeable } from "./live-place.js";
import { serveToQemu } from "./live-server.js";
import { makeOverlays } from "./overlays.js";
import { boxedDefinition, type RehearsalLimits } from "./rehearsal-definition.js";
import { type SignOfLife, saidOn, signText, waitForSign } from "./signs-of-life.js";

export interface RehearsalOptions extends Omit<RehearsalLimits, "serialLog"> {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  readonly sign: SignOfLife;
  /** A command that its agent runs in it when it has shown that sign: it came up if that ends with 0. */
  readonly command?: string | undefined;
  /** For both together. */
  readonly withinMs: number;
  /** Where the folder of the rehearsal is made: QEMU's user has to get through it. */
  readonly place: string;
  readonly trusted: boolean;
  /** Change of the definition what this host has not. */
  readonly adapt: boolean;
  /** Gets a picture of the guest's screen, `image/png` or `image/x-portable-pixmap`. */
  readonly onPicture?:
    | ((picture: { readonly type: string; readonly bytes: Buffer }) => Promise<void>)
    | undefined;
  readonly libvirt: Libvirt;
  readonly signal?: AbortSignal | undefined;
  readonly onDamage: (error: DamageError) => void;
  readonly onWarning: (message: string) => void;
}

export interface Rehearsal extends RehearsalRecord {
  readonly point: string;
  /** What its definition had in the place of what this host has not. */
  readonly adapted: readonly Adaptation[];
  /** The last lines that the guest said on its serial line. */
  readonly said: readonly string[];
}

/** QEMU's user passes through, and can't list it. */
const PASSABLE = 0o711;
const SERIAL_LOG = "serial.log";
const LINES_TOLD = 5;

/**
 * Starts a point's guest on throw-away images, waits for a sign of life, and removes all of it. What came of
 * it is recorded beside the point. What killed rehearsals have left in the same place is removed first.
 *
 * @throws {PreconditionError} `E_REHEARSAL`: its definition has no agent, the room is used up, or the
 *   network that was named is not on;
 *   `E_LIVE_PLACE`: another user can change where it is made; and as {@link RestoredDefinition.prepare}
 * @throws {DamageError} a chain is not whole
 * @throws the signal's reason
 */
export async function rehearse(options: RehearsalOptions): Promise<Rehearsal> {
  const { repository, domain, point, sign, libvirt, onWarning } = options;
  const steady = libvirt.withSignal(undefined);
  await using above = await HeldFolder.open(options.place);
  await refuseChangeable(above.realPath);
  await clearLeftRehearsals(steady, options.place);
  await refuseNetwork(options);
  const name = `nbdpull-rehearsal-${randomBytes(6).toString("hex")}`;
  const place = join(above.realPath, name);
  await mkdir(place);
  const left = { isDefined: false };
  try {
    await chmod(place, PASSABLE);
    await using folder = await HeldFolder.open(place);
    await noteOwner(folder);
    const found = await run(options, { name, folder, place, left });
    const { said: _said, point: _point, adapted: _adapted, ...record } = found;
    try {
      await using its = await repository.holdRecords(domain, point.id);
      await recordRehearsal(its, record);
    } catch (error) {
      onWarning(
        `what came of it (${signText(sign)}) can't be noted beside point ${point.id}: ${messageOf(error)}`,
      );
    }
    return found;
  } finally {
    // The next one removes the domain by what is noted in the folder.
    if (!left.isDefined) {
      await above.remove(name).catch((error: unknown) => {
        onWarning(`${place} can't be removed (${messageOf(error)}): the next rehearsal tries it again`);
      });
    }
  }
}

/**
 * No other network takes the place of the one that was named, which may be there to keep guests apart.
 * @throws {PreconditionError} `E_REHEARSAL`
 */
async function refuseNetwork({ libvirt, network }: RehearsalOptions): Promise<void> {
  if (network === undefined) return;
  const state = await libvirt.network(network);
  if (state === "on") return;
  const what =
    state === "off"
      ? `is off: virsh net-start ${domainWord(network)}`
      : "is not known to libvirt: `virsh net-list --all` names those that are";
  const message = `the network ${network}, which the guests' cards are to be connected to, ${what}. Nothing was started`;
  throw new PreconditionError("E_REHEARSAL", message, { details: { network } });
}

/** What a rehearsal has for itself. */
interface Box {
  readonly name: string;
  readonly folder: HeldFolder;
  readonly place: string;
  /** Whether libvirt may know its domain. */
  readonly left: { isDefined: boolean };
}

async function run(options: RehearsalOptions, box: Box): Promise<Rehearsal> {
  const { repository, domain, point, libvirt, signal, onDamage, onWarning } = options;
  const { name, folder, place, left } = box;
  const disks = point.disks.map((disk) => {
    const path = join(place, `${disk.name}.qcow2`);
    return { disk: disk.name, path, temporary: temporaryPathFor(path) };
  });
  const definition = await prepareDefinition(options, box, disks);
  const { qemuUser } = parseHostSecurity(await libvirt.capabilities());
  const reads = new BootReads();
  await using server = await serveToQemu({
    ...{ repository, domain, at: point.id, signal, place, qemuUser, onDamage, onTrouble: onWarning },
    onRead: (...read) => reads.note(...read),
  });
  void fetchBoot(options, server);
  await makeOverlays(server, disks, { force: false, notesZeroes: true });
  await using boot = await RestoredFiles.stage({
    ...{ repository, domain, point, targets: definition.files, force: false, sync: false, signal },
  });
  await boot.publish();
  const known = { name, uuid: definition.uuid };
  const guest = new DomainRun(libvirt.withSignal(undefined), known);
  await noteOwner(folder, known.uuid);
  left.isDefined = true;
  // The guest ends before what its disks are based on.
  await using _ = removedAtEnd(guest, box, onWarning);
  const began = performance.now();
  const { adapted } = definition;
  const outcome = (came: Came, said: string) => outcomeOf(options, came, { began, adapted, said });
  try {
    await libvirt.withSignal(undefined).define(name, definition.xml);
    await guest.start();
  } catch (error) {
    // Its QEMU may have died in the first moment.
    if (!hasCode(error, "E_LIBVIRT_REFUSED") && !hasCode(error, "E_DOMAIN_OFF")) throw error;
    return outcome({ reason: `it could not be started: ${messageOf(error)}` }, "");
  }
  const came = await waitFor(options, { run: guest, domain: known, folder });
  const said = await saidOn(folder, SERIAL_LOG).catch(() => "");
  await showPicture(options, guest);
  const found = outcome(came, said);
  // A slow store takes none of the guest's time.
  if (came.hasBooted) await reads.record({ repository, domain, point: point.id, isWhole: true });
  return found;
}

/** @throws {PreconditionError} `E_REHEARSAL`: the guest has no agent that could answer */
async function prepareDefinition(
  options: RehearsalOptions,
  { name, place }: Box,
  disks: readonly { readonly disk: string; readonly path: string }[],
): Promise<RestoredDefinition> {
  const { repository, domain, point, sign, libvirt } = options;
  const serialLog = sign.kind === "serial" ? join(place, SERIAL_LOG) : undefined;
  const definition = await RestoredDefinition.prepare({
    ...{ repository, domain, point, libvirt, name, place: { folder: place }, filesIn: place },
    disks: new Map(disks.map(({ disk, path }) => [disk, { kind: "file", path, format: "qcow2" }])),
    ...{ trusted: options.trusted, boxed: true, force: false, sync: false },
    ...{ adapt: options.adapt, starts: true },
    adjust: (xml) => boxedDefinition(xml, { ...options, serialLog }),
  });
  const needsAgent = sign.kind === "agent" || options.command !== undefined;
  if (needsAgent && !definition.xml.includes("org.qemu.guest_agent.0")) {
    const message = `${point.domain.name} had no channel to a guest agent at ${point.id}, so none can answer: wait for what it says on its serial line with --expect serial:PATTERN`;
    throw new PreconditionError("E_REHEARSAL", message, { details: { domain, point: point.id } });
  }
  return definition;
}

function removedAtEnd(
  guest: DomainRun,
  { name, left }: Box,
  onWarning: (message: string) => void,
): AsyncDisposable {
  return {
    [Symbol.asyncDispose]: async () => {
      try {
        await removeDomain(guest);
        left.isDefined = false;
      } catch (error) {
        onWarning(
          `the domain ${name} can't be removed (${messageOf(error)}): the next rehearsal tries it again`,
        );
      }
    },
  };
}

/** What came of a guest that was to be started. */
interface Came {
  /** Why it did not come up; absent if it did. */
  readonly reason?: string | undefined;
  readonly ran?: CommandRun | undefined;
  /** Whether it has shown its sign, whatever a command said then. */
  readonly hasBooted?: boolean;
}

async function waitFor(
  options: RehearsalOptions,
  guest: {
    readonly run: DomainRun;
    readonly domain: { readonly name: string; readonly uuid: string };
    readonly folder: HeldFolder;
  },
): Promise<Came> {
  const { libvirt, sign, network, withinMs, signal, command } = options;
  const deadline = performance.now() + withinMs;
  const reason = await waitForSign({
    ...{ ...guest, libvirt, sign, network, withinMs, signal, serialLog: SERIAL_LOG },
  });
  if (reason !== undefined) return { reason, hasBooted: false };
  if (command === undefined) return { hasBooted: true };
  const { run, folder } = guest;
  return { ...(await runInGuest({ run, command, folder, deadline, signal })), hasBooted: true };
}

function outcomeOf(
  { point, sign }: RehearsalOptions,
  { reason, ran }: Came,
  { began, adapted, said }: Pick<Rehearsal, "adapted"> & { readonly began: number; readonly said: string },
): Rehearsal {
  return {
    ...{ point: point.id, at: new Date().toISOString(), cameUp: reason === undefined, sign: signText(sign) },
    seconds: (performance.now() - began) / 1000,
    ...(reason === undefined ? {} : { reason }),
    ...(ran === undefined ? {} : { ran }),
    adapted,
    said: said
      .split(/\r?\n/)
      .filter((line) => line.trim() !== "")
      .slice(-LINES_TOLD),
  };
}

async function showPicture({ onPicture, onWarning }: RehearsalOptions, guest: DomainRun): Promise<void> {
  if (!onPicture) return;
  try {
    await onPicture(await guest.screenshot());
  } catch (error) {
    onWarning(`there is no picture of its screen: ${messageOf(error)}`);
  }
}
