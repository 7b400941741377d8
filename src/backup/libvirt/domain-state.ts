/** virDomainState, by number, as virsh names them. */
const STATES = ["no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"];
/** The reasons for the states in which a run has ended, by number (virDomainShutoffReason and others). */
const REASONS: Readonly<Record<string, readonly string[]>> = {
  "in shutdown": ["unknown", "user"],
  "shut off": [
    ...["unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot"],
    "daemon",
  ],
  crashed: ["unknown", "panicked"],
};

/** @param withReason for a run that has ended: "shut off (crashed)" */
export function stateText(
  { state, reason }: { readonly state: number; readonly reason: number },
  withReason: boolean,
): string {
  const text = STATES[state] ?? "no state";
  const why = withReason ? REASONS[text]?.[reason] : undefined;
  return why === undefined ? text : `${text} (${why})`;
}
