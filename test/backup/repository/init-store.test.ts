/** A repository that is made in Ceph while another process makes it. */
import { expect, it } from "vitest";
import { initStore } from "../../../src/backup/repository/init-store.js";
import { type StoreLab, withStoreLab } from "../../support/store-lab.js";
import { describeWith } from "../../support/tools.js";

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a repository that two make in a store at once", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });

  it("is the first one's, who has removed what the other one was trying the store with", async () => {
    await initStore(lab.address("first"));
    const marker = await lab.read("first/nbdpull.json");
    let made: Promise<unknown> | undefined;
    lab.line.fault = ({ method, url }) => {
      if (!/\/raced\/\.probe-.*\/small/.test(url)) return undefined;
      if (method === "PUT") made ??= lab.put("raced/nbdpull.json", marker);
      return method === "GET" ? { answer: 404, code: "NoSuchKey" } : undefined;
    };
    await expect(initStore(lab.address("raced"))).rejects.toMatchObject({ code: "E_REPOSITORY_EXISTS" });
    await made;
    expect(await lab.keys("raced/")).toEqual(["raced/nbdpull.json"]);
  });
});
