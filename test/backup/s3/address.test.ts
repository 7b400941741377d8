import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatS3Address, isS3Address, parseS3Address } from "../../../src/backup/s3/address.js";

describe("the address of a repository in a store", () => {
  it.each([
    ["s3://backups", { bucket: "backups", prefix: "" }],
    ["s3://backups/", { bucket: "backups", prefix: "" }],
    ["s3://backups/site/one", { bucket: "backups", prefix: "site/one/" }],
    ["s3://backups/site/one/", { bucket: "backups", prefix: "site/one/" }],
    ["s3://my.bucket_1/a b/ü", { bucket: "my.bucket_1", prefix: "a b/ü/" }],
    [
      "s3://backups/x?endpoint=https://s3.example:9000&region=eu&profile=night&path-style=no",
      {
        bucket: "backups",
        prefix: "x/",
        endpoint: "https://s3.example:9000",
        region: "eu",
        profile: "night",
        pathStyle: false,
      },
    ],
  ])("%s", (text, address) => {
    expect(parseS3Address(text)).toEqual({
      endpoint: undefined,
      region: undefined,
      profile: undefined,
      pathStyle: undefined,
      ...address,
    });
  });

  it.each([
    ["s3://", "the bucket is missing"],
    ["s3:///x", "the bucket is missing"],
    ["s3:backups/x", "does not begin with s3://"],
    ["s3://AKID:secret@backups/x", "credentials do not belong into an address"],
    ["s3://a", "no bucket can be called"],
    ["s3://../x", "no bucket can be called"],
    ["s3://backups/a//b", "is no name in a prefix"],
    ["s3://backups/a/../b", "is no name in a prefix"],
    ["s3://backups/a\u0007", "no control characters"],
    ["s3://backups/a\\b", "no backslash"],
    [`s3://backups/${"x".repeat(600)}`, "at most 512 bytes"],
    ["s3://backups/x?endpont=https://x", 'there is no option "endpont"'],
    ["s3://backups/x?endpoint=", "needs one value"],
    ["s3://backups/x?region=a&region=b", "needs one value"],
    ["s3://backups/x?endpoint=ftp://x", "begins with https:// or http://"],
    ["s3://backups/x?endpoint=https://a:b@x", "credentials do not belong into an endpoint"],
    ["s3://backups/x?path-style=maybe", "path-style is yes or no"],
    ["s3://backups/x?a?b", "two question marks"],
  ])("refuses %s", (text, why) => {
    expect(() => parseS3Address(text)).toThrow(expect.objectContaining({ code: "E_S3_ADDRESS" }));
    expect(() => parseS3Address(text)).toThrow(why);
  });

  it("is printed as it is read", () => {
    const name = fc.stringMatching(/^[a-z][a-z0-9 _~ü-]{0,20}$/);
    const options = fc.record({
      endpoint: fc.option(fc.constantFrom("https://s3.example", "http://127.0.0.1:9000"), { nil: undefined }),
      region: fc.option(fc.stringMatching(/^[a-z]{2}-[a-z]+-\d$/), { nil: undefined }),
      profile: fc.option(fc.stringMatching(/^[a-z]{1,9}$/), { nil: undefined }),
      pathStyle: fc.option(fc.boolean(), { nil: undefined }),
    });
    fc.assert(
      fc.property(
        fc.stringMatching(/^[a-z]{3,20}$/),
        fc.array(name, { maxLength: 4 }),
        options,
        (bucket, names, rest) => {
          const address = { bucket, prefix: names.map((each) => `${each}/`).join(""), ...rest };
          expect(parseS3Address(formatS3Address(address))).toEqual(address);
        },
      ),
    );
  });

  it("is told from a path", () => {
    expect(["s3://b/x", "./s3:/b", "/s3://b", "s3:b"].map(isS3Address)).toEqual([true, false, false, false]);
  });
});
