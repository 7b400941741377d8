import type { Command } from "commander";
import { withCache } from "../cache-options.js";
import { atPoint, onlyDisks, withWhose } from "../domain-options.js";
import { MOST_SECONDS, wholeNumber } from "../network-limits.js";
import { grouped } from "../option-groups.js";
import { examples, REPO } from "../options.js";
import type { Run } from "../run.js";

/** Each takes descriptors and buffers. */
const MOST_CLIENTS = 10_000;

export function addServe(program: Command, run: Run): void {
  const command = program
    .command("serve")
    .addHelpText(
      "after",
      examples(
        "nbdpull serve /srv/backups web --socket /run/web.sock",
        "nbdpull serve /srv/backups web --at 2026-11-28 --disk vda --once",
      ),
    )
    .description("serve the disks of a point by NBD, read-only; each byte is compared with its digest")
    .argument("[repo]", REPO)
    .argument("[domain]", "whose point it is; left out where the repository has one domain only")
    .addOption(atPoint())
    .addOption(onlyDisks());
  grouped(withWhose(command), "Who may connect", () =>
    command
      .option("--listen <address>", "TCP: HOST:PORT or PORT (default 127.0.0.1:10809)")
      .option("--socket <path>", "a Unix socket instead, which only this user may connect to")
      .option("--allow-remote", "let other machines read, without TLS")
      .option("--tls-cert <file>", "require TLS: the server's certificate")
      .option("--tls-key <file>", "its key")
      .option("--tls-ca <file>", "let in only clients with a certificate of this CA")
      .option(
        "--idle-limit <seconds>",
        "disconnect a client that asks for nothing for this time; 0: never",
        wholeNumber(0, MOST_SECONDS),
        0,
      )
      .option("--max-clients <n>", "connections at once (default 64)", wholeNumber(1, MOST_CLIENTS))
      .option(
        "--max-clients-per-host <n>",
        "connections at once from one other host (default 32)",
        wholeNumber(1, MOST_CLIENTS),
      )
      .option("--once", "end when the last client has left"),
  );
  withCache(command).action(run(async () => (await import("../commands/serve.js")).runServe));
}
