// Repairs a domain with the built program, and kills itself at a step:
// node repair-and-die.mjs REPO DOMAIN STEP
// Prints the steps that it passed. With STEP -1 it survives.
import { repairPoints } from "../../dist/src/backup/repair/repair.js";
import { Repository } from "../../dist/src/backup/repository/repository.js";

const [path, domain, last] = process.argv.slice(2);
let steps = 0;
function pass(step) {
  process.stderr.write(`${step}\n`);
  steps += 1;
  if (steps - 1 === Number(last)) process.kill(process.pid, "SIGKILL");
}
const repository = await Repository.open(path);
const ids = await repository.pointNames(domain);
await repairPoints({ repository, domain, ids, dryRun: false, onStep: pass });
