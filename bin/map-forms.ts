import type { MapForm } from "./map-printer.js";
import type { RecordLayout } from "./map-record.js";
import { MapTotals, type Total } from "./map-totals.js";
import { describeFlags, isShown } from "./map-types.js";
import { counted, human } from "./output.js";
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
    const description = describeFlags(this.#context, flags);
    const described = description === undefined ? "" : `,\n    "description": ${JSON.stringify(description)}`;
    return {
      before: '\n  {\n    "offset": ',
      between: ',\n    "length": ',
      after: `,\n    "type": ${flags}${described}\n  },`,
      width: 0,
    };
  }

  end(): string {
    return this.#isEmpty ? "]\n" : "\n]\n";
  }
}

/** The array that `nbdinfo --map --totals --json` prints, ordered by type. */
export class JsonTotalsForm implements MapForm {
  readonly start = "";
  readonly #size: number;
  readonly #totals: MapTotals;

  constructor(context: string, size: number) {
    this.#size = size;
    this.#totals = new MapTotals(context);
  }

  readonly note = (_offset: number, length: number, flags: number): void => {
    this.#totals.add(length, flags);
  };

  end(): string {
    const inOrder = [...this.#totals.all].sort((a, b) => (a.type ?? Infinity) - (b.type ?? Infinity));
    const entries = inOrder.map(({ bytes, type, description }) => {
      const percent = Number(((bytes / this.#size) * 100).toPrecision(6));
      return { size: bytes, percent, type, description };
    });
    return `${JSON.stringify(entries, null, 2)}\n`;
  }
}

const PICTURE_COLUMNS = 64;

/** Prints the totals and the picture. */
export class TextTotalsForm implements MapForm {
  readonly start = "";
  readonly #context: string;
  readonly #size: number;
  readonly #picture: Picture;
  readonly #totals: MapTotals;

  constructor(context: string, size: number) {
    this.#context = context;
    this.#size = size;
    this.#picture = new Picture(size, PICTURE_COLUMNS);
    this.#totals = new MapTotals(context);
  }

  readonly note = (offset: number, length: number, flags: number): void => {
    this.#totals.add(length, flags);
    if (isShown(this.#context, flags)) this.#picture.add(offset, length);
  };

  end(): string {
    const lines = this.#totals.all.map((total) => {
      const percent = ((total.bytes / this.#size) * 100).toFixed(1);
      return `${nameOf(total)}: ${human(total.bytes)} (${percent}%) in ${counted(total.extents, "extent")}\n`;
    });
    return `${lines.join("")}[${this.#picture}]\n`;
  }
}

/** Prints a line for each extent before the totals and the picture. */
export class TextForm extends TextTotalsForm {
  readonly #context: string;
  #isEmpty = true;

  constructor(context: string, size: number) {
    super(context, size);
    this.#context = context;
  }

  layoutOf(flags: number): RecordLayout {
    this.#isEmpty = false;
    const type = String(flags).padStart(4);
    const description = describeFlags(this.#context, flags);
    return {
      before: "",
      between: " ",
      after: ` ${type}${description === undefined ? "" : `  ${description}`}\n`,
      width: 14,
    };
  }

  override end(): string {
    return `${this.#isEmpty ? "" : "\n"}${super.end()}`;
  }
}

function nameOf({ type, description }: Total): string {
  return description ?? `type ${type}`;
}
