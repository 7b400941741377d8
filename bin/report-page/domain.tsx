/** What the page tells of a domain. */
import { printable } from "../../src/backup/base/printable.js";
import { shellWord } from "../../src/backup/base/shell-word.js";
import type { ChangeMap } from "../../src/backup/report/change-map.js";
import type { DomainState, PointFacts } from "../../src/backup/report/domain-facts.js";
import type { ReportedDomain } from "../../src/backup/report/repository-facts.js";
import { titleOf } from "../domain-title.js";
import { human } from "../output.js";
import { durationText } from "../times.js";
import { changeMapChart, timelineChart } from "./charts.js";
import { Amount, Name, rateText, Scroll, Time } from "./parts.js";

/** Rows of a table, and damages, that are listed at most; `--json` has all. */
const MOST_ROWS = 200;
const MOST_DAMAGES = 20;
/** Points that a damage names. */
const NAMED = 5;

const STATES: Readonly<Record<DomainState, { readonly text: string; readonly look: string }>> = {
  good: { text: "✓ good", look: "good" },
  late: { text: "⚠ late", look: "late" },
  damaged: { text: "✖ damaged", look: "bad" },
  lost: { text: "✖ lost", look: "bad" },
};

export function State({ state }: { readonly state: DomainState }) {
  const { text, look } = STATES[state];
  return <span class={`state ${look}`}>{text}</span>;
}

interface DomainProps {
  readonly id: string;
  readonly domain: ReportedDomain;
  readonly repository: string;
  readonly maxAgeSeconds: number;
}

export function DomainSection({ id, domain, repository, maxAgeSeconds }: DomainProps) {
  const { points, maps, lastGood, ageSeconds } = domain;
  const title = titleOf(domain);
  return (
    <section class="domain" aria-labelledby={id}>
      <h3 id={id}>
        <Name text={title} /> <State state={domain.state} />
      </h3>
      <dl>
        <Fact name="Last good point">{lastGood ? <Time iso={lastGood.createdAt} /> : "none"}</Fact>
        <Fact name="Age, of what was promised">
          {ageSeconds === null ? "–" : `${durationText(ageSeconds)} of ${durationText(maxAgeSeconds)}`}
          {domain.isLate && <span class="late"> (late)</span>}
        </Fact>
        <Fact name="Size of its disks">{human(domain.virtualBytes)}</Fact>
        <Fact name="Stored, all points">{human(domain.storedBytes)}</Fact>
        <Fact name="Growth a day">{rateText(domain.growthPerDay)}</Fact>
        <Fact name="Changed a day">{rateText(domain.changedPerDay)}</Fact>
        <Fact name="Chain of the last good point">
          {domain.chainLength === 1 ? "1 image" : `${domain.chainLength} images`}
        </Fact>
        <Fact name="Points that can be restored">
          {points.length - domain.unrestorable} of {points.length}
        </Fact>
        {domain.uuid !== null && <Fact name="UUID">{domain.uuid}</Fact>}
      </dl>
      {ageSeconds !== null && ageSeconds < 0 && (
        <p class="trouble">
          Its last good point was made later than now: a clock was wrong then, or is now (
          <code>nbdpull points --fix-clock</code>).
        </p>
      )}
      <Damages domain={domain} repository={repository} />
      {points.length > 1 && <Timeline points={points} title={title} />}
      <Points points={points} title={title} />
      {maps.map((map) => (
        <Changes key={map.disk} map={map} title={title} />
      ))}
    </section>
  );
}

function Fact({ name, children }: { readonly name: string; readonly children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** Each damage once, with the points that can't be restored because of it. */
function Damages({ domain, repository }: Pick<DomainProps, "domain" | "repository">) {
  const causes = new Map<string, { readonly what: string; readonly points: string[] }>();
  for (const { id, obstacles } of domain.points) {
    for (const { point, disk, message } of obstacles) {
      const what = `${disk === undefined ? "" : `${disk} of `}point ${point}: ${message}`;
      const cause = causes.get(what) ?? { what, points: [] };
      causes.set(what, cause);
      if (cause.points.at(-1) !== id) cause.points.push(id);
    }
  }
  if (causes.size === 0) return null;
  const all = [...causes.values()];
  return (
    <div class="trouble">
      <h4>Damage, and what follows from it</h4>
      <ul>
        {all.slice(0, MOST_DAMAGES).map(({ what, points }) => (
          <li key={what}>
            <Name text={what} />. So {listed(points)} can't be restored.
          </li>
        ))}
      </ul>
      {all.length > MOST_DAMAGES && <p>And {all.length - MOST_DAMAGES} more.</p>}
      <p>
        This mends what can be mended: <code>{`nbdpull repair ${shellWord(repository)}`}</code>
      </p>
    </div>
  );
}

function listed(points: readonly string[]): string {
  const newest = points.toReversed();
  const more = newest.length > NAMED ? `, and ${newest.length - NAMED} older` : "";
  return `${newest.length === 1 ? "point" : "points"} ${newest.slice(0, NAMED).join(", ")}${more}`;
}

interface PointsProps {
  readonly points: readonly PointFacts[];
  readonly title: string;
}

function Timeline({ points, title }: PointsProps) {
  return (
    <>
      <h4>Timeline</h4>
      <Chart
        label={`Timeline of ${points.length} points of ${title}. The table of points has the same figures.`}
        svg={timelineChart(points)}
        caption={
          <>
            What each point stored, on a logarithmic scale: <Sign of="full" text="■ full copy" />
            <Sign of="increment" text="● increment" />
            <Sign of="bad" text="◆ can't be restored" />
            <Sign of="total" text="━ all points together" />
          </>
        }
      />
    </>
  );
}

function Sign({ of: look, text }: { readonly of: string; readonly text: string }) {
  return (
    <span class="sign" style={`color: var(--${look})`}>
      {text}
    </span>
  );
}

function Points({ points, title }: PointsProps) {
  const newest = points.slice(-MOST_ROWS).toReversed();
  return (
    <details>
      <summary>
        Table of points
        {points.length > newest.length && ` (the newest ${newest.length} of ${points.length})`}
      </summary>
      <Scroll label={`Points of ${title}`}>
        <table>
          <caption>
            Points of <Name text={title} />, newest first
          </caption>
          <thead>
            <tr>
              <th scope="col">Made</th>
              <th scope="col">Level</th>
              <th scope="col" class="number">
                Changed
              </th>
              <th scope="col" class="number">
                Stored
              </th>
              <th scope="col" class="number">
                Chain
              </th>
              <th scope="col">Can be restored</th>
              <th scope="col">Id</th>
            </tr>
          </thead>
          <tbody>
            {newest.map((point) => (
              <tr key={point.id}>
                <td>
                  <Time iso={point.createdAt} />
                </td>
                <td>{point.level ?? "unknown"}</td>
                <td class="number">{point.changedBytes === null ? "–" : human(point.changedBytes)}</td>
                <Amount bytes={point.storedBytes} />
                <td class="number">{point.chainLength}</td>
                <td>{point.restorable ? "yes" : <span class="bad">no</span>}</td>
                <td>{point.id}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scroll>
    </details>
  );
}

function Changes({ map, title }: { readonly map: ChangeMap; readonly title: string }) {
  const { disk, days, leftOut, unreadable, cellBytes } = map;
  const hasChanges = days.some(({ changedBytes }) => changedBytes > 0);
  if (!hasChanges && unreadable.length === 0) return null;
  return (
    <>
      <h4>Changes of disk {disk}</h4>
      <Chart
        label={`Map of what was written where on disk ${disk} of ${title}, a row for each of ${days.length} days. The table of days has their sums.`}
        svg={changeMapChart(map)}
        caption={
          <>
            A row is a day, from left to right is the disk, {human(cellBytes)} a cell. Written of a cell:
            {["up to 1 %", "up to 10 %", "up to 50 %", "more"].map((text, i) => (
              <span key={text}>
                <span class="key" style={`background: var(--map-${i + 1})`} /> {text}
              </span>
            ))}
            <span class="key" style="border-color: var(--full)" /> a full copy: what was changed isn't known.
            {leftOut > 0 && ` ${leftOut} older points are not shown.`}
          </>
        }
      />
      {unreadable.map(({ point, message }) => (
        <p key={point} class="trouble">
          The tables of point {point} can't be read: <Name text={message} />. Verify it.
        </p>
      ))}
      <details>
        <summary>Table of days of disk {disk}</summary>
        <Scroll label={`What was changed on disk ${disk} of ${title}`}>
          <table>
            <caption>
              What was changed on disk {disk} of <Name text={title} />, newest first
            </caption>
            <thead>
              <tr>
                <th scope="col">Day</th>
                <th scope="col" class="number">
                  Changed
                </th>
                <th scope="col">Full copy</th>
              </tr>
            </thead>
            <tbody>
              {days.toReversed().map(({ day, changedBytes, full }) => (
                <tr key={day}>
                  <td>{day}</td>
                  <Amount bytes={changedBytes} />
                  <td>{full ? "yes" : "no"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      </details>
    </>
  );
}

interface ChartProps {
  readonly label: string;
  readonly svg: string;
  readonly caption: preact.ComponentChildren;
}

function Chart({ label, svg, caption }: ChartProps) {
  return (
    <figure>
      <Scroll label={label}>
        <div role="img" aria-label={printable(label)} dangerouslySetInnerHTML={{ __html: svg }} />
      </Scroll>
      <figcaption>{caption}</figcaption>
    </figure>
  );
}
