/** The files of a new live restore: what they will be, and then the files themselves, or none of them. */

import { randomUUID } from "node:crypto";
import { basename, join } from "node:path";
import type { HeldFolder } from "../host/held-folder.js";
import { type Finished, publish, refuseTarget, temporaryPathFor } from "../host/publish.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { RestoredDefinition } from "../restore/restored-definition.js";
import { RestoredFiles } from "../restore/restored-files.js";
import type { PointServer } from "../serve/serve.js";
import { noteBeside } from "./beside-point.js";
import { stopOnErrors } from "./error-policies.js";
import { refuseUnfillable } from "./live-definition.js";
import { type LiveState, writeLiveState } from "./live-state.js";
import { identify } from "./made-files.js";
import { makeOverlays } from "./overlays.js";
import { temporaryNameFor } from "./whole-images.js";

export interface LiveFilesOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  /** The name of the new domain; default: the old name with `-restored` behind it. */
  readonly name?: string | undefined;
  readonly keepIdentity: boolean;
  readonly trusted: boolean;
  /** Change of the definition what this host has not. */
  readonly adapt: boolean;
  readonly libvirt: Libvirt;
  /** Start the domain; otherwise wait until somebody does. */
  readonly start: boolean;
  /** Take a point that is known to be damaged, and let the guest see errors where it is. */
  readonly salvage: boolean;
  readonly force: boolean;
  readonly onEvent: (event: { readonly type: "warning"; readonly message: string }) => void;
  readonly signal?: AbortSignal | undefined;
}

/** What a new live restore will make, before any of it is there. */
interface FilesToMake {
  readonly point: Manifest;
  readonly definition: RestoredDefinition;
  /** The disks' images, on which the guest begins. */
  readonly images: readonly { readonly disk: string; readonly path: string; readonly temporary: string }[];
  /** Boot files. */
  readonly targets: readonly (RestoredDefinition["files"][number] & { readonly temporary: string })[];
  readonly xml: { readonly path: string; readonly temporary: string };
  readonly state: Omit<LiveState, "format" | "version" | "phase">;
}

/** Looks for everything that would be in the way of them. */
export async function planFiles(
  options: LiveFilesOptions,
  folder: HeldFolder,
  { point, disks }: { readonly point: Manifest; readonly disks: readonly string[] },
): Promise<FilesToMake> {
  const { repository, domain, libvirt } = options;
  const place = folder.realPath;
  const wholes = new Map(disks.map((disk) => [disk, join(place, `${disk}.qcow2`)]));
  const images = disks.map((disk) => withTemporary({ disk, path: join(place, `${disk}.live.qcow2`) }));
  for (const path of wholes.values()) await refuseTarget(path, options.force);
  for (const { path } of images) await refuseTarget(path, options.force);
  const definition = await RestoredDefinition.prepare({
    ...{ repository, domain, point, libvirt, place: { folder: place }, filesIn: place },
    disks: new Map([...wholes].map(([disk, path]) => [disk, { kind: "file", path, format: "qcow2" }])),
    ...{ name: options.name, keepIdentity: options.keepIdentity, trusted: options.trusted },
    ...{ force: options.force, sync: true, adapt: options.adapt, starts: options.start },
    asked: askedOf(options),
  });
  refuseUnfillable(definition.xml, disks);
  const targets = definition.files.map(withTemporary);
  const xml = withTemporary({ path: definition.xmlPath });
  const { before } = stopOnErrors(definition.xml, disks, "stop");
  const state: FilesToMake["state"] = {
    ...{ repository: repository.id, folder: domain, point: point.id, place, libvirt: await libvirt.uri() },
    domain: { name: definition.name, uuid: definition.uuid },
    note: randomUUID(),
    disks: images.map(({ disk: name, path }) => {
      const [file, whole] = [basename(path), `${name}.qcow2`];
      const policies = before.get(name) ?? {};
      return { name, file, whole: { file: whole, temporary: temporaryNameFor(whole) }, policies };
    }),
    temporaries: [...images, ...targets, xml].map(({ temporary }) => basename(temporary)),
    made: [],
    xml: basename(definition.xmlPath),
    adapted: [...definition.adapted],
    salvage: options.salvage,
  };
  return { point, definition, images, targets, xml, state };
}

/** The command's options that are about the domain. */
function askedOf({ keepIdentity, adapt, start }: LiveFilesOptions): string[] {
  return [
    "--define",
    ...(keepIdentity ? ["--keep-identity"] : []),
    "--live",
    ...(start ? [] : ["--no-start"]),
    ...(adapt ? ["--adapt"] : []),
  ];
}

/** Makes them, each noted in the state before it has its name; the state is `ready` then. */
export async function makeFiles(
  options: LiveFilesOptions,
  folder: HeldFolder,
  server: PointServer,
  { point, definition, images, targets, xml, state }: FilesToMake,
): Promise<void> {
  const { repository, domain, force, signal } = options;
  const noteMade = async (finished: readonly Finished[]): Promise<void> => {
    if (finished.length === 0) return;
    state.made.push(...(await identify(folder, finished)));
    await writeLiveState(folder, { ...state, phase: "preparing" });
  };
  // Zeroes that are noted would be copied with what the guest writes.
  await makeOverlays(server, images, { force, notesZeroes: false, beforeNames: noteMade });
  await using boot = await RestoredFiles.stage({
    ...{ repository, domain, point, targets, force, sync: true, signal, asked: askedOf(options) },
  });
  await noteMade(boot.finished);
  await boot.publish();
  const definitions = [{ temporary: xml.temporary, final: xml.path }];
  await folder.create(basename(xml.temporary), definition.xml, { sync: true });
  await noteMade(definitions);
  await publish(definitions, { force, sync: true });
  await noteBeside(options, state, { place: folder.realPath, server, hasRun: false });
  signal?.throwIfAborted();
  await writeLiveState(folder, { ...state, phase: "ready" });
}

function withTemporary<T extends { readonly path: string }>(file: T): T & { readonly temporary: string } {
  return { ...file, temporary: temporaryPathFor(file.path) };
}
