/** The states of a domain, by libvirt's numbers: as virsh names them, and what they mean for a run. Pure. */

/** What libvirt answers: virDomainState, and a reason that belongs to the state. */
interface DomainState {
  readonly state: number;
  readonly reason: number;
}

/** `stopped`: QEMU has paused it, because a disk failed and its error policy is `stop`. */
export type RunState = "runs" | "paused" | "stopped" | "off";

/** virDomainState, by number, as virsh names them. */
const STATES = [
  ...(["no state", "running", "idle", "paused", "in shutdown"] as const),
  ...(["shut off", "crashed", "pmsuspended"] as const),
];
/** The reasons for the states in which a run has ended, by number (virDomainShutoffReason and others). */
const REASONS: Readonly<Record<string, readonly string[]>> = {
  "in shutdown": ["unknown", "user"],
  "shut off": [
    ...["unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot"],
    "daemon",
  ],
  crashed: ["unknown", "panicked"],
};
/** virDomainPausedReason: VIR_DOMAIN_PAUSED_IOERROR. */
const IO_ERROR = 5;

/** @param withReason for a run that has ended: "shut off (crashed)" */
export function stateText({ state, reason }: DomainState, withReason: boolean): string {
  const text = nameOf(state);
  const why = withReason ? REASONS[text]?.[reason] : undefined;
  return why === undefined ? text : `${text} (${why})`;
}

export function runStateOf({ state, reason }: DomainState): RunState {
  switch (nameOf(state)) {
    case "running":
    case "idle":
    case "in shutdown":
    case "pmsuspended":
      return "runs";
    case "paused":
      return reason === IO_ERROR ? "stopped" : "paused";
    case "shut off":
    case "crashed":
    case "no state":
      return "off";
  }
}

/** Whether it is off because its QEMU has died. */
export function hasCrashed(state: DomainState): boolean {
  return stateText(state, true) === "shut off (crashed)";
}

function nameOf(state: number): (typeof STATES)[number] {
  return STATES[state] ?? "no state";
}
