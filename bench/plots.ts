/** Result files as pictures: SVG, drawn by ECharts on the server, so without a browser. */

import { BarChart, CustomChart, type CustomSeriesOption } from "echarts/charts";
import { GridComponent, LegendComponent, MarkLineComponent, TitleComponent } from "echarts/components";
import * as echarts from "echarts/core";
import { SVGRenderer } from "echarts/renderers";
import { type JudgedTarget, judgeTargets } from "./report.js";
import { type BenchResult, valuesOf, type WorkloadResult } from "./result.js";
import { type Spread, spreadOf } from "./statistics.js";

echarts.use([
  BarChart,
  CustomChart,
  GridComponent,
  LegendComponent,
  MarkLineComponent,
  TitleComponent,
  SVGRenderer,
]);

const WIDTH = 860;
const BAR_HEIGHT = 34;
/** Colours that hold on a light page and on a dark one. */
const WALL = "#4c8dd6";
const CPU = "#e0913a";
const SERVER = "#8f9aa8";
const GOOD = "#3fa66a";
const BAD = "#d2605a";
/** Approximate width of a letter in pixels; text can't be measured without a browser. */
const LETTER_WIDTH = 6.9;
/** Of a row's height, what its bars leave free. */
const GAP = 0.24;
/** Stands for the colour of the page's text: see {@link forBothThemes}. */
const INK = "#010203";

/**
 * Wall and CPU time of each contender in a workload: medians, with a line from the fastest to the slowest
 * run.
 */
export function workloadPlot(workload: WorkloadResult): string {
  const measured = workload.contenders.filter(({ runs }) => runs.length > 0);
  const series = (name: string, metric: "wall" | "cpu" | "server", color: string) => [
    {
      type: "bar" as const,
      name,
      itemStyle: { color },
      barGap: 0,
      barCategoryGap: `${GAP * 100}%`,
      data: measured.map((contender) => spreadOf(valuesOf(contender, metric)).median),
    },
  ];
  const wall = measured.map((contender) => spreadOf(valuesOf(contender, "wall")));
  return draw(measured.length * BAR_HEIGHT + 90, {
    title: { text: workload.title, textStyle: { color: INK, fontSize: 14 }, left: 0 },
    legend: { right: 0, top: 22, textStyle: { color: INK }, data: ["wall s", "CPU s", "server CPU s"] },
    grid: gridFor(
      measured.map(({ name }) => name),
      50,
    ),
    xAxis: valueAxis(),
    yAxis: nameAxis(measured.map(({ name }) => name)),
    series: [
      ...series("wall s", "wall", WALL),
      ...series("CPU s", "cpu", CPU),
      ...series("server CPU s", "server", SERVER),
      // The first of three bars.
      whiskers(wall, -(1 - GAP) / 3),
    ],
  });
}

/** All targets that are ratios, each in parts of what it allows: up to 1 it is met. */
export function targetsPlot(result: Pick<BenchResult, "workloads">): string {
  const judged = judgeTargets(result).filter(
    ({ target, value }) => target.against !== undefined && value !== undefined,
  );
  const values = judged.map(({ target, value }) => shareOf(value as Spread, target.atMost));
  return draw(judged.length * 24 + 90, {
    title: {
      text: "Targets: time against the peer, in parts of what the target allows",
      textStyle: { color: INK, fontSize: 14 },
      left: 0,
    },
    grid: gridFor(judged.map(targetName), 40),
    xAxis: valueAxis(),
    yAxis: nameAxis(judged.map(targetName)),
    series: [
      {
        type: "bar",
        barWidth: "60%",
        data: values.map(({ median }) => ({
          value: median,
          itemStyle: { color: median <= 1 ? GOOD : BAD },
        })),
        markLine: {
          symbol: "none",
          silent: true,
          label: { show: false },
          lineStyle: { color: INK, type: "solid", width: 1 },
          data: [{ xAxis: 1 }],
        },
      },
      whiskers(values, 0),
    ],
  });
}

function targetName({ workload, target }: JudgedTarget): string {
  const metric = target.metric === "cpu" ? ", CPU" : "";
  return `${workload}${metric}: ${target.contender} / ${target.against ?? ""} ≤ ${target.atMost.toFixed(2)}`;
}

function shareOf({ count, median, min, max }: Spread, whole: number): Spread {
  return { count, median: median / whole, min: min / whole, max: max / whole };
}

function gridFor(names: readonly string[], top: number) {
  const longest = Math.max(...names.map(({ length }) => length), 0);
  return { left: longest * LETTER_WIDTH + 12, right: 24, top, bottom: 24, outerBoundsMode: "none" as const };
}

function valueAxis() {
  return {
    type: "value" as const,
    axisLabel: { color: INK },
    splitLine: { lineStyle: { color: INK, opacity: 0.15 } },
  };
}

function nameAxis(names: readonly string[]) {
  return {
    type: "category" as const,
    data: [...names],
    // Otherwise the first is the lowest.
    inverse: true,
    axisLabel: { color: INK, interval: 0 },
    axisLine: { lineStyle: { color: INK } },
    axisTick: { show: false },
  };
}

/** A thin line from the smallest to the largest value of each row, `shift` rows below its middle. */
function whiskers(spreads: readonly Spread[], shift: number): CustomSeriesOption {
  return {
    type: "custom",
    silent: true,
    data: spreads.map(({ min, max }, row) => [min, max, row]),
    encode: { x: [0, 1], y: 2 },
    renderItem: (_, api) => {
      const row = api.value(2);
      const [from = 0, middle = 0] = api.coord([api.value(0), row]);
      const [to = 0] = api.coord([api.value(1), row]);
      const rowHeight = (api.size?.([0, 1]) as number[] | undefined)?.[1] ?? 0;
      const y = middle + shift * rowHeight;
      return {
        type: "line",
        shape: { x1: from, y1: y, x2: to, y2: y },
        style: { stroke: INK, lineWidth: 2 },
      };
    },
    z: 10,
  };
}

function draw(height: number, option: echarts.EChartsCoreOption): string {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: WIDTH, height });
  try {
    chart.setOption({
      animation: false,
      textStyle: { fontFamily: "system-ui, sans-serif" },
      ...option,
    });
    return forBothThemes(chart.renderToSVGString());
  } finally {
    chart.dispose();
  }
}

/** Text and lines take the colour that goes with the reader's theme; ECharts itself knows one colour only. */
function forBothThemes(svg: string): string {
  const style = "<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#d1d7e0}}</style>";
  return svg.replaceAll(INK, "currentColor").replace(/(<svg[^>]*>)/, `$1${style}`);
}
