/** Options that tell domains of one name apart, and name a point and its disks. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { collect } from "./options.js";

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Of commands that read points. */
export interface WhoseOptions {
  readonly uuid?: string;
}

export function withWhose(command: Command): Command {
  return command.option(
    "--uuid <uuid>",
    "of several domains of that name the one with this UUID (its first 8 digits do; none: points of no known UUID)",
    firstDigits,
  );
}

/** Of commands that make points without asking libvirt. */
export function withUuid(command: Command, when: string): Command {
  return command.option("--uuid <uuid>", `the domain's UUID, ${when}`, wholeUuid);
}

/** Of commands that read one point. */
export function atPoint(): Option {
  const described = "a point's id, a time (the newest point not after it), or latest";
  return new Option("--at <point>", described).default("latest");
}

export function onlyDisks(): Option {
  return new Option("--disk <name>", "only this disk; may be given several times").argParser(collect);
}

function firstDigits(text: string): string {
  const uuid = text.toLowerCase();
  if (uuid === "none" || /^[0-9a-f]{8}[0-9a-f-]{0,28}$/.test(uuid)) return uuid;
  throw new InvalidArgumentError("Give a UUID, at least its first 8 digits, or none.");
}

function wholeUuid(text: string): string {
  const uuid = text.toLowerCase();
  if (UUID.test(uuid)) return uuid;
  throw new InvalidArgumentError("Give the whole UUID, as virsh domuuid prints it.");
}
