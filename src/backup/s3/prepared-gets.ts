import type { Readable } from "node:stream";
import { GetObjectCommand, type S3Client } from "@aws-sdk/client-s3";
import { isPassing } from "./errors.js";

/** For so long a request is repeated before the SDK makes it anew: endpoints may change. */
const PREPARED_MS = 30_000;
/** Objects whose requests are known. */
const MOST_PREPARED = 1_000;
/** Those that the store's answer to another one, or the signer, gives anew. */
const OF_ONE_REQUEST = [
  "authorization",
  "x-amz-date",
  "x-amz-security-token",
  "amz-sdk-invocation-id",
  "amz-sdk-request",
];
/** The way to sign that keeps nothing from one request to the next, if it is not that of S3 Express. */
const PLAIN_SCHEME = "aws.auth#sigv4";

/** What is asked for. */
export interface AskedBytes {
  readonly Bucket: string;
  readonly Key: string;
  readonly IfMatch: string | undefined;
  readonly Range: string | undefined;
}

/** A store's answer; what it says of itself is not compared yet. */
export interface SentBytes {
  readonly body: Readable;
  /** With quotation marks, if the store sends them. */
  readonly etag: string | undefined;
  readonly contentRange: string | undefined;
  /** Bytes. */
  readonly contentLength: number | undefined;
}

type Headers = Readonly<Record<string, string>>;

/** As the SDK has it, as far as it is used here. */
interface SdkRequest {
  readonly headers: Headers;
}
interface SdkScheme {
  readonly httpAuthOption: { readonly schemeId: string; readonly signingProperties?: object };
  readonly identity: object;
  readonly signer: { sign(request: SdkRequest, identity: object, properties: object): Promise<SdkRequest> };
}
interface SdkResponse {
  readonly statusCode: number;
  readonly headers: Headers;
  readonly body: Readable;
}

interface Prepared {
  readonly request: SdkRequest;
  readonly scheme: SdkScheme;
  /** By `performance.now()`. */
  readonly until: number;
}

/**
 * Requests for bytes of objects. The SDK takes three times as long to make one (endpoint, way of signing,
 * serialization) as to sign and send it, so it makes one of an object in half a minute. The others are that
 * one with another range, signed by the same signer, and sent by the same handler. The signer asks for the
 * credentials each time, so it has those of now. Whatever is not answered with bytes is left to the SDK.
 */
export class PreparedGets {
  readonly #client: S3Client;
  readonly #prepared = new Map<string, Prepared>();

  constructor(client: S3Client) {
    this.#client = client;
  }

  /** @throws as the SDK, or the handler of its requests */
  async send(asked: AskedBytes, abortSignal: AbortSignal): Promise<SentBytes> {
    const prepared = this.#preparedFor(asked.Key);
    if (asked.Range !== undefined && prepared) {
      try {
        const sent = await this.#repeat(prepared, asked, abortSignal);
        if (sent) return sent;
      } catch (error) {
        // The SDK asks the next time: it tells what is wrong.
        this.#prepared.delete(asked.Key);
        throw error;
      }
      this.#prepared.delete(asked.Key);
    }
    return await this.#make(asked, abortSignal);
  }

  #preparedFor(key: string): Prepared | undefined {
    const prepared = this.#prepared.get(key);
    if (!prepared || prepared.until > performance.now()) return prepared;
    this.#prepared.delete(key);
    return undefined;
  }

  async #make(asked: AskedBytes, abortSignal: AbortSignal): Promise<SentBytes> {
    const command = new GetObjectCommand(asked);
    let prepared: Prepared | undefined;
    command.middlewareStack.add(
      (next, context) => async (args) => {
        prepared = preparedOf(args.request, context);
        return await next(args);
      },
      { step: "finalizeRequest", priority: "low", name: "notePrepared" },
    );
    const { Body, ETag, ContentRange, ContentLength } = await this.#client.send(command, { abortSignal });
    if (this.#prepared.size >= MOST_PREPARED) this.#prepared.clear();
    if (prepared) this.#prepared.set(asked.Key, prepared);
    return { body: Body as Readable, etag: ETag, contentRange: ContentRange, contentLength: ContentLength };
  }

  /**
   * @returns undefined: the store has answered with something else than bytes
   * @throws with the answer's status, if that may pass: a store that asks to be spared is not asked at once
   */
  async #repeat(
    { request, scheme }: Prepared,
    { Range, IfMatch }: AskedBytes,
    abortSignal: AbortSignal,
  ): Promise<SentBytes | undefined> {
    const headers = {
      ...request.headers,
      ...(Range !== undefined && { range: Range }),
      ...(IfMatch !== undefined && { "if-match": IfMatch }),
    };
    const { signer, identity, httpAuthOption } = scheme;
    const repeated = Object.assign(Object.create(Object.getPrototypeOf(request) as object), request, {
      headers,
    });
    const signed = await signer.sign(
      repeated as SdkRequest,
      identity,
      httpAuthOption.signingProperties ?? {},
    );
    const answer = await this.#client.config.requestHandler.handle(signed as never, { abortSignal });
    const { statusCode, headers: told, body } = answer.response as unknown as SdkResponse;
    if (statusCode !== 206 && statusCode !== 200) {
      body.destroy();
      const failure = { name: `status ${statusCode}`, $metadata: { httpStatusCode: statusCode } };
      if (isPassing(failure)) throw Object.assign(new Error("the store cannot answer now"), failure);
      return undefined;
    }
    return {
      body,
      etag: told["etag"],
      contentRange: told["content-range"],
      contentLength: told["content-length"] === undefined ? undefined : Number(told["content-length"]),
    };
  }
}

/** @returns undefined: another SDK has it otherwise, or it is signed in a way that is good for one request */
function preparedOf(request: unknown, context: object): Prepared | undefined {
  // It is signed with credentials of a session, which this signer knows nothing of.
  if ("s3ExpressIdentity" in context) return undefined;
  const { __smithy_context: known } = context as {
    readonly __smithy_context?: { readonly selectedHttpAuthScheme?: SdkScheme };
  };
  const scheme = known?.selectedHttpAuthScheme;
  const { headers } = (request ?? {}) as Partial<SdkRequest>;
  if (scheme?.httpAuthOption?.schemeId !== PLAIN_SCHEME || !headers) return undefined;
  const lasting = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const);
  const ofAll = lasting.filter(([name]) => !OF_ONE_REQUEST.includes(name) && name !== "if-match");
  const copy = Object.assign(Object.create(Object.getPrototypeOf(request) as object), request, {
    headers: Object.fromEntries(ofAll),
  }) as SdkRequest;
  return { request: copy, scheme, until: performance.now() + PREPARED_MS };
}
