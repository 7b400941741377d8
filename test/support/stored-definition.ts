import { createHash } from "node:crypto";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** What a manifest says of a file. */
type FileRecord = Record<string, unknown>;

/** A file of a domain's only point. */
export async function fileOfOnlyPoint(repo: string, domain: string, name: string): Promise<string> {
  const [point = "none"] = (await readdir(join(repo, domain))).filter((entry) => /^\d/.test(entry));
  return join(repo, domain, point, name);
}

/**
 * Changes the stored definition in the only point of a domain, and what the manifest says of it, as if libvirt
 * had told it so: nothing in a point is signed.
 */
export async function changeStoredDefinition(
  repo: string,
  domain: string,
  change: (xml: string) => string,
): Promise<void> {
  const path = await fileOfOnlyPoint(repo, domain, "domain.xml");
  const xml = change(await readFile(path, "utf8"));
  await writeFile(path, xml);
  const sha256 = createHash("sha256").update(xml).digest("hex");
  await changeFilesOfManifest(repo, domain, (file) => [
    file["role"] === "definition" ? { ...file, length: Buffer.byteLength(xml), sha256 } : file,
  ]);
}

/** Changes what the manifest of a domain's only point says of each file. */
export async function changeFilesOfManifest(
  repo: string,
  domain: string,
  change: (file: FileRecord) => FileRecord[],
): Promise<void> {
  const path = await fileOfOnlyPoint(repo, domain, "point.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as { files: FileRecord[] };
  await writeFile(path, JSON.stringify({ ...manifest, files: manifest.files.flatMap(change) }));
}
