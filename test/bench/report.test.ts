import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compare, comparisonReport, differences } from "../../bench/comparison.js";
import { inShort, readmeSentence } from "../../bench/in-short.js";
import { startedIn } from "../../bench/outside.js";
import { combined, judgedToday } from "../../bench/page.js";
import { PROJECT } from "../../bench/paths.js";
import { targetsPlot, workloadPlot } from "../../bench/plots.js";
import { fillMarkers, madeOfResults, publish, writePages } from "../../bench/publication.js";
import { circumstances, judgeTargets, roundsOf, targetsReport, workloadReport } from "../../bench/report.js";
import type { RunResult, Target, WorkloadResult } from "../../bench/result.js";
import { readResult } from "../../bench/result-file.js";
import { SECTIONS } from "../../bench/sections.js";
import { WORKLOADS } from "../../bench/workloads/index.js";
import { contenderOf, resultOf, workloadOf } from "./results.js";

const theirs = contenderOf("theirs", 2, 4, 3, 3, 3);
const ours = contenderOf("ours", 1, 2, 1.5, 1.5, 1.5);

describe("the report of a workload", () => {
  it("shows medians, and ratios to the reference with their spread", () => {
    const report = workloadReport(workloadOf([theirs, ours]));
    expect(report).toContain("| theirs | 3.00 | 1 |  | 1.50 | 1 |");
    expect(report).toContain("| ours | 1.50 | 0.50 (0.50–0.50) | faster | 0.75 | 0.50 (0.50–0.50) |");
  });

  it("reports no difference unless every round saw it", () => {
    expect(workloadReport(workloadOf([theirs, contenderOf("ours", 1, 2, 3.1, 1, 1)]))).toContain(
      "no difference",
    );
  });

  it("names contenders that are missing or have failed, with the reason", () => {
    const report = workloadReport(
      workloadOf([
        theirs,
        { name: "absent", state: "missing", reason: "absent: apt-get install absent", runs: [] },
        { name: "broken", state: "failed", reason: "exit code 1", runs: [] },
      ]),
    );
    expect(report).toContain("absent is missing: absent: apt-get install absent");
    expect(report).toContain("broken is failed: exit code 1");
  });

  it("tells where the time limit left room for fewer rounds", () => {
    const report = workloadReport(workloadOf([theirs, ours], { rounds: 2 }));
    expect(report).toContain("There was time for 2 of the rounds only.");
    expect(workloadReport(workloadOf([theirs, ours]))).not.toContain("There was time");
    const none = workloadOf([contenderOf("theirs"), contenderOf("ours")], { rounds: 0 });
    expect(workloadReport(none)).toContain("There was no time for a whole round.");
    expect(workloadReport(none)).not.toContain("|");
  });

  it("shows no ratios if the reference has no figures", () => {
    expect(workloadReport(workloadOf([ours]))).toContain("| ours | 1.50 | – |  | 0.75 | – |");
  });

  it("shows requests and round trips if they were counted", () => {
    const traffic = {
      connections: 1,
      options: 3,
      reads: 10,
      readBytes: 4096,
      blockStatus: 2,
      others: 1,
      roundTrips: 7,
    };
    expect(workloadReport(workloadOf([{ ...theirs, traffic }]))).toMatch(/\| 13 \| 7 \|$/m);
  });
});

describe("the report of a workload that backs domains up", () => {
  it("shows calls to libvirt and processes, and the time for each of several jobs", () => {
    const outside = { libvirtCalls: 39, libvirtConnections: 1, processes: 2, jobs: 20 };
    const report = workloadReport(workloadOf([{ ...theirs, outside }, ours]));
    expect(report).toContain("| calls to libvirt | processes | wall s for each of 20 |");
    expect(report).toMatch(/^\| theirs \|.*\| 39 \| 2 \| 0\.15 \|$/m);
    expect(report).toMatch(/^\| ours \|.*\| – \| – \| 0\.075 \|$/m);
  });

  it("counts programs that were started, and none that was only looked for", () => {
    const said = [
      `7424  execve("/usr/bin/node", ["node"], 0x7ffd /* 35 vars */) = 0`,
      `7480  execve("/usr/local/bin/touch", ["touch"], 0x2af /* 35 vars */) = -1 ENOENT (No such file or directory)`,
      `7480  execve("/usr/bin/touch", ["touch"], 0x2af /* 35 vars */ <unfinished ...>`,
      `7480  <... execve resumed>)             = 0`,
      "",
    ];
    expect(startedIn(said.join("\n"))).toBe(2);
  });
});

describe("targets", () => {
  const judged = (atMost: number) => {
    const target = { contender: "ours", metric: "wall" as const, against: "theirs", atMost };
    return resultOf(workloadOf([theirs, contenderOf("ours", 1, 2, 2.25, 1, 2)], { targets: [target] }));
  };

  it("are judged by the pairwise ratios of all rounds", () => {
    expect(judgeTargets(judged(0.75))[0]).toMatchObject({
      standing: "met",
      value: { median: 0.5, max: 0.75 },
    });
    expect(judgeTargets(judged(0.5))[0]?.standing).toBe("undecided");
    expect(judgeTargets(judged(0.45))[0]?.standing).toBe("undecided");
    expect(judgeTargets(judged(0.2))[0]?.standing).toBe("missed");
  });

  it("are not judged if one of the two has no figures", () => {
    const target = { contender: "ours", metric: "wall" as const, against: "absent", atMost: 1 };
    const result = resultOf(workloadOf([ours], { targets: [target] }));
    expect(judgeTargets(result)[0]).toMatchObject({ standing: "not measured" });
    expect(targetsReport(result)).toContain("not measured");
  });

  it("for memory are absolute, each with its own limit, and for every run", () => {
    const [most, some] = [10, 8].map((atMost) => ({ contender: "ours", metric: "rss" as const, atMost }));
    const workloads = [
      workloadOf([ours], { targets: [most as Target] }),
      workloadOf([ours], { name: "tls", targets: [some as Target] }),
    ];
    const report = targetsReport(resultOf(...workloads));
    expect(report).toContain("| copy | ours | peak RSS MiB |  | ≤ 10 | 10 | met |");
    expect(report).toContain("| tls | ours | peak RSS MiB |  | ≤ 8 | 10 | missed |");
  });

  it("are not judged by few rounds", () => {
    const few = workloadOf([contenderOf("theirs", 2, 2), contenderOf("ours", 1, 1)], {
      targets: [
        { contender: "ours", metric: "wall", against: "theirs", atMost: 0.5 },
        { contender: "ours", metric: "rss", atMost: 128 },
      ],
    });
    expect(judgeTargets(resultOf(few)).map(({ standing }) => standing)).toEqual([
      "too few runs",
      "too few runs",
    ]);
  });

  it("without a peer are in seconds", () => {
    const target = { contender: "ours", metric: "wall" as const, atMost: 0.04 };
    const quick = contenderOf("ours", 0.041, 0.041, 0.041, 0.041, 0.042);
    expect(targetsReport(resultOf(workloadOf([quick], { targets: [target] })))).toContain(
      "| copy | ours | wall s |  | ≤ 0.040 | 0.041 (0.041–0.042) | missed |",
    );
  });

  it("that are missed by little show it", () => {
    const target = { contender: "ours", metric: "wall" as const, against: "theirs", atMost: 0.5 };
    const close = workloadOf([theirs, contenderOf("ours", 1.002, 2.004, 1.503, 1.503, 1.503)], {
      targets: [target],
    });
    expect(targetsReport(resultOf(close))).toContain("| ≤ 0.50 | 0.501 (0.501–0.501) | missed |");
  });
});

describe("what is next to a target", () => {
  const memory = (mebibytes: number) => {
    const [run] = ours.runs as [RunResult];
    const runs = [1, 1, 1, 1, mebibytes].map((most) => ({ ...run, peakRssKiB: most * 1024 }));
    return resultOf(
      workloadOf([{ ...ours, runs }], { targets: [{ contender: "ours", metric: "rss", atMost: 128 }] }),
    );
  };

  it.each([
    [128.4, "128.4 | missed"],
    [128.01, "128.01 | missed"],
    [127.9, "127.9 | met"],
    [128, "128 | met"],
    [130.2, "130 | missed"],
  ])("has as many digits as tell the side that it is on: %f MiB", (mebibytes, cells) => {
    expect(targetsReport(memory(mebibytes))).toContain(`| peak RSS MiB |  | ≤ 128 | ${cells} |`);
  });
});

describe("several results of one section", () => {
  const result = resultOf(workloadOf([theirs, ours]));

  it.each([
    ["machine", { ...result, machine: { ...result.machine, cores: 4 } }],
    ["versions", { ...result, versions: { Node: "24.0.0" } }],
    ["scale", { ...result, settings: { ...result.settings, scale: 0.1 } }],
    ["usedServers", { ...result, settings: { ...result.settings, usedServers: true } }],
  ])("are not put together if they differ in %s", (what, other) => {
    expect(() => combined([result, other])).toThrow(`another ${what}`);
  });

  it("are of all their days", () => {
    const later = { ...result, startedAt: "2026-11-22T12:00:00.000Z" };
    expect(circumstances(combined([later, result]))).toContain("20 November 2026 to 22 November 2026: ");
    expect(circumstances(combined([result, result]))).toMatch(/^20 November 2026: /);
  });
});

describe("what was measured with other targets than today's", () => {
  it("is judged by today's, and starts with any Node too", () => {
    const targets: Target[] = [{ contender: "nbdpull raw", metric: "rss", atMost: 1 }];
    const names = ["tls", "start-node-20.0.0", "start-node-24.0.0", "of no name any more"];
    const { workloads } = judgedToday(
      resultOf(...names.map((name) => workloadOf([theirs], { name, targets }))),
    );
    const [tls, start, newer, gone] = workloads.map((workload) => workload.targets);
    expect(tls).toEqual(WORKLOADS.find(({ name }) => name === "tls")?.targets);
    expect(start).toContainEqual({
      contender: "pull --help",
      metric: "wall",
      against: "node -e 0",
      atMost: 1.74,
    });
    expect(newer?.length).toBeGreaterThan(start?.length ?? 0);
    expect(gone).toEqual(targets);
  });
});

describe("what a reader is told first", () => {
  const backup = (name: string, ...seconds: number[]) => [
    contenderOf("virtnbdbackup", ...seconds.map(() => 2)),
    contenderOf(name, ...seconds),
  ];
  const full = workloadOf(backup("nbdpull backup", 1, 1, 1, 1, 1), { name: "libvirt-full" });
  const increment = workloadOf(backup("nbdpull backup", 0.5, 0.5, 0.5), { name: "libvirt-incremental" });

  it("names the rounds where they are too few to decide anything", () => {
    const few = inShort([resultOf(full, increment)]);
    expect(few).toContain("| a libvirt domain, backed up in full | virtnbdbackup | 0.50 |");
    expect(few).toContain("| an increment of it | virtnbdbackup | 0.25 (3 rounds) |");
    expect(few).toContain("Fewer than 5 rounds decide nothing");
    expect(inShort([resultOf(full)])).not.toMatch(/rounds/);
  });

  it("and the README likewise, of what there is a result of", () => {
    const sentence = (...workloads: WorkloadResult[]): string =>
      readmeSentence(resultOf(...workloads)).replaceAll(/\s+/g, " ");
    expect(sentence(full)).toBe(
      "- **It is fast.** On one machine, beside virtnbdbackup: a full backup took 0.50 of its time ([measured side by side](docs/performance.md)).",
    );
    const both = sentence(full, increment);
    expect(both).toContain(
      "a full backup took 0.50 of its time, an increment 0.25 of its time (3 rounds) and 0.25 of its processor time (",
    );
    expect(both).toMatch(/ Fewer than 5 rounds decide nothing\.$/);
    expect(sentence()).toContain("[measured side by side](docs/performance.md)");
  });
});

describe("a workload that reads at random", () => {
  it("tells how long a read takes, with an absolute target", () => {
    const [run] = ours.runs as [RunResult];
    const reads = { ...ours, runs: [2.5, 2.6, 2.6, 2.6, 2.7].map((readMs) => ({ ...run, readMs })) };
    const target = { contender: "ours", metric: "read" as const, atMost: 3 };
    const workload = workloadOf([theirs, reads], { targets: [target] });
    expect(workloadReport(workload)).toMatch(/^\| copy \|.*\| peak RSS MiB \| ms for a read \|/m);
    expect(workloadReport(workload)).toMatch(/^\| ours \|.*\| 2\.60 \(2\.50–2\.70\) \|/m);
    expect(workloadReport(workload)).toMatch(/^\| theirs \|.*\| 10 \| – \|/m);
    const report = targetsReport(resultOf(workload));
    expect(report).toContain("| copy | ours | ms for a read |  | ≤ 3.00 | 2.60 (2.50–2.70) | met |");
  });
});

describe("the circumstances", () => {
  it("name machine, versions and settings, and mention scaled sizes", () => {
    const result = resultOf();
    expect(circumstances(result)).toBe(
      "20 November 2026: 2 × Some CPU, 8 GiB, Linux 6.1; inputs and outputs on tmpfs. Medians of up to 3 interleaved runs after a warm-up. Node 20.19.0; QEMU 7.2.",
    );
    expect(circumstances({ ...result, settings: { runs: 1, scale: 0.1 } })).toContain("Sizes × 0.1");
    expect(circumstances({ ...result, lastStartedAt: "2026-11-21T00:00:00.000Z" })).toMatch(
      /^20 November 2026 to 21 November 2026: 2 ×/,
    );
    const few = workloadOf([contenderOf("theirs", 1, 2), contenderOf("ours", 1)], { name: "few" });
    expect(circumstances(resultOf(workloadOf([theirs]), few))).toContain(
      "Medians of 2 to 5 interleaved runs",
    );
    expect(circumstances(resultOf(workloadOf([theirs])))).toContain("Medians of 5 interleaved runs");
    const used = { ...result, settings: { runs: 1, scale: 1, usedServers: true } };
    expect(circumstances(used)).toContain("QEMU's server has answered one read of 8 MiB");
  });
});

describe("two results side by side", () => {
  const before = resultOf(workloadOf([theirs, ours]));

  it("show the change, and whether it is significant", () => {
    const after = resultOf(workloadOf([theirs, contenderOf("ours", 0.5, 0.6, 0.7, 0.6, 0.6)]));
    expect(compare(before, after, "wall").map(({ contender, verdict }) => [contender, verdict])).toEqual([
      ["theirs", "none"],
      ["ours", "less"],
    ]);
    expect(comparisonReport(before, after, "wall")).toContain(
      "| copy | ours | 1.50 (1.00–2.00) | 0.60 (0.50–0.70) | -60 % | less | 0.50 (0.50–0.50) | 0.20 (0.15–0.25) |",
    );
  });

  it("leave out what one of them lacks", () => {
    const after = resultOf(workloadOf([theirs]), workloadOf([ours], { name: "another" }));
    expect(compare(before, after, "cpu").map(({ contender }) => contender)).toEqual(["theirs"]);
  });

  it("report other differences", () => {
    const after = { ...before, versions: { Node: "24.0.0", QEMU: "7.2" } };
    expect(differences(before, before)).toEqual([]);
    expect(differences(before, after)).toEqual(["Node: 20.19.0 before, 24.0.0 after"]);
  });
});

describe("plots", () => {
  const target = { contender: "ours", metric: "wall" as const, against: "theirs", atMost: 0.5 };
  const result = resultOf(workloadOf([theirs, ours], { targets: [target] }));

  it("are SVG with the names in it, in the colours of the page", () => {
    const svg = workloadPlot(workloadOf([theirs, ours]));
    expect(svg).toMatch(/^<svg/);
    expect(svg).toContain("theirs");
    expect(svg).toContain("prefers-color-scheme");
    expect(svg).toContain("currentColor");
    expect(targetsPlot(result)).toContain("copy: ours / theirs ≤ 0.50");
  });

  it("can be empty", () => {
    expect(workloadPlot(workloadOf([]))).toMatch(/^<svg/);
    expect(targetsPlot(resultOf())).toMatch(/^<svg/);
  });
});

describe("publishing", () => {
  it("replaces the text between the markers, and nothing else", () => {
    const page = "A\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nB\n";
    const filled = "A\n<!-- bench:x -->\n\nnew\n\n<!-- /bench:x -->\nB\n";
    expect(fillMarkers(page, new Map([["x", "new\n"]]))).toBe(filled);
    expect(fillMarkers(filled, new Map([["x", "new"]]))).toBe(filled);
  });

  it("fails if the page has no markers for it", () => {
    expect(() => fillMarkers("A", new Map([["x", "new"]]))).toThrow('no place for "x"');
  });

  it("writes results and plots next to the page, and makes the page of them", async () => {
    const folder = await mkdtemp(join(tmpdir(), "bench-publish-"));
    try {
      const page = join(folder, "page.md");
      const names = ["in-short", "circumstances", "targets", "workloads", "libvirt", "store", "start"];
      const marks = names.map((name) => `<!-- bench:${name} -->\n<!-- /bench:${name} -->\n`);
      await writeFile(page, marks.join("\n"));
      const [workload = workloadOf([])] = WORKLOADS.map(({ name, title }) =>
        workloadOf([theirs, ours], { name, title }),
      );
      const once = workloadOf([contenderOf("theirs", 1, 2), contenderOf("ours", 1, 2)], { name: "tls" });
      const left = await publish("node24", [resultOf(workload, once)], { page });
      expect(left).toEqual(["tls: 2 of 3 rounds"]);
      await publish("node20", [resultOf(workloadOf([theirs])), resultOf(workload)], { page });
      expect(await publish("store", [resultOf(once)], { page })).toHaveLength(1);
      await writePages({ page });
      const written = await readFile(page, "utf8");
      expect(written.match(/^### .*/gm)).toEqual([`### ${workload.title}`]);
      expect(written.match(/^\*\*Node .*/gm)).toHaveLength(2);
      for (const section of ["node24", "node20"]) {
        const address = `page/${section}/${workload.name}.svg`;
        expect(written).toContain(`![${workload.title}](${address})`);
        expect(await readFile(join(folder, address), "utf8")).toContain("</svg>");
      }
      expect(written).not.toContain("tls");
      expect(written).toContain("<!-- bench:store -->\n\nThere is no result of 3 rounds yet.");
      const other = { ...resultOf(workload), versions: { Node: "18.0.0" } };
      await expect(publish("node20", [resultOf(workload), other], { page })).rejects.toThrow("versions");
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe("the pages of this project", () => {
  const pages = { page: join(PROJECT, "docs", "performance.md"), readme: join(PROJECT, "README.md") };

  it("say what the published results say", async () => {
    for (const [path, text] of await madeOfResults(pages)) expect(await readFile(path, "utf8")).toBe(text);
  });

  it("show each workload once, and none of few rounds", async () => {
    const titles = (await readFile(pages.page, "utf8")).match(/^### .*/gm) ?? [];
    expect(new Set(titles).size).toBe(titles.length);
    for (const section of SECTIONS) {
      const path = join(PROJECT, "docs", "performance", section, "result.json");
      if (!existsSync(path)) continue;
      for (const workload of (await readResult(path)).workloads)
        expect(roundsOf(workload), workload.name).toBeGreaterThanOrEqual(3);
    }
  });
});
