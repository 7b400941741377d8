/**
 * The processor time of this process so far, in milliseconds. It does not grow while others have the
 * processor, so a bound on it holds on a machine that is busy with other things, too.
 */
export function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
