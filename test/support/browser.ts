import { type Browser, chromium } from "playwright-core";
import { findTool } from "./tools.js";

export const CHROMIUM = "chromium-headless-shell";

/** Debian's Chromium without a window. */
export async function startBrowser(): Promise<Browser> {
  const executablePath = findTool(CHROMIUM);
  if (executablePath === undefined) throw new Error(`${CHROMIUM} is not installed`);
  // It has no sandbox for root, and shows nothing but files of ours.
  return await chromium.launch({ executablePath, args: ["--no-sandbox"] });
}
