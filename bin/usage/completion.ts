import { Argument, type Command } from "commander";
import { SHELLS, type Shell } from "../completion/shells.js";
import { examples } from "../options.js";
import type { Run } from "../run.js";

export function addCompletion(program: Command, run: Run): void {
  program
    .command("completion")
    .addHelpText(
      "after",
      examples(
        "nbdpull completion bash > /etc/bash_completion.d/nbdpull",
        "nbdpull completion zsh > /usr/local/share/zsh/site-functions/_nbdpull",
        "nbdpull completion fish > ~/.config/fish/completions/nbdpull.fish",
      ),
    )
    .description("print what makes a shell complete nbdpull's commands, options and their values")
    .addArgument(new Argument("<shell>", "the shell").choices([...SHELLS]))
    .action(
      run(async () => {
        const { runCompletion } = await import("../commands/completion.js");
        return (context, _, shell: string) => runCompletion(context, program, shell as Shell);
      }),
    );
}
