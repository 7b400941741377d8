import { PreconditionError } from "../base/errors.js";
import type { XmlElement } from "../libvirt/documents/xml-tree.js";
import { type Allowed, DOMAIN, type Rule } from "./definition-rules.js";

/** How many of the things that were left out are named. */
const MOST_NAMED = 20;
const MOST_CHARACTERS = 120;
/** A name that every parser takes for the same one. */
const NAME = /^[A-Za-z_][\w.:-]*$/;
const TYPES = ["kvm", "qemu", "hvf"];

/**
 * Leaves out of a definition what {@link DOMAIN} doesn't let stay. This has to be the last change to a
 * definition that is not trusted.
 *
 * Comments go too, and of elements that may occur once the first one stays: another parser could see the
 * last one.
 *
 * @returns what was left out, a line each; the last says why
 * @throws {PreconditionError} `E_UNTRUSTED_DEFINITION`: what is left would not be a virtual machine
 */
export function leaveOutStrange(domain: XmlElement, allowed: Allowed): string[] {
  const type = domain.attributeText("type") ?? "";
  if (!TYPES.includes(type)) {
    const message = `the definition is of type "${type}", which is no virtual machine of QEMU's: nothing was restored. If you know where it comes from, --trust-definition takes it as it is`;
    throw new PreconditionError("E_UNTRUSTED_DEFINITION", message, { details: { type } });
  }
  domain.simplify();
  const found: string[] = [];
  clean(domain, DOMAIN, allowed, (what) => found.push(what));
  if (found.length === 0) return [];
  const named = found.slice(0, MOST_NAMED).map((what) => `left out: ${what}`);
  if (found.length > MOST_NAMED) named.push(`left out: ${found.length - MOST_NAMED} more`);
  named.push(
    "what was left out names files, devices, programs or addresses of this host, or is unknown here. Whoever can write to the repository could have put it there; if you know that nobody did, --trust-definition keeps it",
  );
  return named;
}

function clean(element: XmlElement, rule: Rule, allowed: Allowed, note: (what: string) => void): void {
  const target = element.first("target")?.attributeText("dev");
  const place = target === undefined ? `<${element.name}>` : `<${element.name}> ${shortened(target)}`;
  for (const name of element.attributeNames) {
    if (mayHave(element, name, rule, allowed)) continue;
    // A declared namespace says nothing by itself; what is in it is looked at where it occurs.
    const what = `${name}="${shortened(element.attributeText(name) ?? "")}" of ${place}`;
    if (!name.startsWith("xmlns:")) note(what);
    element.removeAttribute(name);
  }
  const seen = new Set<string>();
  const kept = new Map<XmlElement, Rule>();
  element.removeWhere((child) => {
    const its = ruleFor(child, rule);
    const isExtra = seen.has(child.name) && !rule.many.has(child.name) && rule.others === undefined;
    if (its && !isExtra && fits(child, its, allowed)) {
      seen.add(child.name);
      kept.set(child, its);
      return false;
    }
    note(`${outline(child)} of ${place}`);
    return true;
  });
  for (const [child, its] of kept) clean(child, its, allowed, note);
}

function ruleFor(child: XmlElement, { children, others }: Rule): Rule | undefined {
  if (!NAME.test(child.name)) return undefined;
  return Object.hasOwn(children, child.name) ? children[child.name] : others;
}

function fits(element: XmlElement, rule: Rule, allowed: Allowed): boolean {
  if (!rule.freeText && isPath(element.text)) return false;
  return rule.fits === undefined || rule.fits(element, allowed);
}

function mayHave(element: XmlElement, name: string, rule: Rule, allowed: Allowed): boolean {
  const value = element.attributeText(name) ?? "";
  if (!NAME.test(name)) return false;
  if (Object.hasOwn(rule.values, name)) return rule.values[name]?.(value, allowed) ?? false;
  return (rule.attributes === "any" || rule.attributes.has(name)) && !isPath(value);
}

/** Absolute, or one that climbs out of the folder where the value would be looked for. */
function isPath(value: string): boolean {
  const text = value.trim();
  return text.startsWith("/") || text.split("/").includes("..");
}

/** An element as messages show it: `<interface type="ethernet"> (<script path="/x"/>)`. */
function outline(element: XmlElement): string {
  const attributes = element.attributeNames.map((name) => ` ${name}="${element.attributeText(name)}"`);
  const text = [element.text, ...element.elements.map(outline)].filter((part) => part !== "").join(" ");
  return shortened(`<${element.name}${attributes.join("")}>${text === "" ? "" : ` ${text}`}`);
}

function shortened(text: string): string {
  return text.length <= MOST_CHARACTERS ? text : `${text.slice(0, MOST_CHARACTERS)}…`;
}
