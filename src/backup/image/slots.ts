import { type PlannedRun, slotsOf } from "./image.js";

/**
 * A planned run and the slots of its stored clusters. Slots are places of one cluster each, side by side, in
 * a buffer or in a packed image file. Zero runs get none.
 */
interface SlottedRun {
  readonly run: PlannedRun;
  /** The first of its slots, counted from the first run's. */
  readonly slot: number;
  readonly slots: number;
}

/** Neighbouring runs of a plan with their slots, in guest order. */
export function slottedRuns(runs: readonly PlannedRun[]): SlottedRun[] {
  const slotted: SlottedRun[] = [];
  let slot = 0;
  for (const run of runs) {
    const slots = slotsOf(run);
    slotted.push({ run, slot, slots });
    slot += slots;
  }
  return slotted;
}

/**
 * The runs as they are after their bytes were looked at: a cluster of zeroes needs no place in the file, and
 * its slot stays a hole.
 *
 *     planned     data 5 ×4            stored  |xx|  |xx|xx|
 *     turned out  data 5, zero 6, data 7 ×2
 *
 * @param isStored false for a slot that holds only zeroes
 */
export function withoutZeroSlots(
  runs: readonly PlannedRun[],
  isStored: (slot: number) => boolean,
): SlottedRun[] {
  const found: SlottedRun[] = [];
  for (const planned of slottedRuns(runs)) {
    const { run, slot, slots } = planned;
    switch (run.kind) {
      case "zero":
        found.push(planned);
        break;
      case "partial":
        if (slots === 0 || isStored(slot)) found.push(planned);
        else {
          const zeroMask = (run.zeroMask | run.dataMask) >>> 0;
          found.push({ run: { ...run, dataMask: 0, zeroMask }, slot, slots: 0 });
        }
        break;
      case "data":
        for (let first = 0; first < run.count; ) {
          const stored = isStored(slot + first);
          let end = first + 1;
          while (end < run.count && isStored(slot + end) === stored) end += 1;
          if (stored && end - first === run.count) {
            found.push(planned);
            break;
          }
          const [cluster, count] = [run.cluster + first, end - first];
          const kind = stored ? "data" : "zero";
          found.push({ run: { kind, cluster, count }, slot: slot + first, slots: stored ? count : 0 });
          first = end;
        }
        break;
      default:
        run satisfies never;
    }
  }
  return found;
}
