import { ALLOCATION_CONTEXT } from "../src/backup/export/export-extents.js";
import type { MapForm } from "./map-printer.js";
import type { RecordLayout } from "./map-record.js";
import { human } from "./output.js";
import { Picture } from "./picture.js";

/** The array that `nbdinfo --map --json` prints, in the layout of JSON.stringify. */
export class JsonForm implements MapForm {
  readonly start = "[";
  readonly #context: string;
  #isEmpty = true;

  constructor(context: string) {
    this.#context = context;
  }

  layoutOf(flags: number): RecordLayout {
    this.#isEmpty = false;
    const description = JSON.stringify(describeFlags(this.#context, flags));
    return {
      before: '\n  {\n    "offset": ',
      between: ',\n    "length": ',
      after: `,\n    "type": ${flags},\n    "description": ${description}\n  },`,
      width: 0,
    };
  }

  end(): string {
    return this.#isEmpty ? "]\n" : "\n]\n";
  }
}

const PICTURE_COLUMNS = 64;
/** What the picture shows. */
const MARKED: readonly string[] = ["data", "dirty", "local"];

interface Total {
  readonly description: string;
  bytes: number;
  extents: number;
}

/** Prints a line for each extent, then the totals and the picture. */
export class TextForm implements MapForm {
  readonly start = "";
  readonly #context: string;
  readonly #size: number;
  readonly #picture: Picture;
  readonly #totals = new Map<string, Total>();
  /** The total for these flags; their description is looked up only once. */
  readonly #byFlags = new Map<number, Total>();

  constructor(context: string, size: number) {
    this.#context = context;
    this.#size = size;
    this.#picture = new Picture(size, PICTURE_COLUMNS);
  }

  layoutOf(flags: number): RecordLayout {
    const type = String(flags).padStart(4);
    return {
      before: "",
      between: " ",
      after: ` ${type}  ${describeFlags(this.#context, flags)}\n`,
      width: 14,
    };
  }

  readonly note = (offset: number, length: number, flags: number): void => {
    const total = this.#byFlags.get(flags) ?? this.#totalOf(flags);
    total.bytes += length;
    total.extents += 1;
    if (MARKED.includes(total.description)) this.#picture.add(offset, length);
  };

  end(): string {
    const lines = Array.from(this.#totals.values(), ({ description, bytes, extents }) => {
      const percent = ((bytes / this.#size) * 100).toFixed(1);
      return `${description || "(no name)"}: ${human(bytes)} (${percent}%) in ${extents} extents\n`;
    });
    return `${this.#totals.size > 0 ? "\n" : ""}${lines.join("")}[${this.#picture}]\n`;
  }

  #totalOf(flags: number): Total {
    const description = describeFlags(this.#context, flags);
    const total = this.#totals.get(description) ?? { description, bytes: 0, extents: 0 };
    this.#totals.set(description, total);
    if (this.#byFlags.size < MAX_KNOWN_FLAGS) this.#byFlags.set(flags, total);
    return total;
  }
}

/** An unknown context may have any number of different flags. */
const MAX_KNOWN_FLAGS = 256;

/** The descriptions that nbdinfo uses. */
function describeFlags(context: string, flags: number): string {
  if (context === ALLOCATION_CONTEXT) return ["data", "hole", "zero", "hole,zero"][flags & 3] ?? "";
  if (context.startsWith("qemu:dirty-bitmap:")) return (flags & 1) === 0 ? "clean" : "dirty";
  if (context === "qemu:allocation-depth") {
    return flags === 0 ? "unallocated" : flags === 1 ? "local" : `backing depth ${flags}`;
  }
  return "";
}
