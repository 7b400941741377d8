/**
 * The report as one page of HTML that needs nothing else: no script, no request, styles and charts inside.
 * Preact escapes every text and attribute; only charts and the style are put in as they are, and no text in
 * them is anybody else's.
 *
 * Read this file first, then domain.tsx (what is told of a domain), charts.ts and style.ts.
 */

import { renderToString } from "preact-render-to-string";
import type { DomainState } from "../../src/backup/report/domain-facts.js";
import type { ReportedDomain } from "../../src/backup/report/repository-facts.js";
import { titleOf } from "../domain-title.js";
import type { ReportDocument, RepositoryFacts } from "../report-document.js";
import { durationText } from "../times.js";
import { version } from "../version.js";
import { DomainSection, State } from "./domain.js";
import { Amount, Name, Rate, Scroll, Time } from "./parts.js";
import { STYLE } from "./style.js";

/**
 * Nothing may be loaded, run or sent. ECharts' SVG has style attributes, so styles inside the page are
 * allowed.
 */
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

export function reportPage(report: ReportDocument): string {
  const { repositories, totals, createdAt } = report;
  const troubled = repositories.flatMap(({ domains }) => domains).filter(({ state }) => state !== "good");
  const unread = repositories.reduce((sum, { error, failed }) => sum + failed.length + (error ? 1 : 0), 0);
  const title = `Backups: ${headline(totals.domains, troubled.length, unread)}`;
  const page = (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="generator" content="nbdpull report" />
        <meta http-equiv="Content-Security-Policy" content={POLICY} />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="referrer" content="no-referrer" />
        <title>{title}</title>
        <style dangerouslySetInnerHTML={{ __html: STYLE }} />
      </head>
      <body>
        <a class="skip" href="#overview">
          Skip to the overview
        </a>
        <header>
          <h1>{title}</h1>
          <p class="quiet">
            Made <Time iso={createdAt} />, times in {timeZone()}. A domain is late when its last good point is
            older than {durationText(report.maxAgeSeconds)}.
          </p>
        </header>
        <main>
          <Overview report={report} />
          {repositories.map((repository, i) => (
            <Repository key={i} repository={repository} index={i} report={report} />
          ))}
        </main>
        <footer>
          <p>
            Whether a point can be restored follows from manifests, from missing files, and from the damage
            that <code>nbdpull verify</code> has found: damage that no verify has seen isn't known here.
            Points merged by a prune count as written on the day of the point that took them over.
          </p>
          <p>nbdpull {version()}</p>
        </footer>
      </body>
    </html>
  );
  return `<!DOCTYPE html>${renderToString(page)}\n`;
}

function headline(domains: number, troubled: number, unread: number): string {
  const count = domains === 1 ? "1 domain" : `${domains} domains`;
  const parts = [
    ...(troubled > 0 ? [`${troubled} ${troubled === 1 ? "needs" : "need"} attention`] : []),
    ...(unread > 0 ? [`${unread} can't be read`] : []),
  ];
  return parts.length === 0 ? `${count}, all good` : `${count}, ${parts.join(", ")}`;
}

function timeZone(): string {
  return new Intl.DateTimeFormat().resolvedOptions().timeZone;
}

const GRAVITY: readonly DomainState[] = ["lost", "damaged", "late", "good"];

function domainId(repository: number, domain: number): string {
  return `domain-${repository + 1}-${domain + 1}`;
}

function Overview({ report: { repositories, totals } }: { readonly report: ReportDocument }) {
  const isSeveral = repositories.length > 1;
  const all = repositories.flatMap(({ domains, repository }, r) =>
    domains.map((domain, i) => ({ domain, repository, id: domainId(r, i) })),
  );
  // What needs attention comes first.
  const rows = all.toSorted((a, b) => GRAVITY.indexOf(a.domain.state) - GRAVITY.indexOf(b.domain.state));
  return (
    <section aria-labelledby="overview">
      <h2 id="overview" tabIndex={-1}>
        Overview
      </h2>
      <Scroll label="Overview of all domains">
        <table>
          <caption>Every domain, and how well it is protected</caption>
          <thead>
            <tr>
              <th scope="col">Domain</th>
              <th scope="col">State</th>
              <th scope="col" class="number">
                Age
              </th>
              <th scope="col">Last good point</th>
              <th scope="col" class="number">
                Size
              </th>
              <th scope="col" class="number">
                Stored
              </th>
              <th scope="col" class="number">
                Growth a day
              </th>
              <th scope="col" class="number">
                Changed a day
              </th>
              <th scope="col" class="number">
                Chain
              </th>
              <th scope="col" class="number">
                Points
              </th>
              {isSeveral && <th scope="col">Repository</th>}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <OverviewRow key={row.id} {...row} isSeveral={isSeveral} />
            ))}
          </tbody>
          <tfoot>
            <tr>
              <th scope="row">Together</th>
              <td />
              <td />
              <td />
              <Amount bytes={totals.virtualBytes} />
              <Amount bytes={totals.storedBytes} />
              <Rate bytes={totals.growthPerDay} />
              <Rate bytes={totals.changedPerDay} />
              <td />
              <td class="number">{totals.points}</td>
              {isSeveral && <td />}
            </tr>
          </tfoot>
        </table>
      </Scroll>
    </section>
  );
}

interface OverviewRowProps {
  readonly domain: ReportedDomain;
  readonly repository: string;
  readonly id: string;
  readonly isSeveral: boolean;
}

function OverviewRow({ domain, repository, id, isSeveral }: OverviewRowProps) {
  return (
    <tr>
      <th scope="row">
        <a href={`#${id}`}>
          <Name text={titleOf(domain)} />
        </a>
      </th>
      <td>
        <State state={domain.state} />
      </td>
      <td class="number">{domain.ageSeconds === null ? "none" : durationText(domain.ageSeconds)}</td>
      <td>{domain.lastGood ? <Time iso={domain.lastGood.createdAt} /> : "none"}</td>
      <Amount bytes={domain.virtualBytes} />
      <Amount bytes={domain.storedBytes} />
      <Rate bytes={domain.growthPerDay} />
      <Rate bytes={domain.changedPerDay} />
      <td class="number">{domain.chainLength}</td>
      <td class="number">
        {domain.points.length}
        {domain.unrestorable > 0 && <span class="bad"> ({domain.unrestorable} lost)</span>}
      </td>
      {isSeveral && (
        <td>
          <Name text={repository} />
        </td>
      )}
    </tr>
  );
}

interface RepositoryProps {
  readonly repository: RepositoryFacts;
  readonly index: number;
  readonly report: ReportDocument;
}

function Repository({ repository, index, report }: RepositoryProps) {
  const { domains, failed, error, stranger } = repository;
  return (
    <section aria-labelledby={`repository-${index + 1}`}>
      <h2 id={`repository-${index + 1}`}>
        Repository <Name text={repository.repository} />
      </h2>
      {error && <Trouble title="It can't be read" text={error["message"]} />}
      {stranger !== null && <Trouble title="Others can write to it" text={stranger} />}
      {failed.map((each) => (
        <Trouble
          key={each.domain}
          title={`The folder ${each.domain} can't be read`}
          text={each.error["message"]}
        />
      ))}
      {!error && domains.length + failed.length === 0 && <p>It has no restore points yet.</p>}
      {domains.map((domain, i) => (
        <DomainSection
          key={domainId(index, i)}
          id={domainId(index, i)}
          domain={domain}
          repository={repository.repository}
          maxAgeSeconds={report.maxAgeSeconds}
        />
      ))}
    </section>
  );
}

function Trouble({ title, text }: { readonly title: string; readonly text: unknown }) {
  return (
    <p class="trouble">
      <strong class="bad">
        <Name text={title} />:
      </strong>{" "}
      <Name text={String(text)} />
    </p>
  );
}
