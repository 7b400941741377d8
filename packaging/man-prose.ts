/** What a page of the documentation says, in the language of man(7). */
import { posix } from "node:path";
import type { Code, Link, List, PhrasingContent, Root, RootContent, Table } from "mdast";
import remarkGfm from "remark-gfm";
import remarkMan from "remark-man";
import remarkParse from "remark-parse";
import { unified } from "unified";

export interface ManProse {
  /** Sections and paragraphs, without those that `options` are from. Empty if the page has nothing else. */
  readonly text: string;
  /** What the page says of options, by their long flag: `--format`. */
  readonly options: ReadonlyMap<string, string>;
}

const parser = unified().use(remarkParse).use(remarkGfm);

/**
 * @param markdown a page: its first heading is left out, those of level 2 become headings inside a section
 * @param page of which command it is; undefined for that of the program
 */
export function manProse(markdown: string, page: string | undefined): ManProse {
  const tree = parser.parse(markdown);
  const options = new Map(tree.children.flatMap(optionsOf));
  const children: RootContent[] = tree.children
    .filter(
      (node, i, all) =>
        !isTitle(node) &&
        optionsOf(node).length === 0 &&
        node.type !== "html" &&
        !isPicture(node) &&
        !isHeadingOfOptions(node, all[i + 1]),
    )
    .map((node) => {
      if (node.type === "heading") return { ...node, depth: 3 };
      return node.type === "table" ? listOf(node) : node;
    });
  const root: Root = { type: "root", children };
  replaceLinks(root, page);
  const compiled = unified().use(remarkGfm).use(remarkMan, { name: "x", section: 1 }).stringify(root);
  const [, text = ""] = /^\.TH .*\n\.SH "NAME"\n.*\n([\s\S]*)$/.exec(String(compiled)) ?? [];
  return { text: inOrder(text.trimEnd()), options };
}

/**
 * As linters want it: no empty paragraph in front of one, and no line of code that looks like an instruction.
 */
function inOrder(text: string): string {
  return text
    .replaceAll(/^(\.S[HS] .*)\n\.P$/gm, "$1")
    .replace(/^\.P\n/, "")
    .replaceAll(/^\.(?=\.)/gm, "\\&.");
}

/** Cells of man(7) don't wrap, so each row is an item: its first cell, then the others. */
function listOf({ children: [, ...rows] }: Table): List {
  const children = rows.map(({ children: [first, ...others] }) => {
    const rest = others.flatMap((cell): PhrasingContent[] => [
      { type: "text", value: ": " },
      ...cell.children,
    ]);
    const words: PhrasingContent[] = [...(first?.children ?? []), ...rest];
    return {
      type: "listItem" as const,
      spread: false,
      children: [{ type: "paragraph" as const, children: words }],
    };
  });
  return { type: "list", ordered: false, spread: false, children };
}

function isTitle(node: RootContent): boolean {
  return node.type === "heading" && node.depth === 1;
}

function isPicture(node: RootContent): boolean {
  return node.type === "paragraph" && node.children.every(({ type }) => type === "image");
}

/** A line of bold text above a block of options, which the list of options has from the help. */
function isHeadingOfOptions(node: RootContent, next: RootContent | undefined): boolean {
  const isBold = node.type === "paragraph" && node.children.every(({ type }) => type === "strong");
  return isBold && next !== undefined && optionsOf(next).length > 0;
}

/** Of a block of code that lists options: `--flag VALUE   text`, whose further lines are indented. */
function optionsOf(node: RootContent): (readonly [string, string])[] {
  if (node.type !== "code" || !node.value.startsWith("--")) return [];
  return entriesOf(node).flatMap((entry) => {
    if (/^--[^\n]*, --/.test(entry)) return [];
    const [, flag, text = ""] = /^(--[a-z-]+)[^\n]*?(?: {2,}|\n\s+)(\S[\s\S]*)$/.exec(entry) ?? [];
    return flag === undefined ? [] : [[flag, text.replaceAll(/\s+/g, " ").trim()] as const];
  });
}

function entriesOf({ value }: Code): string[] {
  return value.split(/\n(?=--)/);
}

/** A man page links to no file: another command is named by its man page, other pages by their path. */
function replaceLinks(parent: { children: unknown[] }, page: string | undefined): void {
  for (const [i, node] of (parent.children as RootContent[]).entries()) {
    if (node.type === "link" && !/^https?:/.test(node.url)) {
      parent.children.splice(i, 1, { type: "text", value: spelled(node, page) });
    } else if ("children" in node) replaceLinks(node, page);
  }
}

function spelled({ children, url }: Link, page: string | undefined): string {
  const words = children.map((child) => ("value" in child ? child.value : "")).join("");
  const [path = ""] = url.split("#");
  if (path === "") return words;
  const target = posix.join(page === undefined ? "docs" : "docs/cli", path);
  const [, command] = /^docs\/cli\/([a-z]+)\.md$/.exec(target) ?? [];
  if (command === page && page !== undefined) return words;
  if (command === words) return `nbdpull-${command}(1)`;
  if (command !== undefined) return `${words} in nbdpull-${command}(1)`;
  return target === "docs/cli.md" ? `${words} in nbdpull(1)` : `${words} (${target})`;
}
