/** The parts of the published page. Each shows the result of runs of its own, which is kept beside the page. */

/** Sections of the data path differ by the version of Node: the page shows them side by side. */
export const DATA_SECTIONS = ["node24", "node20", "node22"] as const;
export const OWN_SECTIONS = ["libvirt", "store", "start"] as const;

export const SECTIONS = [...DATA_SECTIONS, ...OWN_SECTIONS] as const;
export type Section = (typeof SECTIONS)[number];

export function isSection(name: string): name is Section {
  return SECTIONS.some((section) => section === name);
}
