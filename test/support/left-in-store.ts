import { ListMultipartUploadsCommand, ListObjectsV2Command, type S3Client } from "@aws-sdk/client-s3";

/**
 * What runs that were killed have left below a prefix: leases, notes, uploads, and files of points that have
 * no manifest.
 */
export async function leftInStore(client: S3Client, Bucket: string, Prefix: string): Promise<string[]> {
  const keys = await keysIn(client, Bucket, Prefix);
  const points = new Set(keys.filter((key) => key.endsWith("/point.json")).map(folderOf));
  const left = keys.filter((key) => {
    if (key.endsWith("/nbdpull.json") || key.endsWith("/.copied.json")) return false;
    return /\/\.[^/]*$/.test(key) || !points.has(folderOf(key));
  });
  const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket, Prefix }));
  return [...left, ...Uploads.map(({ Key = "" }) => `upload of ${Key}`)];
}

/** The same without leases: points that were begun, or are being removed. */
export async function halfInStore(client: S3Client, Bucket: string, Prefix: string): Promise<string[]> {
  return (await leftInStore(client, Bucket, Prefix)).filter((each) => !each.endsWith("/.lease"));
}

export async function keysIn(client: S3Client, Bucket: string, Prefix: string): Promise<string[]> {
  const keys: string[] = [];
  let ContinuationToken: string | undefined;
  do {
    const page = await client.send(new ListObjectsV2Command({ Bucket, Prefix, ContinuationToken }));
    keys.push(...(page.Contents ?? []).map(({ Key = "" }) => Key));
    ContinuationToken = page.NextContinuationToken;
  } while (ContinuationToken !== undefined);
  return keys;
}

function folderOf(key: string): string {
  return key.slice(0, key.lastIndexOf("/"));
}
