import { titleOf } from "./domain-title.js";
import { labelsOf, type Metric, type MetricsUpdate, type Sample } from "./metrics.js";
import type { ReportDocument } from "./report-document.js";

/** A report as series. They replace all that earlier reports have told of the same repositories. */
export function updateOfReport({ createdAt, maxAgeSeconds, repositories }: ReportDocument): MetricsUpdate {
  const samples = repositories.flatMap(({ repository, error, failed, domains }): Sample[] => {
    const labels = labelsOf({ repository });
    const names = namesOf(domains);
    return [
      { metric: "nbdpull_report_timestamp_seconds", labels, value: seconds(createdAt) },
      { metric: "nbdpull_report_readable", labels, value: error === null && failed.length === 0 ? 1 : 0 },
      { metric: "nbdpull_report_max_age_seconds", labels, value: maxAgeSeconds },
      ...domains.flatMap((domain, index) => {
        const whose = labelsOf({ domain: names[index] ?? "", repository });
        const values: Partial<Record<Metric, number | null>> = {
          nbdpull_report_last_good_timestamp_seconds: domain.lastGood
            ? seconds(domain.lastGood.createdAt)
            : 0,
          nbdpull_report_late: domain.isLate ? 1 : 0,
          nbdpull_report_points: domain.points.length,
          nbdpull_report_points_unrestorable: domain.unrestorable,
          nbdpull_report_chain_length: domain.chainLength,
          nbdpull_report_virtual_bytes: domain.virtualBytes,
          nbdpull_report_logical_bytes: domain.logicalBytes,
          nbdpull_report_stored_bytes: domain.storedBytes,
          nbdpull_report_growth_bytes_per_day: domain.growthPerDay,
          nbdpull_report_changed_bytes_per_day: domain.changedPerDay,
        };
        return Object.entries(values).flatMap(([metric, value]) =>
          value === null ? [] : [{ metric: metric as Metric, labels: whose, value }],
        );
      }),
    ];
  });
  const reported = repositories.map(({ repository }) => labelsOf({ repository }));
  const removed = ({ metric, labels }: Sample): boolean =>
    metric.startsWith("nbdpull_report_") &&
    reported.some((whose) => labels === whose || labels.endsWith(`,${whose}`));
  return { samples, otherwise: [], removed };
}

/** What domains are called, each differently: a collector refuses a file that has a series twice. */
function namesOf(domains: ReportDocument["repositories"][number]["domains"]): string[] {
  const names = domains.map(({ name }) => name);
  const taken = new Set<string>();
  return domains.map((domain) => {
    const isOnly = names.indexOf(domain.name) === names.lastIndexOf(domain.name);
    const called = isOnly ? domain.name : titleOf(domain);
    let name = called;
    for (let n = 2; taken.has(name); n += 1) name = `${called} (${n})`;
    taken.add(name);
    return name;
  });
}

function seconds(iso: string): number {
  return Date.parse(iso) / 1000;
}
