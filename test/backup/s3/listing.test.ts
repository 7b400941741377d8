/** Lists of a bucket in Ceph that make no sense. */
import { expect, it } from "vitest";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { collect } from "../../support/collect.js";
import { type StoreLab, withStoreLab } from "../../support/store-lab.js";
import { describeWith } from "../../support/tools.js";

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a list of objects", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });

  it.each([
    ["an object of another place", (text: string) => text.replaceAll("<Key>nonsense/", "<Key>elsewhere/")],
    ["no end", (text: string) => text.replace("<IsTruncated>false", "<IsTruncated>true")],
    [
      "an object that can't be told from another one",
      (text: string) => text.replaceAll(/<ETag>.*?<\/ETag>/g, ""),
    ],
    [
      "a next page that is the same",
      (text: string) =>
        text.replace(
          "<IsTruncated>false</IsTruncated>",
          "<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>",
        ),
    ],
  ])("is refused that has %s", async (_, rewrite) => {
    using bucket = await Bucket.open({ bucket: lab.bucket, prefix: "nonsense/" });
    await bucket.put("nonsense/one", Buffer.from("x"));
    lab.line.fault = () => ({ rewrite });
    await expect(collect(bucket.list("nonsense/o"))).rejects.toMatchObject({
      name: "DamageError",
      code: "E_S3_NONSENSE",
    });
  });
});
