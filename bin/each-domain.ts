import { UsageError } from "../src/backup/base/errors.js";
import { EXIT, throwIfInterrupted, worstExitCode } from "./exit-codes.js";
import type { Context } from "./run.js";

/** A domain of which there is a result, or an error in its JSON form. */
type DomainResult<T> =
  | { readonly domain: string; readonly result: T }
  | { readonly domain: string; readonly error: Record<string, unknown> };

/**
 * Works on domains one after the other. A failure of one, which is named, doesn't stop the others; the exit
 * code becomes the worst. Of a single domain the failure is thrown.
 * @param tell prints the result of a domain, as soon as it is there
 * @throws {UsageError} what the user asked for makes no sense for any domain
 * @throws the signal's reason
 */
export async function eachDomain<T>(
  domains: readonly string[],
  { output, signal }: Context,
  work: (domain: string) => Promise<T>,
  tell: (result: T) => void,
): Promise<DomainResult<T>[]> {
  const results: DomainResult<T>[] = [];
  const errors: unknown[] = [];
  const interrupted = (): void => {
    const done = results.map((result) => result.domain);
    throwIfInterrupted(signal, done, domains.length);
  };
  for (const domain of domains) {
    interrupted();
    try {
      const result = await work(domain);
      results.push({ domain, result });
      output.ended(domain);
      tell(result);
    } catch (error) {
      interrupted();
      if (error instanceof UsageError || domains.length === 1) throw error;
      errors.push(error);
      output.ended(domain);
      results.push({ domain, error: output.fault(domain, error) });
    }
  }
  // Damage may have been found already, and nothing is worse.
  if (errors.length > 0 && process.exitCode !== EXIT.damaged) process.exitCode = worstExitCode(errors);
  return results;
}
