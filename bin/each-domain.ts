import { setMaxListeners } from "node:events";
import pLimit from "p-limit";
import { UsageError } from "../src/backup/base/errors.js";
import { anySignal } from "../src/nbd/index.js";
import { EXIT, throwIfInterrupted, worstExitCode } from "./exit-codes.js";
import type { Context } from "./run.js";

/** A domain of which there is a result, or an error in its JSON form. */
type DomainResult<T> =
  | { readonly domain: string; readonly result: T }
  | { readonly domain: string; readonly error: Record<string, unknown> };

/**
 * Works on domains, one after the other by default. A failure of one, which is named, doesn't stop the
 * others; the exit code becomes the worst. Of a single domain the failure is thrown.
 * @param work on one domain; its signal is aborted by the user, or when the command ends for another domain
 * @param tell prints the result of a domain, as soon as it is there
 * @param atOnce how many domains are worked on side by side
 * @returns in the order of the domains
 * @throws {UsageError} what the user asked for makes no sense for any domain
 * @throws the signal's reason
 */
export async function eachDomain<T>(
  domains: readonly string[],
  { output, signal }: Context,
  work: (domain: string, signal: AbortSignal) => Promise<T>,
  tell: (result: T) => void,
  atOnce = 1,
): Promise<DomainResult<T>[]> {
  const results: DomainResult<T>[] = [];
  const errors: unknown[] = [];
  /** What ends the command, rather than the work on one domain. */
  let failure: { readonly reason: unknown } | undefined;
  const ended = new AbortController();
  const either = anySignal(signal, ended.signal);
  setMaxListeners(0, either);
  const one = async (domain: string, index: number): Promise<void> => {
    if (signal.aborted || failure) return;
    try {
      const result = await work(domain, either);
      results[index] = { domain, result };
      output.ended(domain);
      tell(result);
    } catch (error) {
      if (signal.aborted || failure) return;
      if (error instanceof UsageError || domains.length === 1) {
        failure = { reason: error };
        ended.abort(error);
        return;
      }
      errors.push(error);
      output.ended(domain);
      results[index] = { domain, error: output.fault(domain, error) };
    }
  };
  const limit = pLimit(atOnce);
  await Promise.all(domains.map((domain, index) => limit(one, domain, index)));
  const done = results.flatMap((each) => each?.domain ?? []);
  if (failure) throw failure.reason;
  if (done.length < domains.length) throwIfInterrupted(signal, done, domains.length);
  // Damage may have been found already, and nothing is worse.
  if (errors.length > 0 && process.exitCode !== EXIT.damaged) process.exitCode = worstExitCode(errors);
  return results;
}
