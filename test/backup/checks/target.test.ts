import { expect, it } from "vitest";
import type { Subject } from "../../../src/backup/checks/check.js";
import { lookAtTarget } from "../../../src/backup/checks/target.js";

it("judges no folder of this host in place of an object store that was not opened", async () => {
  const subject = { repositoryPath: "s3://backups/vm" } as unknown as Subject;
  expect(await lookAtTarget(subject)).toEqual([]);
});
