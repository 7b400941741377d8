import type { Reporter, TestModule } from "vitest/node";

/** Files whose durations are printed. */
const SLOWEST = 10;

/**
 * Ends the run with one plain line, `N passed, N failed, N skipped`, after the slowest files, the tests
 * that passed only when they were repeated, and the skipped ones.
 */
export default class SummaryReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    const count = { passed: 0, failed: 0, skipped: 0 };
    const [repeated, skipped]: [string[], string[]] = [[], []];
    for (const module of modules) {
      let ran = 0;
      for (const test of module.children.allTests()) {
        ran += 1;
        const { state, errors } = test.result();
        const name = `${module.relativeModuleId} > ${test.fullName}`;
        if (test.diagnostic()?.flaky) repeated.push(`repeated: ${name}: ${errors?.[0]?.message}`);
        if (state === "passed" || state === "failed") count[state] += 1;
        else {
          count.skipped += 1;
          skipped.push(`skipped: ${name}`);
        }
      }
      if (!module.ok() && ran === 0) count.failed += 1;
    }
    count.failed += unhandledErrors.length;
    const lines = [...slowest(modules), ...repeated, ...skipped];
    lines.push(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
    process.stdout.write(`${lines.join("\n")}\n`);
  }
}

/** One line for each of the slowest files. Files run side by side, so their sum is more than the run took. */
function slowest(modules: readonly TestModule[]): string[] {
  const files = modules.map((module) => {
    const { duration, collectDuration } = module.diagnostic();
    const tests = Array.from(module.children.allTests()).length;
    return { path: module.relativeModuleId, seconds: (duration + collectDuration) / 1000, tests };
  });
  files.sort((a, b) => b.seconds - a.seconds);
  return files
    .slice(0, SLOWEST)
    .map(({ path, seconds, tests }) => `slow: ${seconds.toFixed(1)} s, ${tests} tests: ${path}`);
}
