/** The page's style. Dark where the reader's system is; no request, so no fonts and no pictures. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f6f8fa; --text: #1f2328; --quiet: #59636e; --line: #d1d9e0; --link: #0969da;
  --good: #116329; --late: #7d4e00; --bad: #b31d28;
  --full: #0969da; --increment: #7a3fc4; --total: #57606a;
  --map-1: #b7dcff; --map-2: #6cb1f5; --map-3: #2a7fd4; --map-4: #0b3f80;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --text: #e6edf3; --quiet: #a3adb8; --line: #3d444d; --link: #6cb2ff;
    --good: #4ac26b; --late: #e0a83b; --bad: #ff7b72;
    --full: #6cb2ff; --increment: #c297ff; --total: #9aa4ae;
    --map-1: #1b3a5c; --map-2: #2a66a3; --map-3: #4c9be8; --map-4: #c2e0ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
main > section:first-child h2 { margin-top: 0; }
h3 { font-size: 1.1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: 1rem; margin: 1rem 0 .25rem; }
p, ul { margin: .5rem 0; }
li { overflow-wrap: anywhere; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .5rem 1rem; background: var(--card); z-index: 1; }
.quiet, footer { color: var(--quiet); font-size: .9rem; }
.state { font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .late { color: var(--late); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
caption { text-align: left; color: var(--quiet); padding: .25rem 0; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
thead th { color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 10rem; max-width: 22rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
section.domain { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .5rem 1rem; margin: .5rem 0; }
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: .5rem 0; }
figure svg { display: block; width: 100%; min-width: 34rem; max-width: 60rem; height: auto; }
figcaption { color: var(--quiet); font-size: .9rem; }
.sign { display: inline-block; margin-right: 1em; font-weight: 600; }
summary { cursor: pointer; padding: .35rem 0; }
.key { display: inline-block; width: .9em; height: .9em; vertical-align: -.1em; border: 1px solid var(--line); margin-left: .5em; }
.trouble { border-left: 4px solid var(--bad); padding-left: .75rem; }
@media (max-width: 40rem) { tbody th { min-width: 7rem; max-width: 8rem; } th, td { padding: .35rem .4rem; } dl { grid-template-columns: 1fr 1fr; } header, main, footer { padding: .75rem; } section.domain { padding: .75rem; } }
@media print { section.domain { break-inside: avoid; } }
`;
