import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer, text } from "node:stream/consumers";
import {
  GetObjectCommand,
  HeadObjectCommand,
  PutObjectCommand,
  UploadPartCopyCommand,
} from "@aws-sdk/client-s3";
import type { Store } from "./store.js";

/** What may happen to a request on its way to a store, or to the answer. */
export type StoreFault =
  /** The store is not asked, and this is the answer. */
  | { readonly answer: number; readonly code: string }
  /** The store is asked, and its answer is lost. */
  | "lose answer"
  /** The store is not asked, and nothing is answered. */
  | "hang up"
  | "never answer"
  /** The store is asked, and nothing is answered. */
  | "swallow answer"
  /** Half of the answer's body arrives. */
  | "cut answer"
  /** The whole object is sent in place of a range. */
  | "ignore range"
  /** The text of the answer is changed. */
  | { readonly rewrite: (text: string) => string }
  /** As a store does that does not know conditions. */
  | "ignore conditions"
  /** As a store does that knows them where Ceph doesn't: in a bucket with versions. For one writer. */
  | "keep conditions"
  /** As a store does that says so. */
  | "refuse conditions"
  /** Another range is copied than was asked for. */
  | { readonly copyInstead: (first: number, last: number) => readonly [first: number, last: number] }
  /** The same range of another object is copied: `BUCKET/KEY`. */
  | { readonly copyFrom: string };

/** A request. */
interface AskedOfStore {
  readonly method: string;
  readonly url: string;
  /** The header, if it has one. */
  readonly range?: string | undefined;
  /** Likewise, of what is copied. */
  readonly copiedRange?: string | undefined;
  /** The names of the headers that are conditions of it. */
  readonly conditions?: readonly string[];
}

/** A line to a store that breaks as it is told. */
export class BreakingStore implements AsyncDisposable {
  readonly endpoint: string;
  /** All requests, as `METHOD URL`. */
  readonly seen: string[] = [];
  /** Decides what happens to a request. Default: nothing does. */
  fault: (asked: AskedOfStore) => StoreFault | undefined = () => undefined;
  readonly #server: Server;
  readonly #store: Store;

  private constructor(server: Server, store: Store) {
    this.#store = store;
    this.#server = server;
    this.endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  static async start(store: Store): Promise<BreakingStore> {
    let breaking: BreakingStore | undefined;
    const server = createServer((asked, answer) => breaking?.pass(asked, answer, new URL(store.endpoint)));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    breaking = new BreakingStore(server, store);
    return breaking;
  }

  /** A fault for the first `times` requests that match. */
  breakFirst(times: number, pattern: RegExp, fault: StoreFault): void {
    let left = times;
    this.fault = ({ method, url }) => (pattern.test(`${method} ${url}`) && left-- > 0 ? fault : undefined);
  }

  pass(asked: IncomingMessage, answer: ServerResponse, store: URL): void {
    const [method, url] = [asked.method ?? "", asked.url ?? ""];
    this.seen.push(`${method} ${url}`);
    const { headers } = asked;
    const isConditional = method === "PUT" && (headers["if-match"] ?? headers["if-none-match"]) !== undefined;
    const copiedRange = headers["x-amz-copy-source-range"]?.toString();
    const conditions = [
      ...(headers["if-match"] === undefined ? [] : ["If-Match"]),
      ...(headers["if-none-match"] === undefined ? [] : ["If-None-Match"]),
    ];
    const told = this.fault({ method, url, range: headers.range, copiedRange, conditions });
    const refusal = isConditional ? ({ answer: 501, code: "NotImplemented" } as const) : undefined;
    const fault = told === "refuse conditions" ? refusal : told;
    if (fault === "never answer") return;
    if (fault === "hang up") return void asked.socket.destroy();
    if (typeof fault === "object" && "answer" in fault) {
      asked.resume();
      const body = `<?xml version="1.0"?><Error><Code>${fault.code}</Code><Message>as told</Message></Error>`;
      answer.writeHead(fault.answer, { "content-type": "application/xml", date: new Date().toUTCString() });
      return void answer.end(method === "HEAD" ? undefined : body);
    }
    if (typeof fault === "object" && "copyInstead" in fault) {
      asked.resume();
      return void this.#copyInstead(asked, answer, { change: fault.copyInstead });
    }
    if (typeof fault === "object" && "copyFrom" in fault) {
      asked.resume();
      return void this.#copyInstead(asked, answer, { from: fault.copyFrom });
    }
    const isPut = method === "PUT" && !url.includes("partNumber");
    if (fault === "keep conditions" && isConditional) return void this.#putOnCondition(asked, answer);
    const ignores = fault === "ignore conditions" || fault === "keep conditions";
    if (ignores && isPut) return void this.#putAnyway(asked, answer);
    if (ignores && method === "GET" && asked.headers["if-match"]) return void this.#getAnyway(asked, answer);
    const { hostname, port } = store;
    const onward = request(
      { hostname, port, method, path: url, headers: asked.headers, agent: false },
      (answered) => {
        if (fault === "swallow answer") return void answered.resume();
        if (fault === "lose answer") {
          answered.resume();
          answered.on("end", () => asked.socket.destroy());
          return;
        }
        if (typeof fault === "object" && "rewrite" in fault) {
          void text(answered).then((body) => answer.end(fault.rewrite(body)));
          return;
        }
        if (fault === "ignore range") {
          delete answered.headers["content-range"];
          answered.statusCode = 200;
        }
        answer.writeHead(answered.statusCode ?? 502, answered.headers);
        if (fault !== "cut answer") return void answered.pipe(answer);
        const half = Number(answered.headers["content-length"]) >> 1;
        let sent = 0;
        answered.on("data", (bytes: Buffer) => {
          answer.write(bytes.subarray(0, half - sent));
          sent += bytes.length;
          if (sent >= half) answer.destroy();
        });
      },
    );
    onward.on("error", () => asked.socket.destroy());
    asked.pipe(onward);
  }

  async #putOnCondition(asked: IncomingMessage, answer: ServerResponse): Promise<void> {
    const [, Bucket, Key] = /^\/([^/]+)\/([^?]+)/.exec(decodeURIComponent(asked.url ?? "")) ?? [];
    const found = await this.#store
      .client()
      .send(new HeadObjectCommand({ Bucket, Key }))
      .catch(() => undefined);
    const { "if-match": match, "if-none-match": none } = asked.headers;
    const bare = (etag: string | undefined): string | undefined => etag?.replaceAll('"', "");
    const isMet = none === undefined ? bare(found?.ETag) === bare(match) : found === undefined;
    if (isMet) return await this.#putAnyway(asked, answer);
    asked.resume();
    answer.writeHead(412, { "content-type": "application/xml", date: new Date().toUTCString() });
    answer.end('<?xml version="1.0"?><Error><Code>PreconditionFailed</Code></Error>');
  }

  /** The conditions are part of the signature, so it is another request. */
  async #putAnyway(asked: IncomingMessage, answer: ServerResponse): Promise<void> {
    const [, Bucket, Key] = /^\/([^/]+)\/([^?]+)/.exec(decodeURIComponent(asked.url ?? "")) ?? [];
    const { ETag = "" } = await this.#store
      .client()
      .send(new PutObjectCommand({ Bucket, Key, Body: await buffer(asked) }));
    answer.writeHead(200, { etag: ETag });
    answer.end();
  }

  async #getAnyway(asked: IncomingMessage, answer: ServerResponse): Promise<void> {
    const [, Bucket, Key] = /^\/([^/]+)\/([^?]+)/.exec(decodeURIComponent(asked.url ?? "")) ?? [];
    const Range = asked.headers.range;
    const { Body, ETag, ContentRange, ContentLength } = await this.#store
      .client()
      .send(new GetObjectCommand({ Bucket, Key, Range }));
    answer.writeHead(Range ? 206 : 200, {
      etag: ETag,
      "content-length": ContentLength,
      ...(ContentRange && { "content-range": ContentRange }),
    });
    answer.end(await Body?.transformToByteArray());
  }

  /** What is copied is part of the signature, so it is another request. */
  async #copyInstead(
    asked: IncomingMessage,
    answer: ServerResponse,
    {
      from,
      change = (first, last) => [first, last],
    }: {
      readonly from?: string;
      readonly change?: (first: number, last: number) => readonly [number, number];
    },
  ): Promise<void> {
    const url = new URL(asked.url ?? "", this.#store.endpoint);
    const [, Bucket, Key] = /^\/([^/]+)\/(.+)/.exec(decodeURIComponent(url.pathname)) ?? [];
    const { "x-amz-copy-source": source, "x-amz-copy-source-range": range } = asked.headers;
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(`${range}`) ?? [];
    const { CopyPartResult } = await this.#store.client().send(
      new UploadPartCopyCommand({
        ...{ Bucket, Key, CopySource: from ?? `${source}` },
        UploadId: url.searchParams.get("uploadId") ?? "",
        PartNumber: Number(url.searchParams.get("partNumber")),
        CopySourceRange: range && `bytes=${change(Number(first), Number(last)).join("-")}`,
      }),
    );
    answer.writeHead(200, { "content-type": "application/xml" });
    answer.end(
      `<?xml version="1.0"?><CopyPartResult><LastModified>2026-11-30T00:00:00.000Z</LastModified><ETag>${CopyPartResult?.ETag}</ETag></CopyPartResult>`,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
