import type { Totals } from "../src/backup/report/domain-facts.js";
import type { ReportedDomain } from "../src/backup/report/repository-facts.js";

/** An error as JSON has it. */
type ErrorFacts = Readonly<Record<string, unknown>>;

export interface RepositoryFacts {
  /** Its path, as it was given. */
  readonly repository: string;
  readonly id: string | null;
  /** Who else can write to it, and so forge points; null: nobody. */
  readonly stranger: string | null;
  /** Why it can't be read, if it can't; then there are no domains. */
  readonly error: ErrorFacts | null;
  readonly domains: readonly ReportedDomain[];
  /** Folders of domains that can't be read. */
  readonly failed: readonly { readonly domain: string; readonly error: ErrorFacts }[];
}

/** What a report says, in any form. */
export interface ReportDocument {
  readonly format: "nbdpull-report";
  readonly version: 1;
  /** When it was made. ISO 8601. */
  readonly createdAt: string;
  /** What was promised. */
  readonly maxAgeSeconds: number;
  readonly totals: Totals;
  readonly repositories: readonly RepositoryFacts[];
}
