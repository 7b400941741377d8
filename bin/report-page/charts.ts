/**
 * The charts of the report: SVG, drawn by ECharts without a browser. No text in them comes from a repository.
 */

import { CustomChart, type CustomSeriesOption, LineChart, ScatterChart } from "echarts/charts";
import { GridComponent } from "echarts/components";
import * as echarts from "echarts/core";
import { SVGRenderer } from "echarts/renderers";
import type { ChangedDay, ChangeMap } from "../../src/backup/report/change-map.js";
import type { PointFacts } from "../../src/backup/report/domain-facts.js";
import { human } from "../output.js";

echarts.use([CustomChart, LineChart, ScatterChart, GridComponent, SVGRenderer]);

/** Pixels; the page scales a chart to its own width. */
const WIDTH = 760;
const TIMELINE_HEIGHT = 230;
const DAY_HEIGHT = 15;
/** Most points that the timeline shows; the newest. */
const MOST_POINTS = 400;
const KiB = 1024;

/** Colours that stand for those of the page, which knows whether it is light or dark. */
const INK = "#010203";
const GRID = "#010204";
const FULL = "#010205";
const INCREMENT = "#010206";
const BROKEN = "#010207";
const TOTAL = "#010208";
/** Of cells, by the part of them that was written: the first is the least. */
const LEVELS = ["#010209", "#01020a", "#01020b", "#01020c"] as const;
/** Up to which part of a cell each of them goes. */
const LEVEL_ENDS = [0.01, 0.1, 0.5, 1] as const;
const ON_PAGE: Readonly<Record<string, string>> = {
  [INK]: "currentColor",
  [GRID]: "var(--line)",
  [FULL]: "var(--full)",
  [INCREMENT]: "var(--increment)",
  [BROKEN]: "var(--bad)",
  [TOTAL]: "var(--total)",
  [LEVELS[0]]: "var(--map-1)",
  [LEVELS[1]]: "var(--map-2)",
  [LEVELS[2]]: "var(--map-3)",
  [LEVELS[3]]: "var(--map-4)",
};

/** What each point stored, and all of them together. */
export function timelineChart(points: readonly PointFacts[]): string {
  let total = 0;
  const all = points.map((point) => {
    total += point.storedBytes;
    return { point, total };
  });
  const shown = all.slice(-MOST_POINTS);
  const placed = (stored: number, { createdAt }: PointFacts): [number, number] => [
    Date.parse(createdAt),
    // A logarithmic axis has no zero.
    Math.max(KiB, stored),
  ];
  const dots = (color: string, symbol: string, is: (point: PointFacts) => boolean) => ({
    type: "scatter" as const,
    symbol,
    symbolSize: 10,
    itemStyle: { color },
    data: shown.filter(({ point }) => is(point)).map(({ point }) => placed(point.storedBytes, point)),
  });
  return draw(TIMELINE_HEIGHT, {
    grid: { left: 76, right: 24, top: 12, bottom: 28, outerBoundsMode: "none" },
    xAxis: {
      type: "time",
      axisLabel: { color: INK, hideOverlap: true },
      axisLine: { lineStyle: { color: INK } },
      splitLine: { show: false },
    },
    yAxis: {
      type: "log",
      logBase: KiB,
      min: KiB,
      axisLabel: { color: INK, formatter: (bytes: number) => human(bytes) },
      splitLine: { lineStyle: { color: GRID } },
    },
    series: [
      {
        type: "line",
        step: "end",
        symbol: "none",
        lineStyle: { color: TOTAL, width: 2 },
        itemStyle: { color: TOTAL },
        data: shown.map((each) => placed(each.total, each.point)),
      },
      dots(FULL, "rect", ({ restorable, level }) => restorable && level === "full"),
      dots(INCREMENT, "circle", ({ restorable, level }) => restorable && level !== "full"),
      dots(BROKEN, "diamond", ({ restorable }) => !restorable),
    ],
  });
}

/** A row for each day, and in it the places of the disk that were written, the darker the more of each. */
export function changeMapChart({ days, cellBytes, virtualSize }: ChangeMap): string {
  return draw(days.length * DAY_HEIGHT + 44, {
    grid: { left: 84, right: 24, top: 8, bottom: 28, outerBoundsMode: "none" },
    xAxis: {
      type: "value",
      min: 0,
      max: Math.max(1, virtualSize),
      interval: Math.max(1, virtualSize) / 4,
      axisLabel: { color: INK, formatter: (bytes: number) => human(Math.round(bytes)) },
      splitLine: { lineStyle: { color: GRID } },
    },
    yAxis: {
      type: "category",
      inverse: true,
      data: days.map(({ day }) => day),
      axisLabel: { color: INK, fontSize: 11, interval: 0 },
      axisLine: { lineStyle: { color: INK } },
      axisTick: { show: false },
    },
    series: [
      cells(fullRows(days, virtualSize), { fill: "none", stroke: FULL }),
      ...LEVELS.map((color, level) =>
        cells(cellsOf(days, { cellBytes, virtualSize }, level), { fill: color, stroke: "none" }),
      ),
    ],
  });
}

/** A stretch of a row: the row, and where on the disk it begins and ends. */
type Stretch = readonly [row: number, from: number, to: number];

function fullRows(days: readonly ChangedDay[], virtualSize: number): Stretch[] {
  return days.flatMap(({ full }, row) => (full ? [[row, 0, virtualSize] as const] : []));
}

/** Neighbouring cells of one level as one stretch. */
function cellsOf(
  days: readonly ChangedDay[],
  { cellBytes, virtualSize }: Pick<ChangeMap, "cellBytes" | "virtualSize">,
  level: number,
): Stretch[] {
  return days.flatMap((day, row) => {
    const stretches: [number, number, number][] = [];
    for (const [i, bytes] of day.cells.entries()) {
      const size = Math.min(cellBytes, virtualSize - i * cellBytes);
      if (bytes === 0 || levelOf(bytes / size) !== level) continue;
      const from = i * cellBytes;
      const last = stretches.at(-1);
      if (last && last[2] === from) last[2] = from + size;
      else stretches.push([row, from, from + size]);
    }
    return stretches;
  });
}

function levelOf(part: number): number {
  const level = LEVEL_ENDS.findIndex((end) => part <= end);
  return level < 0 ? LEVEL_ENDS.length - 1 : level;
}

function cells(
  data: readonly Stretch[],
  style: { readonly fill: string; readonly stroke: string },
): CustomSeriesOption {
  return {
    type: "custom",
    silent: true,
    data: data.map((stretch) => [...stretch]),
    encode: { y: 0, x: [1, 2] },
    renderItem: (_, api) => {
      const row = api.value(0);
      const [from = 0, middle = 0] = api.coord([api.value(1), row]);
      const [to = 0] = api.coord([api.value(2), row]);
      const height = DAY_HEIGHT - 3;
      const shape = { x: from, y: middle - height / 2, width: Math.max(1, to - from), height };
      return { type: "rect", shape, style: { ...style, lineWidth: 1 } };
    },
  };
}

function draw(height: number, option: echarts.EChartsCoreOption): string {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: WIDTH, height });
  try {
    chart.setOption({ animation: false, textStyle: { fontFamily: "system-ui, sans-serif" }, ...option });
    // Without the meta data and the rules of ECharts' own script, which the page doesn't have.
    return chart
      .renderToSVGString({ useViewBox: true })
      .replaceAll(/ ecmeta_[a-z_]+="[^"]*"| class="[^"]*"/g, "")
      .replaceAll(/<style>.*?<\/style>/gs, "")
      .replaceAll(/#0102[0-9a-f]{2}/g, (colour) => ON_PAGE[colour] ?? "currentColor");
  } finally {
    chart.dispose();
  }
}
