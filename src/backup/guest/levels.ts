/** `auto` is incremental if possible; `copy` is a full backup outside of all chains, without a checkpoint. */
export const LEVELS = ["auto", "full", "incremental", "differential", "copy"] as const;
export type Level = (typeof LEVELS)[number];

/** When a full point is due at level `auto`. A weekday counts from 0, Sunday. */
export type FullEvery = { readonly days: number } | { readonly weekday: number };
