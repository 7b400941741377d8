/** What a page begins with. By this an older report is recognized, which a new one may replace. */
export const PAGE_START =
  '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/><meta name="generator" content="nbdpull report"/>';
