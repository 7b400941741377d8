/** The report of repositories, and its page in a real browser. */
import {
  chmod,
  copyFile,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  watch,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import axe from "axe-core";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ReportDocument } from "../../bin/report-document.js";
import { reportedDomains } from "../../src/backup/report/repository-facts.js";
import { CHROMIUM, startBrowser } from "../support/browser.js";
import { freshPaths } from "../support/fresh.js";
import type { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { HOSTILE, makeReportedRepository } from "../support/reported-repository.js";
import { describeWith } from "../support/tools.js";

const HOUR = 3600;

let chain: MemoryChain;
const fresh = freshPaths();
let folder: string;
let html: string;
let ran: Ran;
let report: ReportDocument;
/** Where pictures go that somebody wants to look at. */
const pictures = process.env["REPORT_PICTURES"];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-report-"));
  chain = await makeReportedRepository(Date.now());
  html = join(folder, "report.html");
  const prometheus = ["--prometheus", join(folder, "report.prom")];
  const nowhere = join(folder, "nowhere");
  const { path } = chain.repository;
  ran = await nbdpull("report", nowhere, path, `${path}/`, "--html", html, ...prometheus, "--json");
  report = ran.json() as ReportDocument;
});
afterAll(async () => {
  await chain?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

function domain(name: string): ReportDocument["repositories"][number]["domains"][number] {
  const found = report.repositories[1]?.domains.find((each) => each.name === name);
  if (!found) throw new Error(`${name} is not reported`);
  return found;
}

describe("nbdpull report", () => {
  it("tells of each domain what is protected, of a repository that can't be read why, and exits with the worst", () => {
    expect(ran.code).toBe(3);
    const [missing, there, ...again] = report.repositories;
    expect(again).toEqual([]);
    expect(missing).toMatchObject({ id: null, domains: [], error: { code: "E_NO_REPOSITORY" } });
    expect(there?.error).toBeNull();
    const states = Object.fromEntries(there?.domains.map(({ name, state }) => [name, state]) ?? []);
    expect(states).toMatchObject({ guest: "good", mail: "late", database: "damaged", lost: "lost" });
    expect(Object.keys(states).sort()).toEqual(["guest", "mail", "database", "lost", ...HOSTILE].sort());
    expect(domain("lost")).toMatchObject({ lastGood: null, ageSeconds: null, chainLength: 0 });
    expect(domain("mail").ageSeconds).toBeCloseTo(5 * 24 * HOUR + HOUR, -3);
    expect(domain("database")).toMatchObject({ unrestorable: 3, chainLength: 1 });
    expect(domain("database").points.map(({ restorable }) => restorable)).toEqual([
      false,
      false,
      false,
      true,
    ]);
    expect(domain("guest")).toMatchObject({ chainLength: 6, virtualBytes: 20 * 1024 ** 3, unrestorable: 0 });
    const { points, storedBytes, growthPerDay } = domain("guest");
    expect(storedBytes).toBe(points.reduce((sum, point) => sum + point.storedBytes, 0));
    expect(growthPerDay).toBeCloseTo((storedBytes - (points[0]?.storedBytes ?? 0)) / 11, 3);
    expect(ran.stderr).toMatch(/warning: mail: its last good point is 5 days old; at most 26 h was promised/);
  });

  it("maps what was written where, day by day", () => {
    const [map] = domain("guest").maps;
    expect(map).toMatchObject({ disk: "vda", leftOut: 0, unreadable: [] });
    expect(map?.days.map(({ full }) => full).filter(Boolean)).toHaveLength(2);
    expect(map?.days).toHaveLength(12);
    const { changedBytes } = domain("guest").points.at(-1) ?? {};
    const last = map?.days.at(-1);
    expect(last?.changedBytes).toBe(changedBytes);
    // Day 10 wrote at 15.5 GiB, in its cell of a 96th of the disk.
    expect(last?.cells[Math.floor((15.5 * 1024 ** 3) / (map?.cellBytes ?? 1))]).toBe(3 * 1024 ** 2);
  });

  it("says the same in Prometheus' format, and removes what it said of domains that are gone", async () => {
    const path = join(folder, "report.prom");
    const text = await readFile(path, "utf8");
    const repository = chain.repository.path;
    expect(text).toContain(`nbdpull_report_late{domain="mail",repository="${repository}"} 1\n`);
    expect(text).toContain(
      `nbdpull_report_points_unrestorable{domain="database",repository="${repository}"} 3\n`,
    );
    expect(text).toContain(
      `nbdpull_report_last_good_timestamp_seconds{domain="lost",repository="${repository}"} 0\n`,
    );
    expect(text).toContain(`nbdpull_report_readable{repository="${join(folder, "nowhere")}"} 0\n`);
    await using copy = await chain.copy();
    const of = (name: string): string[] => [
      "report",
      copy.repository.path,
      "--prometheus",
      join(folder, name),
    ];
    expect((await nbdpull(...of("copy.prom"))).code).toBe(3);
    for (const name of ["lost", "database"]) await rm(join(copy.repository.path, name), { recursive: true });
    expect((await nbdpull(...of("copy.prom"), "--strict")).code).toBe(5);
    expect((await nbdpull(...of("copy.prom"), "--max-age", "2w", "--strict")).code).toBe(0);
    const after = await readFile(join(folder, "copy.prom"), "utf8");
    expect(after).not.toMatch(/database|lost"/);
    expect(after).toContain(`nbdpull_report_late{domain="mail",repository="${copy.repository.path}"} 0\n`);
  });

  it("replaces an older report and nothing else, and asks for what makes sense", async () => {
    const write = (path: string): Promise<Ran> => nbdpull("report", chain.repository.path, "--html", path);
    const precious = fresh("precious.html");
    await writeFile(precious, "<!DOCTYPE html><p>precious</p>");
    await symlink(html, fresh("link.html"));
    for (const path of [precious, fresh("link.html"), fresh("none/x.html")]) {
      const refused = await write(path);
      expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/report/)]);
    }
    expect(await readFile(precious, "utf8")).toContain("precious");
    const older = fresh("older.html");
    await copyFile(html, older);
    const before = await stat(older);
    expect((await write(older)).code).toBe(3);
    expect((await stat(older)).ino).not.toBe(before.ino);
    expect((await nbdpull("report", chain.repository.path, "--max-age", "26")).code).toBe(2);
  });

  it("leaves the older page whole when it is killed while it writes, and the next run clears up", async () => {
    await using own = await chain.copy();
    const page = join(own.folder, "report.html");
    const args = ["report", own.repository.path, "--html", page];
    await copyFile(html, page);
    const killed = startNbdpull(args);
    const begun = async (): Promise<string | undefined> =>
      (await readdir(own.folder)).find((name) => name.startsWith(".report.html."));
    for await (const { filename } of watch(own.folder)) if (filename?.startsWith(".report.html.")) break;
    killed.kill("SIGKILL");
    await killed.ended;
    const left = await begun();
    const now = await readFile(page, "utf8");
    expect([
      left !== undefined && now === (await readFile(html, "utf8")),
      now.trimEnd().endsWith("</html>"),
    ]).toEqual([left !== undefined, true]);
    const old = join(own.folder, ".report.html.0123456789abcdef");
    await writeFile(old, "<!DOC");
    await utimes(old, 1, 1);
    expect((await finished(startNbdpull(args))).code).toBe(3);
    expect(await begun()).toBe(left);
  });

  it("says that a repository is gone which was unmounted meanwhile, and keeps what it has seen", async () => {
    await using own = await chain.copy();
    const path = own.repository.path;
    const found: string[] = [];
    const errors: unknown[] = [];
    for await (const each of reportedDomains(own.repository, { now: Date.now(), maxAgeSeconds: 1 })) {
      if ("error" in each) errors.push(each.error);
      else found.push(each.name);
      if (found.length === 1)
        for (const name of await readdir(path)) await rm(join(path, name), { recursive: true });
    }
    expect(found).toHaveLength(1);
    expect(errors).toEqual(
      Array(3 + HOSTILE.length).fill(expect.objectContaining({ code: "E_NO_REPOSITORY" })),
    );
    const gone = { code: "E_NO_REPOSITORY" };
    await expect(own.repository.pointNames("guest")).rejects.toMatchObject(gone);
    await expect(own.repository.reading("guest", async () => 1)).rejects.toMatchObject(gone);
  });

  it("names a link, tables that can't be read, and who else can write there, and shows all others", async () => {
    await using copy = await chain.copy();
    await symlink("guest", join(copy.repository.path, "linked"));
    await chmod(copy.repository.path, 0o777);
    const cut = domain("guest").points.at(-1)?.id ?? "";
    await truncate(join(copy.repository.pointFolder("guest", cut), "vda.qcow2"), 1000);
    const seen = await nbdpull("report", copy.repository.path, "--json");
    expect(seen.code).toBe(3);
    const [repository] = (seen.json() as ReportDocument).repositories;
    expect(repository?.failed).toMatchObject([{ domain: "linked", error: { code: "E_LINK" } }]);
    const guest = repository?.domains.find(({ name }) => name === "guest");
    expect(guest?.maps[0]?.unreadable).toMatchObject([{ point: cut }]);
    expect(seen.stderr).toContain(`warning: guest: the tables of disk vda of point ${cut} can't be read: `);
    expect(repository?.stranger).toMatch(/^everybody can write to /);
    expect(repository?.domains).toHaveLength(4 + HOSTILE.length);
  });
});

describeWith([CHROMIUM], "the page in Chromium", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await startBrowser();
  });
  afterAll(async () => {
    await browser?.close();
  });

  async function show(
    colorScheme: "light" | "dark",
    viewport: { width: number; height: number },
    use: (page: Page) => Promise<void>,
  ): Promise<void> {
    const context = await browser.newContext({ colorScheme, viewport });
    const page = await context.newPage();
    const seen: string[] = [];
    page.on("request", (request) => seen.push(request.url()));
    page.on("dialog", (dialog) => seen.push(dialog.message()));
    page.on("console", (message) => seen.push(message.text()));
    page.on("pageerror", (error) => seen.push(error.message));
    const url = pathToFileURL(html).href;
    await page.goto(url);
    await use(page);
    // Neither a request nor a script, a dialog or a complaint.
    expect(seen).toEqual([url]);
    await context.close();
  }

  const wide = { width: 1200, height: 900 };
  const phone = { width: 390, height: 844 };
  it.each([
    ["light", "wide", wide, "rgb(255, 255, 255)"],
    ["dark", "wide", wide, "rgb(13, 17, 23)"],
    ["light", "phone", phone, "rgb(255, 255, 255)"],
    ["dark", "phone", phone, "rgb(13, 17, 23)"],
  ] as const)(
    "%s and %s: readable by all, no wider than the screen",
    async (scheme, name, size, background) => {
      await show(scheme, size, async (page) => {
        if (pictures !== undefined) {
          await page.screenshot({ path: join(pictures, `report-${scheme}-${name}.png`), fullPage: true });
        }
        await page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true");
        const colour = await page.evaluate("getComputedStyle(document.body).backgroundColor");
        expect(colour).toBe(background);
        expect(await page.evaluate("document.documentElement.scrollWidth")).toBeLessThanOrEqual(size.width);
        await page.evaluate(axe.source);
        const { violations } = (await page.evaluate("axe.run()")) as axe.AxeResults;
        expect(violations.map(({ id, nodes }) => [id, nodes[0]?.html, nodes[0]?.failureSummary])).toEqual([]);
      });
    },
  );

  it("shows hostile names as they are, and none of them does anything", async () => {
    await show("light", wide, async (page) => {
      expect(await page.title()).toBe("Backups: 7 domains, 3 need attention, 1 can't be read");
      expect(await page.locator("script, img, iframe, object, link, form").count()).toBe(0);
      const headings = await page.locator("section.domain h3").allTextContents();
      expect(headings.join("\n")).toContain("<script>alert(1)</script>");
      expect(headings.join("\n")).toContain("\"><img src=x onerror='alert(2)'>");
      expect(headings.join("\n")).toContain("a&amp;\\u{202e}b");
      // Were there a script all the same, it could reach nothing.
      const policy = await page.locator("meta[http-equiv=Content-Security-Policy]").getAttribute("content");
      expect(policy).toContain("default-src 'none'");
    });
  });

  it("is walked through by keyboard: past the head, to a domain, into its tables", async () => {
    await show("light", wide, async (page) => {
      await page.keyboard.press("Tab");
      expect(await page.locator(":focus").textContent()).toBe("Skip to the overview");
      await page.keyboard.press("Enter");
      expect(page.url()).toMatch(/#overview$/);
      await page.keyboard.press("Tab");
      expect(await page.locator(":focus").getAttribute("aria-label")).toBe("Overview of all domains");
      const table = page.locator("details", { hasText: "Table of points" }).first();
      await table.locator("summary").focus();
      await page.keyboard.press("Enter");
      expect(await table.locator("table").isVisible()).toBe(true);
    });
  });
});
