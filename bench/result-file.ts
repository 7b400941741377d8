import { readFile } from "node:fs/promises";
import { type BenchResult, resultSchema } from "./result.js";

export async function readResult(path: string): Promise<BenchResult> {
  return resultSchema.parse(JSON.parse(await readFile(path, "utf8")));
}
