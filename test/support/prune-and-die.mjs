// Prunes a domain with the built program, and kills itself at a step:
// node prune-and-die.mjs REPO DOMAIN KEEP STEP [SIGNAL]
// Prints the steps that it passed. With STEP -1 it survives. With a signal, progress counts as steps too.
import { prune } from "../../dist/src/backup/prune/prune.js";
import { Repository } from "../../dist/src/backup/repository/repository.js";

const [path, domain, keep, last, signal] = process.argv.slice(2);
let steps = 0;
function pass(step) {
  process.stderr.write(`${step}\n`);
  steps += 1;
  if (steps - 1 === Number(last)) process.kill(process.pid, signal ?? "SIGKILL");
}
const result = await prune({
  repository: await Repository.open(path),
  domain,
  retention: { last: Number(keep) },
  dryRun: false,
  sync: true,
  onStep: pass,
  onProgress: signal === undefined ? undefined : () => pass("progress"),
});
process.stdout.write(`${JSON.stringify({ steps, result })}\n`);
