import { writeFile } from "node:fs/promises";
import { HeadObjectCommand } from "@aws-sdk/client-s3";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { UsageError } from "../../../src/backup/base/errors.js";
import { formatS3Address, isS3Address, isSameStore, parseS3Address } from "../../../src/backup/s3/address.js";
import { clientFor, lastingAddress } from "../../../src/backup/s3/client.js";
import { restoreEnvironment } from "../../support/environment.js";
import { freshPaths } from "../../support/fresh.js";

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
    ["s3://AKID:TOP/SECRET+@backups/x", "credentials do not belong into an address"],
    ["s3://AKID:TOPSECRET@backups/x?a?b", "two question marks"],
    ["s3://AKID:TOP?SECRET@backups/x", "credentials do not belong into an address"],
    ["s3://backups/x?endpoint=https://u:TOPSECRET@h", "credentials do not belong into an endpoint"],
    ["s3://backups/x?endpoint=https://u:TOP&SECRET@h", "unknown option"],
    ["s3://backups/x?endpoint=https://u:TOP?SECRET@h", "two question marks"],
    ["s3://backups/x?endpoint=u:TOPSECRET@h", "begins with https:// or http://"],
    ["s3://backups/x?endpoint=https://u:TOPSECRET@h&region=", "region needs one value"],
    ["s3://backups/x?region=u:TOPSECRET@h&region=b", "needs one value"],
    ["s3://backups/x?key=TOPSECRET", 'there is no option "key"'],
    ["s3://backups//x?endpoint=https://u:TOPSECRET@h", "is no name in a prefix"],
  ])("refuses %s, and shows no secret", (text, why) => {
    const refused = (): unknown => {
      try {
        return parseS3Address(text);
      } catch (error) {
        return error;
      }
    };
    expect(refused()).toMatchObject({ code: "E_S3_ADDRESS", message: expect.stringContaining(why) });
    const { message, details } = refused() as UsageError;
    expect(`${message} ${JSON.stringify(details)}`).not.toMatch(/TOP|SECRET|secret|a:b/);
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

  it("is another store's if the endpoint is another, however one gets in", () => {
    const store = "s3://backups/x?endpoint=";
    for (const [one, other, isSame] of [
      [`${store}http://A:80/&profile=night`, `${store}http://a&region=eu&path-style=yes`, true],
      [`${store}https://s3.eu-west-1.amazonaws.com`, `${store}https://s3.amazonaws.com`, true],
      [`${store}http://a`, `${store}http://b`, false],
      [`${store}http://a`, `${store}http://a:9000`, false],
      [`${store}http://a`, "s3://backups/x", false],
      [`${store}https://s3.amazonaws.com`, `${store}https://s3.cn-north-1.amazonaws.com.cn`, false],
      [`${store}https://a`, "s3://backups/y?endpoint=https://a", false],
      [`${store}https://a`, "s3://backup/x?endpoint=https://a", false],
    ] as const) {
      expect([one, other, isSameStore(parseS3Address(one), parseS3Address(other))]).toEqual([
        one,
        other,
        isSame,
      ]);
    }
  });

  describe("and the environment", () => {
    const fresh = freshPaths();
    const before = { ...process.env };
    beforeEach(() => {
      const keys = { AWS_ACCESS_KEY_ID: "AKID", AWS_SECRET_ACCESS_KEY: "secret" };
      Object.assign(process.env, { ...keys, AWS_CONFIG_FILE: "/dev/null" });
      delete process.env["AWS_ENDPOINT_URL"];
    });
    afterEach(() => restoreEnvironment(before));

    const lasting = async (text: string): Promise<string> =>
      formatS3Address(await lastingAddress(parseS3Address(text)));
    /** Where a request would go: host and path. */
    const goesTo = async (text: string): Promise<string> => {
      const client = await clientFor(await lastingAddress(parseS3Address(text)));
      const stop = () => async (args: { request: unknown }) => Promise.reject(args.request);
      client.middlewareStack.add(stop as never, { step: "build" });
      const sent = await client.send(new HeadObjectCommand({ Bucket: "backups", Key: "k" })).catch((e) => e);
      const { hostname, path } = sent as { readonly hostname: string; readonly path: string };
      return `${hostname}${path}`;
    };

    it("leads to the same store whatever that says later", async () => {
      const text = "s3://backups/x?profile=night";
      const aws = await lasting(text);
      process.env["AWS_ENDPOINT_URL"] = "http://user:secret@127.0.0.1:9/";
      const other = await lasting(text);
      expect([aws, other]).toEqual([
        "s3://backups/x?endpoint=https://s3.amazonaws.com&profile=night",
        "s3://backups/x?endpoint=http://127.0.0.1:9&profile=night",
      ]);
      const region = "s3://backups/x?region=eu-west-1";
      expect(await goesTo(region)).toBe("127.0.0.1/backups/k");
      expect(await goesTo(`${region}&endpoint=https://s3.amazonaws.com`)).toBe(
        "backups.s3.eu-west-1.amazonaws.com/k",
      );
    });

    it("has the bucket in the path where only AWS's files name the endpoint", async () => {
      const config = fresh("config");
      process.env["AWS_CONFIG_FILE"] = config;
      const sections = [
        "[default]\nendpoint_url = https://rgw.example.org",
        "[profile night]\nservices = mine\naws_access_key_id = AKID\naws_secret_access_key = secret",
        "[services mine]\ns3 =\n  endpoint_url = https://night.example.org/s3/",
      ];
      await writeFile(config, sections.join("\n"));
      expect(await goesTo("s3://backups/x")).toBe("rgw.example.org/backups/k");
      expect(await lasting("s3://backups/x")).toBe("s3://backups/x?endpoint=https://rgw.example.org");
      expect(await goesTo("s3://backups/x?path-style=no")).toBe("backups.rgw.example.org/k");
      // By the section of AWS_PROFILE alone: the SDK reads no other one for it.
      expect(await goesTo("s3://backups/x?profile=night")).toBe("rgw.example.org/backups/k");
      process.env["AWS_PROFILE"] = "night";
      expect(await goesTo("s3://backups/x")).toBe("night.example.org/s3/backups/k");
      process.env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true";
      expect(await goesTo("s3://backups/x")).toBe("backups.s3.us-east-1.amazonaws.com/k");
    });

    it.each([
      ...["TOPSECRET@rgw", "http://u:TOPSECRET@", "u:TOPSECRET@rgw:9000", "minio:9000"],
      ...["ftp://u:TOPSECRET@rgw", "localhost:9000/TOPSECRET"],
    ])("does not show an endpoint that is no URL: %s", async (url) => {
      process.env["AWS_ENDPOINT_URL"] = url;
      const failure = (await lasting("s3://backups/x").catch((error: unknown) => error)) as Error;
      expect(failure).toMatchObject({
        code: "E_S3_ADDRESS",
        message: expect.stringContaining("it begins with https:// or http://"),
      });
      expect(failure.message).not.toContain("TOPSECRET");
    });
  });

  it("is told from a path", () => {
    expect(["s3://b/x", "./s3:/b", "/s3://b", "s3:b"].map(isS3Address)).toEqual([true, false, false, false]);
  });
});
