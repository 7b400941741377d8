// Prunes a domain with the built program, and kills itself at a step: node prune-and-die.mjs REPO DOMAIN KEEP STEP.
// Prints the steps that it passed. STEP -1: it lives.
import { prune } from "../../dist/src/backup/prune.js";
import { Repository } from "../../dist/src/backup/repository.js";

const [path, domain, keep, last] = process.argv.slice(2);
let steps = 0;
const result = await prune({
  repository: await Repository.open(path),
  domain,
  retention: { last: Number(keep) },
  dryRun: false,
  sync: true,
  onStep: (step) => {
    process.stderr.write(`${step}\n`);
    if (steps === Number(last)) process.kill(process.pid, "SIGKILL");
    steps += 1;
  },
});
process.stdout.write(`${JSON.stringify({ steps, result })}\n`);
