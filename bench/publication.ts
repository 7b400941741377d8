/**
 * Publishes a result file in the documentation: tables between the markers of a page, plots in a folder
 * beside it.
 */

import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { targetsPlot, workloadPlot } from "./plots.js";
import { circumstances, targetsReport, workloadReport } from "./report.js";
import type { BenchResult } from "./result.js";

/** What lies between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` belongs to this script. */
export function fillMarkers(page: string, parts: ReadonlyMap<string, string>): string {
  let filled = page;
  for (const [name, text] of parts) {
    const begin = `<!-- bench:${name} -->`;
    const end = `<!-- /bench:${name} -->`;
    const from = filled.indexOf(begin);
    const to = filled.indexOf(end);
    if (from < 0 || to < from) throw new Error(`the page has no place for "${name}": ${begin} … ${end}`);
    filled = `${filled.slice(0, from + begin.length)}\n\n${text.trim()}\n\n${filled.slice(to)}`;
  }
  return filled;
}

/**
 * Writes the tables into `page`, and the plots into the folder of the same name beside it, replacing all
 * others.
 *
 * @param section for the results of another run: a prefix of the markers' names, and a subfolder of that
 * folder
 */
export async function publish(result: BenchResult, page: string, section?: string): Promise<void> {
  const folder = join(page.replace(/\.md$/, ""), section ?? "");
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(folder)) if (name.endsWith(".svg")) await rm(join(folder, name));
  const picture = async (name: string, title: string, svg: string): Promise<string> => {
    await writeFile(join(folder, `${name}.svg`), svg);
    return `![${title}](${join(relative(dirname(page), folder), `${name}.svg`)})`;
  };

  const targets = await picture("targets", "All targets", targetsPlot(result));
  const sections: string[] = [];
  for (const workload of result.workloads) {
    const plot = await picture(workload.name, workload.title, workloadPlot(workload));
    sections.push(`${workloadReport(workload)}\n${plot}\n`);
  }
  const marker = (name: string): string => (section === undefined ? name : `${section}-${name}`);
  const parts = new Map([
    [marker("circumstances"), circumstances(result)],
    [marker("targets"), `${targetsReport(result)}\n${targets}`],
    [marker("workloads"), sections.join("\n")],
  ]);
  await writeFile(page, fillMarkers(await readFile(page, "utf8"), parts));
}
