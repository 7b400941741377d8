/**
 * Publishes results in the documentation: tables between the markers of a page; in a folder beside it, for
 * each section, the result itself, of which the page can be made anew, and plots.
 */

import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { readmeSentence } from "./in-short.js";
import { combined, judgedToday, partsOf, publishable } from "./page.js";
import { targetsPlot, workloadPlot } from "./plots.js";
import type { BenchResult } from "./result.js";
import { readResult } from "./result-file.js";
import { SECTIONS, type Section } from "./sections.js";

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

/** Where results are published. */
export interface Pages {
  /** Results and plots are in the folder of the same name beside it. */
  readonly page: string;
  /** A sentence of it is about whole backups. */
  readonly readme?: string;
}

/**
 * Replaces what is published of a section, unless there is nothing to publish.
 *
 * @param results of one run after the other, of the same programs on the same machine
 * @returns what was left out, as sentences: workloads with too few rounds
 */
export async function publish(
  section: Section,
  results: readonly BenchResult[],
  { page }: Pages,
): Promise<string[]> {
  const { result, left } = publishable(combined(results));
  if (result.workloads.length === 0) return left;
  const folder = folderOf(page, section);
  await mkdir(folder, { recursive: true });
  for (const name of await readdir(folder)) if (name.endsWith(".svg")) await rm(join(folder, name));
  await writeFile(resultOf(page, section), onLines(result));
  if (section === "start") return left;
  for (const workload of result.workloads)
    await writeFile(join(folder, `${workload.name}.svg`), workloadPlot(workload));
  return left;
}

async function publishedAt(page: string): Promise<Map<Section, BenchResult>> {
  const results = new Map<Section, BenchResult>();
  for (const section of SECTIONS) {
    const path = resultOf(page, section);
    if (existsSync(path)) results.set(section, await readResult(path));
  }
  return results;
}

/** What the pages say, made of the published results. */
export async function madeOfResults({ page, readme }: Pages): Promise<Map<string, string>> {
  const results = await publishedAt(page);
  const plots = basename(page, ".md");
  const parts = partsOf(results, (section, name) => `${plots}/${section}/${name}.svg`);
  const made = new Map([[page, fillMarkers(await readFile(page, "utf8"), parts)]]);
  if (readme !== undefined) {
    const sentence = new Map([["in-short", readmeSentence(results.get("libvirt"))]]);
    made.set(readme, fillMarkers(await readFile(readme, "utf8"), sentence));
  }
  return made;
}

/** The plot of targets is drawn anew too: they may be others than when the result was published. */
export async function writePages(pages: Pages): Promise<void> {
  for (const [section, result] of await publishedAt(pages.page)) {
    if (section === "start") continue;
    await writeFile(join(folderOf(pages.page, section), "targets.svg"), targetsPlot(judgedToday(result)));
  }
  for (const [path, text] of await madeOfResults(pages)) await writeFile(path, text);
}

function folderOf(page: string, section: Section): string {
  return join(dirname(page), basename(page, ".md"), section);
}

function resultOf(page: string, section: Section): string {
  return join(folderOf(page, section), "result.json");
}

/** A line for each contender, so that a new result is a readable change. */
function onLines(result: BenchResult): string {
  const lines = JSON.stringify(result).replaceAll('{"name":', '\n{"name":');
  return `${lines}\n`;
}
