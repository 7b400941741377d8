import { describe, expect, it } from "vitest";
import { withoutBitmap } from "../../../../src/backup/libvirt/documents/checkpoint-edit.js";
import { parseDomain } from "../../../../src/backup/libvirt/documents/domain-xml.js";
import { formatTree, parseTree } from "../../../../src/backup/libvirt/documents/xml-tree.js";
import { CHECKPOINT, DOMAIN } from "../dumps.js";

/** What `virsh dumpxml` of libvirt 9.0 prints of what was given to `virsh define`. */
const WRITTEN: readonly (readonly [what: string, metadata: string])[] = [
  ["a document type in a CDATA section", `<x xmlns="u"><![CDATA[<!DOCTYPE a [<!ENTITY b "c">]>]]></x>`],
  ["the end of a CDATA section in two", `<x xmlns="u"><![CDATA[a]]]]><![CDATA[>b]]></x>`],
  ["an empty CDATA section", `<x xmlns="u"><![CDATA[]]></x>`],
  ["tags in a CDATA section", `<x xmlns="u"><![CDATA[</metadata></domain> <disk> <!-- ]]></x>`],
  ["a document type in a comment", `<x xmlns="u">a<!-- <!DOCTYPE b> ' " > <![CDATA[ --></x>`],
  [
    "entities and numbers",
    `<x xmlns="u" a="&lt;!DOCTYPE &quot; &apos; &gt; &#10;&#9;&#13;">&lt;!ENTITY &amp;amp; "&#13;</x>`,
  ],
  ["thousands of entities", `<x xmlns="u">${"&lt;&amp;".repeat(20_000)}</x>`],
  ["what every object has", `<x xmlns="u"><constructor/><__proto__/><prototype/><toString>a</toString></x>`],
  ["the same as attributes", `<x xmlns="u" constructor="1" __proto__="2" prototype="3" hasOwnProperty="4"/>`],
  [
    "names with marks in them",
    `<a:x.y-z_ xmlns:a="u" a:b="1" xml:lang="de" xml:space="preserve"> </a:x.y-z_>`,
  ],
  ["names of other scripts", `<Ünï xmlns="u" ä="1">ß\u2028\u0085</Ünï>`],
  ["what a definition has", `<domain xmlns="u"><name>b</name><uuid/><devices><disk/></devices></domain>`],
  ["elements 250 deep", `<x xmlns="u">${"<d>".repeat(250)}b${"</d>".repeat(250)}</x>`],
];

const metadataOf = (xml: string): string => /<metadata>([\s\S]*)<\/metadata>/.exec(xml)?.[1] ?? "";

describe("the metadata of a domain", () => {
  it.each(WRITTEN)("may have %s, and stays as it is", (_, metadata) => {
    const xml = DOMAIN.replace("</uuid>", `</uuid><metadata>${metadata}</metadata>`);
    expect(parseDomain(xml)).toEqual(parseDomain(DOMAIN));
    expect(metadataOf(formatTree(parseTree(xml, "domain")))).toBe(metadata);
    const checkpoint = CHECKPOINT.replace("</disks>", `</disks>${xml}`);
    expect(metadataOf(withoutBitmap(checkpoint, "vdb") ?? "")).toBe(metadata);
  });

  it("loses processing instructions, which mean nothing here", () => {
    const xml = DOMAIN.replace("</uuid>", `</uuid><metadata><x>a<?b it's <!ENTITY c> "?>d</x></metadata>`);
    expect(parseDomain(xml)).toEqual(parseDomain(DOMAIN));
    expect(metadataOf(formatTree(parseTree(xml, "domain")))).toBe("<x>ad</x>");
  });

  it("has references to entities that libvirt no longer declares as text, which it takes again", () => {
    const xml = DOMAIN.replace("</uuid>", `</uuid><metadata><x a="&b;">&c; &d</x></metadata>`);
    const parsed = parseTree(xml, "domain").first("metadata", "x");
    expect([parsed?.attributeText("a"), parsed?.text]).toEqual(["&b;", "&c; &d"]);
    expect(metadataOf(formatTree(parseTree(xml, "domain")))).toBe(`<x a="&amp;b;">&amp;c; &amp;d</x>`);
  });

  it.each([
    ["a document type", `<!DOCTYPE a [<!ENTITY b "c">]>${DOMAIN}`],
    ["one in small letters", `<!doctype a>${DOMAIN}`],
    [
      "one inside",
      DOMAIN.replace("</uuid>", `</uuid><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>`),
    ],
    ["one after what looks like a comment", `<a b="<!--"><!DOCTYPE a [<!ENTITY b "c">]><c d="-->"/></a>`],
    ["one after what looks like a CDATA section", `<a b='<![CDATA['><!DOCTYPE a><c d=']]>'/></a>`],
    ["one after what looks like an instruction", `<a b='<?'><!DOCTYPE a><c d='?>'/></a>`],
    ["one in a comment that has ended", `<!-- --><!DOCTYPE a>${DOMAIN}`],
    ["a comment without an end", DOMAIN.replace("</uuid>", "</uuid><!-- ")],
    ["a tag without an end", DOMAIN.slice(0, -2)],
  ])("is refused with %s", (_, xml) => {
    expect(() => parseDomain(xml)).toThrow(expect.objectContaining({ code: "E_DOMAIN_XML" }));
    expect(() => parseTree(xml, "domain")).toThrow(SyntaxError);
  });
});
