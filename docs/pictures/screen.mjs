/**
 * Makes a picture (SVG) of a terminal's screen, as tmux shows it:
 *
 *     tmux capture-pane -p -e | node docs/pictures/screen.mjs > docs/pictures/backup.svg
 */
import { text } from "node:stream/consumers";
import { stripVTControlCharacters as plain } from "node:util";

const COLOURS = { 31: "#e5484d", 32: "#46a758", 33: "#e2a336" };
/** Select Graphic Rendition: colours. */
const SGR = new RegExp(`${String.fromCharCode(27)}\\[([0-9;]*)m`);
const [WIDTH, HEIGHT, MARGIN] = [8.4, 18, 14];

const screen = await text(process.stdin);
const lines = screen.replace(/\s+$/, "").split("\n");
const escaped = (words) => words.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const columns = Math.max(...lines.map((line) => plain(line).length));

const rows = lines.map((line, row) => {
  let colour;
  const spans = line.split(SGR).flatMap((part, index) => {
    if (index % 2 === 1) {
      for (const code of part.split(";"))
        colour = COLOURS[code] ?? (["", "0", "39"].includes(code) ? undefined : colour);
      return [];
    }
    return part === "" ? [] : [`<tspan${colour ? ` fill="${colour}"` : ""}>${escaped(part)}</tspan>`];
  });
  return `<text x="${MARGIN}" y="${MARGIN + (row + 0.75) * HEIGHT}" textLength="${(plain(line).length * WIDTH).toFixed(1)}">${spans.join("")}</text>`;
});
const [width, height] = [Math.ceil(columns * WIDTH + 2 * MARGIN), lines.length * HEIGHT + 2 * MARGIN];
process.stdout.write(`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">
<rect width="100%" height="100%" rx="8" fill="#16181d"/>
<g font-family="ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="14" fill="#e6e6e6" xml:space="preserve">
${rows.filter((row) => !row.includes('textLength="0.0"')).join("\n")}
</g>
</svg>
`);
