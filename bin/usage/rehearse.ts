import { type Command, InvalidArgumentError } from "commander";
import { withWhose } from "../domain-options.js";
import { wholeNumber } from "../network-limits.js";
import { grouped } from "../option-groups.js";
import { examples, REPO, size, withTrust } from "../options.js";
import type { Run } from "../run.js";

const MOST_SECONDS = 86_400;
const MOST_CPUS = 4096;
const GiB = 1024 ** 3;

export function addRehearse(program: Command, run: Run): void {
  const command = program
    .command("rehearse")
    .addHelpText(
      "after",
      examples(
        "nbdpull rehearse /srv/backups",
        "nbdpull rehearse /srv/backups web --expect serial:login: --memory 4G",
        "nbdpull rehearse /srv/backups db --run 'systemctl is-active postgresql'",
      ),
    )
    .description(
      "start the guests of points in isolation, see whether they come up, and remove them again; exit 3 if not",
    )
    .argument("[repo]", REPO)
    .argument("[domain]", "default: all domains")
    .option("--at <point>", "a point's id, a time (the newest point not after it), or latest", "latest")
    .option(
      "--share <percent>",
      "only this part of the domains, such as 25%: those first whose last rehearsal is longest ago",
      percent,
      100,
    )
    .option("--pictures <dir>", "keep a picture of each guest's screen there, as DOMAIN.png or DOMAIN.ppm")
    .option("--metrics <file>", "keep a metrics file for the node exporter's textfile collector (*.prom)")
    .option("--connect <uri>", "libvirt connection, as virsh -c");
  withTrust(withWhose(command));
  grouped(command, "How it is decided", () =>
    command
      .option(
        "--expect <sign>",
        "by what a guest shows that it came up: agent, or serial:PATTERN, which it says on its first serial line (default agent)",
      )
      .option(
        "--tcp-port <port>",
        "it came up when this port of it takes connections: through --network",
        wholeNumber(1, 65_535),
      )
      .option(
        "--run <command>",
        "have its agent run this in it then; it came up if that ends with exit code 0",
      )
      .option("--within <seconds>", "how long to wait for all of that", wholeNumber(1, MOST_SECONDS), 600),
  );
  grouped(command, "The box", () =>
    command
      .option("--memory <bytes>", "give no guest more memory (default 2G)", size, 2 * GiB)
      .option("--cpus <n>", "give no guest more processors", wholeNumber(1, MOST_CPUS), 2)
      .option(
        "--network <name>",
        "connect their cards to this network of libvirt's; without it they have none",
      )
      .option("--work <dir>", "where images of what they write are made, until the end", "/var/tmp")
      .option(
        "--trust-definition",
        "let definitions name emulators and firmware of this host, as the stored ones do",
      )
      .option(
        "--adapt",
        "change of definitions what this host has not (machine type, CPU, firmware), and tell it",
      ),
  );
  command.action(run(async () => (await import("../commands/rehearse.js")).runRehearse));
}

/** With its sign, because the share of a verify is one of N. @throws {InvalidArgumentError} */
function percent(text: string): number {
  if (!text.endsWith("%")) throw new InvalidArgumentError(`Say it in percent: ${text}%.`);
  return wholeNumber(1, 100)(text.slice(0, -1));
}
