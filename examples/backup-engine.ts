/**
 * Takes a full restore point of an export, verifies it, restores it, and drops older points.
 *
 *     node dist/examples/backup-engine.js URI REPOSITORY TARGET
 */
import { parseNbdUri } from "nbd-client-ts";
import {
  choosePoint,
  DamageError,
  prune,
  Repository,
  restore,
  takePoint,
  verifyPoints,
} from "nbd-client-ts/backup";

const [uri = "", path = "", target = ""] = process.argv.slice(2);
const domain = "web";
const say = (line: string): void => void process.stdout.write(`${line}\n`);

const repository = await Repository.openOrCreate(path);
const taken = await takePoint({
  repository,
  domain: { name: domain, uuid: null },
  disks: [{ name: "vda", address: parseNbdUri(uri) }],
  checkpoint: null,
  format: "qcow2",
  digests: "sha256",
  sync: true,
  tool: "my-program 1.0",
  connect: { idleTimeoutMs: 60_000 },
  // A program that knows the job asks here whether it is still the same one. An error keeps the point from
  // being.
  confirm: async () => {},
  onWarning: say,
});
say(`${taken.manifest.id} is taken`);

const reports = await verifyPoints(repository, taken.domainFolder, [taken.manifest.id]);
const findings = reports.flatMap((report) => report.findings);
say(findings.length === 0 ? "it is sound" : findings.map(({ message }) => message).join("\n"));

try {
  const point = await choosePoint(repository, taken.domainFolder, "latest");
  const targets = [{ disk: "vda", path: target, format: "raw" as const }];
  const [disk] = await restore({
    ...{ repository, domain: taken.domainFolder, point, targets },
    ...{ force: false, sync: true },
  });
  say(`${disk?.path} is restored, and ${disk?.proven ? "proven" : "not proven"}`);
} catch (error) {
  if (!(error instanceof DamageError)) throw error;
  say(`${error.code}: ${error.message}`);
  process.exitCode = 3;
}

const pruned = await prune({
  ...{ repository, domain: taken.domainFolder, retention: { last: 7, daily: 14 } },
  ...{ dryRun: false, sync: true },
});
say(`${pruned.points.filter(({ action }) => action === "keep").length} kept`);
