import { resolve } from "node:path";
import { domainWord } from "../../src/backup/base/shell-word.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { type LiveEvent, type LiveRestoreOptions, restoreLive } from "../../src/backup/live/live-restore.js";
import { adaptedLines } from "../adapted-lines.js";
import { cacheOf } from "../cache-options.js";
import { inFolder } from "../destination.js";
import { EXIT, InterruptedError } from "../exit-codes.js";
import type { LiveOptions } from "../live-options.js";
import type { Progress } from "../output.js";
import type { Context } from "../run.js";

/** Has a domain run from the point, and waits until its disks are filled. */
export async function runLive(
  context: Context,
  options: LiveOptions,
  what: Pick<LiveRestoreOptions, "repository" | "domain" | "choose">,
): Promise<void> {
  const { output, signal } = context;
  const cache = cacheOf(options);
  const progress = await output.progress();
  const teller = new Teller(context, progress);
  await using libvirt = new Libvirt({ connect: options.connect, signal });
  try {
    const live = await inFolder(options.to, { forDomain: true }, () =>
      restoreLive({
        ...{ ...what, libvirt, signal, folder: resolve(options.to), name: options.define || undefined },
        ...{ keepIdentity: options.keepIdentity ?? false, trusted: options.trustDefinition ?? false },
        ...{ resume: options.resume ?? false, start: options.start, salvage: options.salvage ?? false },
        ...{ adapt: options.adapt ?? false, cache },
        ...{ force: options.force ?? false, rate: options.limitRate, onEvent: (event) => teller.tell(event) },
      }),
    );
    const { name, uuid, point, disks, adapted, seconds } = live;
    const lines = disks.map(({ disk, path }) => `${path}: ${disk} of ${point}, filled`);
    output.result(
      {
        domain: what.domain,
        point,
        live: { domain: name, uuid, startedAfter: teller.startedAfter ?? null, seconds, adapted },
        disks,
      },
      [...lines, `${name} needs nbdpull no longer, after ${seconds.toFixed(1)} s`],
    );
  } catch (error) {
    if (teller.name === undefined || !(signal.reason instanceof InterruptedError)) throw error;
    const guest = teller.isOff
      ? "It is off, and could read nothing of what is not there yet"
      : "It runs on, and stops as soon as it reads what is not there yet";
    throw signal.reason.leaving(
      `the disks of ${teller.name} are not filled. ${guest}; the same command with --resume goes on`,
    );
  } finally {
    progress.stop();
  }
}

/** Says what happens to a live restore. */
class Teller {
  readonly #context: Context;
  readonly #progress: Progress;
  /** The domain, once it may run. */
  name: string | undefined;
  startedAfter: number | undefined;
  /** As it was seen last. */
  isOff = false;

  constructor(context: Context, progress: Progress) {
    this.#context = context;
    this.#progress = progress;
  }

  tell(event: LiveEvent): void {
    const { output } = this.#context;
    switch (event.type) {
      case "networks":
        if (event.networks.length === 0) break;
        output.note(`${event.name}: its network cards are on ${event.networks.join(", ")}`);
        break;
      case "adapted":
        for (const line of adaptedLines(event.name, event.adapted)) output.note(line);
        break;
      case "live":
        this.#tellLive(event);
        break;
      case "runs":
        this.isOff = false;
        break;
      case "filling":
        this.#progress.update(event.disk, event.done, event.total, event.done);
        break;
      case "filled":
        output.note(`${event.disk} is filled`);
        break;
      case "off":
        this.isOff = true;
        if (event.hasCrashed) {
          output.warn(
            `the QEMU of ${this.name} has died, as its log in /var/log/libvirt/qemu may say. What it had flushed to its disks is there: start it again (virsh start ${domainWord(this.name ?? "")})`,
          );
          break;
        }
        output.note(
          `${this.name} is off: its disks are restored meanwhile, and are its own once it has run on them`,
        );
        break;
      case "stopped":
        output.warn(`QEMU has stopped ${this.name}, because a disk failed; it is let go on`);
        break;
      case "damaged":
        process.exitCode = EXIT.damaged;
        output.warn(
          `${event.error.message}. The guest stops or has an error where it reads that, until it has written over it`,
        );
        break;
      case "trouble":
      case "warning":
        output.warn(event.message);
        break;
      default:
        event satisfies never;
    }
  }

  #tellLive({ name, point, isStarted, seconds }: Extract<LiveEvent, { type: "live" }>): void {
    this.name = name;
    const how = isStarted ? `runs after ${seconds.toFixed(2)} s` : "is defined and can be started";
    if (isStarted) this.startedAfter = seconds;
    this.#context.output.note(
      `${name} ${how}, from point ${point} through nbdpull, which it needs until nbdpull says that it is needed no longer`,
    );
  }
}
