import { PreconditionError } from "../../src/backup/base/errors.js";
import { ALLOCATION_CONTEXT } from "../../src/backup/export/export-extents.js";
import { type ChangedExtent, differenceOf } from "../../src/backup/report/point-difference.js";
import { chooseDomain } from "../../src/backup/repository/choose-domain.js";
import { chooseDisks, choosePoint } from "../../src/backup/repository/choose-point.js";
import { diskOf, type Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { ALLOCATION } from "../../src/nbd/index.js";
import type { WhoseOptions } from "../domain-options.js";
import { describeFlags } from "../map-types.js";
import { counted, human } from "../output.js";
import type { Context } from "../run.js";
import { warnOfStrangers } from "../trust.js";

interface DiffOptions extends WhoseOptions {
  readonly disk?: readonly string[];
}

export async function runDiff(
  { output, signal }: Context,
  { uuid, disk: wanted }: DiffOptions,
  path: string,
  name: string,
  first: string,
  second: string,
): Promise<void> {
  const repository = await Repository.open(path, { signal });
  const folder = await chooseDomain(repository, name, { uuid, at: first });
  await warnOfStrangers(path, [folder], output);
  const compare = async (): Promise<void> => {
    const from = await choosePoint(repository, folder, first, uuid);
    const to = await choosePoint(repository, folder, second, uuid);
    // Without --disk, also those that one of them alone has.
    const disks = wanted ? chooseDisks(to, wanted) : [...new Set([from, to].flatMap(disksOf))];
    const both = disks.filter((disk) => diskOf(from, disk) && diskOf(to, disk));
    for (const disk of disks.filter((each) => !both.includes(each))) {
      const { id } = diskOf(from, disk) ? to : from;
      output.warn(`point ${id} has no disk ${disk}: there is nothing to compare`);
    }
    if (both.length === 0) {
      const message = `points ${from.id} and ${to.id} have no disk in common`;
      throw new PreconditionError("E_NO_DISK", message, { details: { points: [from.id, to.id] } });
    }
    const stream = output.stream();
    const form = output.json ? new JsonRows() : new TextRows();
    const append = (text: string): void => stream.append(Buffer.from(text));
    append(form.start);
    for (const disk of both) {
      for await (const extent of differenceOf({ repository, folder, from, to, disk, signal })) {
        append(form.row(disk, extent));
        await stream.drain();
        // Nobody reads the rest.
        if (stream.gone) return;
      }
      append(form.total(disk));
    }
    append(form.end());
    await stream.end();
  };
  await repository.reading(folder, compare, signal);
}

function disksOf({ disks }: Manifest): string[] {
  return disks.map(({ name }) => name);
}

function flagsOf({ state }: ChangedExtent): number {
  return state === "zero" ? ALLOCATION.HOLE | ALLOCATION.ZERO : 0;
}

/** An array of rows as `nbdinfo --map --json` prints them, each with its disk. */
class JsonRows {
  readonly start = "[";
  #isEmpty = true;

  row(disk: string, extent: ChangedExtent): string {
    const { offset, length } = extent;
    const type = flagsOf(extent);
    const description = describeFlags(ALLOCATION_CONTEXT, type);
    const separator = this.#isEmpty ? "\n" : ",\n";
    this.#isEmpty = false;
    return `${separator}  ${JSON.stringify({ disk, offset, length, type, description })}`;
  }

  total(): string {
    return "";
  }

  end(): string {
    return this.#isEmpty ? "]\n" : "\n]\n";
  }
}

/** A line for each extent as `map` prints them, and a line for each disk. */
class TextRows {
  readonly start = "";
  #bytes = 0;
  #zeroes = 0;
  #extents = 0;

  row(disk: string, extent: ChangedExtent): string {
    const { offset, length, state } = extent;
    this.#bytes += length;
    this.#zeroes += state === "zero" ? length : 0;
    this.#extents += 1;
    const type = flagsOf(extent);
    const numbers = [String(offset).padStart(14), String(length).padStart(14), String(type).padStart(4)];
    return `${disk}${numbers.join(" ")}  ${describeFlags(ALLOCATION_CONTEXT, type)}\n`;
  }

  total(disk: string): string {
    const zeroes = this.#zeroes === 0 ? "" : `, ${human(this.#zeroes)} of it zeroes now`;
    const extents = counted(this.#extents, "extent");
    const what = this.#extents === 0 ? "no difference" : `${human(this.#bytes)} in ${extents}${zeroes}`;
    const exactly = this.#extents === 0 ? "" : ` (${this.#bytes} bytes)`;
    this.#bytes = 0;
    this.#zeroes = 0;
    this.#extents = 0;
    return `${disk}: ${what}${exactly}\n`;
  }

  end(): string {
    return "";
  }
}
