import { lookAtAgent } from "./agent.js";
import { lookAtCheckpoints, lookAtForecast } from "./bitmaps.js";
import { lookAtBitmapsInImages } from "./bitmaps-in-images.js";
import type { Check } from "./check.js";
import {
  lookAtBlockJobs,
  lookAtDisks,
  lookAtIothreads,
  lookAtJob,
  lookAtPort,
  lookAtState,
} from "./guest.js";
import { lookAtConfinement, lookAtLibvirt, lookAtNode, lookAtQemuTools, lookAtSupport } from "./host.js";
import { lookAtRecord } from "./record.js";
import { lookAtScratchFolder, lookAtScratchSpace } from "./scratch.js";
import { lookAtPoints, lookAtTarget } from "./target.js";
import { lookAtTls } from "./tls.js";

const always = (): boolean => true;
const never = (): boolean => false;

/** Most other checks need libvirt to answer. */
export const LIBVIRT: Check = {
  name: "libvirt",
  asksLibvirt: true,
  beforeBackup: never,
  look: lookAtLibvirt,
};

/** Runs before all slower checks, so that a second backup is refused at once. */
export const JOB: Check = {
  name: "running job",
  asksLibvirt: true,
  beforeBackup: always,
  look: lookAtJob,
};

/** All checks of `doctor` but LIBVIRT, in order; a backup runs those with `beforeBackup`. */
export const CHECKS: readonly Check[] = [
  { name: "node", asksLibvirt: false, beforeBackup: never, look: lookAtNode },
  { name: "tool", asksLibvirt: false, beforeBackup: never, look: lookAtQemuTools },
  { name: "backup support", asksLibvirt: true, beforeBackup: always, look: lookAtSupport },
  { name: "scratch folder", asksLibvirt: false, beforeBackup: always, look: lookAtScratchFolder },
  { name: "scratch space", asksLibvirt: false, beforeBackup: always, look: lookAtScratchSpace },
  { name: "confinement", asksLibvirt: true, beforeBackup: never, look: lookAtConfinement },
  { name: "port", asksLibvirt: false, beforeBackup: always, look: lookAtPort },
  { name: "tls", asksLibvirt: false, beforeBackup: always, look: lookAtTls },
  { name: "repository", asksLibvirt: false, beforeBackup: always, look: lookAtTarget },
  // A backup finds out when it opens its record, before anything is begun.
  { name: "record", asksLibvirt: false, beforeBackup: never, look: lookAtRecord },
  { name: "points", asksLibvirt: false, beforeBackup: never, look: lookAtPoints },
  { name: "domain", asksLibvirt: true, beforeBackup: never, look: lookAtState },
  JOB,
  { name: "disk", asksLibvirt: true, beforeBackup: never, look: lookAtDisks },
  { name: "iothreads", asksLibvirt: true, beforeBackup: always, look: lookAtIothreads },
  // A backup doesn't ask: libvirt refuses to begin it, and says so of the disk.
  { name: "block job", asksLibvirt: true, beforeBackup: never, look: lookAtBlockJobs },
  {
    name: "guest agent",
    asksLibvirt: true,
    beforeBackup: ({ freeze }) => freeze !== undefined,
    look: lookAtAgent,
  },
  { name: "checkpoint", asksLibvirt: true, beforeBackup: never, look: lookAtCheckpoints },
  { name: "bitmaps", asksLibvirt: true, beforeBackup: never, look: lookAtBitmapsInImages },
  { name: "next backup", asksLibvirt: true, beforeBackup: always, look: lookAtForecast },
];
