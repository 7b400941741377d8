import { BackupError, DamageError, messageOf, PreconditionError } from "../base/errors.js";

/** What was being done when a store failed. */
interface StoreAction {
  /** For messages: the endpoint or "AWS". */
  readonly store: string;
  readonly bucket: string;
  readonly key?: string | undefined;
  /** Such as "reading". */
  readonly action: string;
}

interface ServiceFailure {
  readonly name?: string;
  readonly code?: string;
  readonly Code?: string;
  readonly message?: string;
  readonly $metadata?: { readonly httpStatusCode?: number };
}

/** Another request may succeed although the last one got one of these. */
const PASSING_STATUS = new Set([408, 429, 500, 502, 503, 504]);
const PASSING = new Set([
  "RequestTimeout",
  "SlowDown",
  "Throttling",
  "ThrottlingException",
  "RequestThrottled",
  "InternalError",
  "ServiceUnavailable",
  "TimeoutError",
  // The client has corrected its clock by the answer.
  "RequestTimeTooSkewed",
  "OperationAborted",
  "ConditionalRequestConflict",
  "ConcurrentModification",
]);
const NETWORK = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "ECONNABORTED",
  "EPIPE",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EAI_AGAIN",
  "ENOTFOUND",
  "ERR_SOCKET_CLOSED",
  "ERR_STREAM_PREMATURE_CLOSE",
]);

/** The HTTP status of a store's answer; undefined if there was none. */
export function statusOf(error: unknown): number | undefined {
  return (error as ServiceFailure | undefined)?.$metadata?.httpStatusCode;
}

/** The store's own name for what went wrong, such as `NoSuchKey`; or the operating system's. */
export function reasonOf(error: unknown): string {
  const { name, code, Code } = (error ?? {}) as ServiceFailure;
  if (name !== undefined && name !== "Error" && name !== "AggregateError") return name;
  return Code ?? code ?? name ?? "";
}

/** Whether the same request may succeed a moment later. */
export function isPassing(error: unknown): boolean {
  if (error instanceof BackupError) return error.code === "E_S3_TRUNCATED";
  const status = statusOf(error);
  if (status !== undefined && PASSING_STATUS.has(status)) return true;
  return PASSING.has(reasonOf(error)) || isNetwork(error);
}

/** Whether no store has answered, or one that it is out of order: another object would meet the same. */
export function isAway(error: unknown): boolean {
  return !(error instanceof BackupError) && isPassing(error);
}

function isNetwork(error: unknown): boolean {
  const { code, errors } = (error ?? {}) as { readonly code?: string; readonly errors?: readonly unknown[] };
  if (code !== undefined && NETWORK.has(code)) return true;
  return errors?.some(isNetwork) ?? false;
}

/** Whether the store says that there is no such object. */
export function isAbsent(error: unknown): boolean {
  const reason = reasonOf(error);
  if (reason === "NoSuchKey" || reason === "NotFound") return true;
  return statusOf(error) === 404 && reason !== "NoSuchBucket" && reason !== "NoSuchUpload";
}

/** Whether the store refused because a condition of the request did not hold. */
export function isUnmet(error: unknown): boolean {
  return statusOf(error) === 412 || reasonOf(error) === "PreconditionFailed";
}

/**
 * What a store refuses with, by its own name for it or by the status. All names come before all statuses, as
 * a name says more; the first that fits counts.
 */
const REFUSALS: readonly {
  readonly reasons: readonly string[];
  readonly statuses?: readonly (number | undefined)[];
  readonly code: string;
  readonly why: (about: { readonly bucket: string; readonly said: string }) => string;
}[] = [
  {
    reasons: ["NoSuchBucket"],
    code: "E_S3_BUCKET",
    why: ({ bucket }) => `there is no bucket ${bucket}: compare its name and the endpoint, or make it`,
  },
  {
    reasons: ["InvalidBucketName"],
    code: "E_S3_BUCKET",
    why: ({ bucket }) => `${bucket} is no name of a bucket there: compare it`,
  },
  {
    reasons: ["InvalidAccessKeyId"],
    code: "E_S3_ACCESS",
    why: () => "the store does not know this access key: compare AWS_ACCESS_KEY_ID or the profile",
  },
  {
    reasons: ["SignatureDoesNotMatch"],
    code: "E_S3_ACCESS",
    why: () => "the secret key is not that of the access key, or the region is wrong: compare them",
  },
  {
    reasons: ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"],
    code: "E_S3_ACCESS",
    why: () => "the credentials have expired: fetch new ones and run the command again",
  },
  {
    reasons: ["InvalidToken"],
    code: "E_S3_ACCESS",
    why: () => "the session token is wrong: compare AWS_SESSION_TOKEN",
  },
  {
    reasons: ["CredentialsProviderError"],
    code: "E_S3_CREDENTIALS",
    why: ({ said }) =>
      `there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials with AWS_PROFILE or ?profile=. ${said}`,
  },
  {
    reasons: [
      ...["PermanentRedirect", "TemporaryRedirect"],
      ...["AuthorizationHeaderMalformed", "IllegalLocationConstraintException"],
    ],
    code: "E_S3_REGION",
    why: ({ said }) => `the bucket is in another region: name it with ?region= or AWS_REGION. ${said}`,
  },
  {
    reasons: ["RequestTimeTooSkewed", "RequestExpired"],
    code: "E_S3_CLOCK",
    why: () => "this host's clock and the store's differ too much: set the clock",
  },
  {
    reasons: ["InvalidObjectState"],
    code: "E_S3_ARCHIVED",
    why: () => "the object is in an archive: restore it from there first",
  },
  {
    ...{ reasons: ["AccessDenied"], statuses: [403] },
    code: "E_S3_ACCESS",
    why: () =>
      "these credentials may not do that here: it is somebody else's bucket, or the policy lacks a permission (docs/stores.md lists those needed)",
  },
  {
    ...{ reasons: [], statuses: [301, 307] },
    code: "E_S3_REGION",
    why: () => "the bucket is in another region: name it with ?region= or AWS_REGION",
  },
  {
    ...{ reasons: ["NotImplemented"], statuses: [501] },
    code: "E_S3_LACKS",
    why: () => "the store cannot do that: docs/stores.md says what is needed",
  },
];

/**
 * A store's failure as an error of ours: what is wrong with the address or the credentials is a
 * `PreconditionError`, a missing object is damage, and the rest is a `BackupError`. The message never has
 * credentials.
 */
export function storeError(error: unknown, doing: StoreAction): BackupError {
  if (error instanceof BackupError) return error;
  const { store, bucket, key, action } = doing;
  const what = key === undefined ? `s3://${bucket}` : `s3://${bucket}/${key}`;
  const reason = reasonOf(error);
  const details = { bucket, key, reason, status: statusOf(error) };
  const options = { cause: withoutRequest(error), details };
  const known = REFUSALS.find(({ reasons, statuses }) => {
    return reasons.includes(reason) || (statuses ?? []).includes(statusOf(error));
  });
  if (known !== undefined) {
    const why = known.why({ bucket, said: textOf(error) });
    return new PreconditionError(
      known.code,
      `${action} ${what} at ${store} was refused (${reason}): ${why}`,
      options,
    );
  }
  if (isAbsent(error)) {
    return new DamageError("E_S3_MISSING", `${what} is missing`, options);
  }
  if (isTls(error)) {
    return new PreconditionError(
      "E_S3_TLS",
      `${store} did not prove who it is, or does not speak TLS (${textOf(error).trim()}): name its CA with AWS_CA_BUNDLE, or compare the endpoint`,
      options,
    );
  }
  if (isNetwork(error) || reason === "TimeoutError") {
    return new BackupError(
      "E_S3_UNREACHABLE",
      `${action} ${what}: ${store} cannot be reached (${textOf(error) || reason}): compare the endpoint, and look at the network and the store`,
      options,
    );
  }
  const status = statusOf(error);
  const answer = status === undefined ? reason : `${reason}, status ${status}`;
  return new BackupError(
    "E_S3_FAILED",
    `${action} ${what} at ${store} failed (${answer}): ${textOf(error)}`,
    options,
  );
}

/** The SDK's errors hold the whole answer and its request, with all headers. */
function withoutRequest(error: unknown): Error {
  const status = statusOf(error);
  const { code } = (error ?? {}) as ServiceFailure;
  const $metadata = status === undefined ? undefined : { httpStatusCode: status };
  return Object.assign(new Error(textOf(error)), { name: reasonOf(error), code, $metadata });
}

/** Some stores give no text. */
function textOf(error: unknown): string {
  const message = messageOf(error);
  return message === "UnknownError" ? reasonOf(error) : message;
}

function isTls(error: unknown): boolean {
  const { code } = (error ?? {}) as { readonly code?: unknown };
  return (
    typeof code === "string" &&
    /^(?:EPROTO$|ERR_TLS_|ERR_SSL_|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_)/.test(code)
  );
}
