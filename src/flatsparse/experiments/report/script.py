"""How the page looks and what it does: no network, nothing to install; text is only ever put in as text."""

STYLE = """
body { max-width: 78rem; } button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 1px; } h2 { scroll-margin-top: .5rem; }
nav ul { list-style: none; padding: 0; } nav li { margin: .4rem 0; } nav a { font-weight: 600; }
.reproduces { color: #00693e; } .contradicts { color: #b00020; }
.consistent-with-no-effect { color: #555; } .not-run-at-this-scale { color: #7a5200; font-style: italic; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; overflow-wrap: anywhere; }
thead th { vertical-align: bottom; } thead button { font-weight: 600; } thead button::after { content: " ↕"; color: #999; }
th[aria-sort=ascending] button::after { content: " ↑"; color: inherit; }
th[aria-sort=descending] button::after { content: " ↓"; color: inherit; }
tbody th { font-weight: 400; white-space: normal; min-width: 5rem; position: sticky; left: 0; background: #fff; }
tbody th button { text-align: left; text-decoration: underline; color: #00508a; min-width: 2.75rem; }
td.word, th.word { text-align: left; } .sortable td.word { white-space: normal; min-width: 5rem; }
table.sortable { font-size: .9rem; }
.sortable th, .sortable td { padding: .25rem .4rem; }
.interval { width: 8.25rem; height: 1.15rem; display: block; margin-left: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: .5rem; }
.plots figure, dialog figure { margin: 0; } svg text { font: 11px system-ui, sans-serif; fill: #444; }
.point { cursor: pointer; outline: none; } .point:focus circle, .point.told circle { fill: #0072b233; stroke: #0072b2; }
.told-of { min-height: 3.2em; position: sticky; bottom: 0; background: #fff; color: #444; margin: 0; padding: .3rem 0; }
.told-of button { color: #00508a; text-decoration: underline; padding: .2rem .4rem; }
.key svg { width: 1rem; height: 1rem; vertical-align: -.15rem; } .key span { margin-right: 1rem; white-space: nowrap; }
img { max-width: 100%; height: auto; } .surface { width: 9rem; image-rendering: pixelated; display: block; }
dialog { width: min(60rem, 100%); max-width: 100%; max-height: 96%; box-sizing: border-box; border: 1px solid #999; }
dialog::backdrop { background: #0006; } .charts { display: flex; flex-wrap: wrap; gap: .5rem; }
.charts figure { flex: 1 1 16rem; }
.close { float: right; position: sticky; top: 0; background: #fff; border: 1px solid #999; padding: .3rem .8rem; }
summary { cursor: pointer; padding: .4rem 0; }
@media (min-width: 40rem) { dialog dl { display: grid; grid-template-columns: 14rem 1fr; } dialog dd { margin: 0; } }
@media (max-width: 40rem), (pointer: coarse) {
  nav li { margin: 0; } nav a { display: inline-block; padding: .7rem 0; }
  thead button, tbody th button, .told-of button, .close { display: inline-block; min-height: 2.75rem; }
  summary { min-height: 2rem; } tbody th { max-width: 9.5rem; }
  .sortable :is(th, td):nth-child(2), .sortable :is(th, td):nth-child(3) { display: none; }
  [data-place]::after { content: attr(data-place); display: block; font-size: .8rem; color: #555; }
}
"""
SCRIPT = """
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const fill = (node, about, inside) => {
    Object.entries(about).forEach(([name, value]) => node.setAttribute(name, value));
    node.append(...inside);
    return node;
  };
  const make = (tag, about = {}, ...inside) => fill(document.createElement(tag), about, inside);
  const draw = (tag, about = {}, ...inside) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), about, inside);

  // -- tables: a click on a heading sorts up, then down, then as it was; what has no number comes last
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], first = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, n) => head.querySelector("button").addEventListener("click", () => {
      const next = {none: "ascending", ascending: "descending", descending: "none"}[head.getAttribute("aria-sort")];
      heads.forEach(other => other.setAttribute("aria-sort", other === head ? next : "none"));
      const way = next === "descending" ? -1 : 1;
      const compare = "number" in head.dataset
        ? (a, b) => {
            const [x, y] = [a, b].map(row => row.cells[n].dataset.value);
            return x === undefined || y === undefined ? (x === undefined) - (y === undefined) : way * (x - y);
          }
        : (a, b) => way * a.cells[n].textContent.localeCompare(b.cells[n].textContent, "en", {numeric: true});
      body.append(...(next === "none" ? first : [...first].sort(compare)));
    }));
  }

  // -- points of a plot: hover, tap or focus tells one, arrow keys go to the next, Enter opens its runs
  for (const plots of document.querySelectorAll(".plots")) {
    const said = plots.nextElementSibling;
    const tell = point => {
      plots.querySelectorAll(".told").forEach(other => other.classList.remove("told"));
      point.classList.add("told");
      said.replaceChildren(point.getAttribute("aria-label") + " ",
        make("button", {type: "button", "data-cell": point.dataset.point}, "Its runs"));
    };
    for (const plot of plots.querySelectorAll("svg")) {
      const points = [...plot.querySelectorAll(".point")];
      points.forEach((point, n) => {
        for (const when of ["pointerenter", "click", "focus"]) point.addEventListener(when, () => tell(point));
        point.addEventListener("keydown", event => {
          const step = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1}[event.key];
          const other = points[n + step];
          if (event.key === "Enter" || event.key === " ") open(point.dataset.point);
          else if (other) { point.tabIndex = -1; other.tabIndex = 0; other.focus(); }
          else if (!step) return;
          event.preventDefault();
        });
      });
    }
  }

  // -- a cell and its runs
  const dialog = document.querySelector("dialog");
  document.addEventListener("click", event => {
    const asked = event.target.closest("[data-cell]");
    if (asked) open(asked.dataset.cell);
    else if (event.target === dialog) dialog.close();
  });

  const grid = pairs => make("div", {class: "wide"}, make("table", {}, make("tbody", {}, ...pairs.map(pair =>
    make("tr", {}, ...pair.map(text => make("td", {class: "word"}, text)))))));

  function chart(label, lines) {
    const [width, height, left, below] = [320, 180, 52, 24];
    const points = lines.flatMap(line => line.points);
    const span = n => {
      const all = points.map(point => point[n]), low = Math.min(...all), high = Math.max(...all);
      return low === high ? [low, low + 1] : [low, high];
    };
    const [[x0, x1], [y0, y1]] = [span(0), span(1)];
    const x = value => left + (width - left - 12) * (value - x0) / (x1 - x0);
    const y = value => height - below - (height - below - 10) * (value - y0) / (y1 - y0);
    const text = (words, x, y, anchor) => draw("text", {x, y, "text-anchor": anchor}, words);
    const round = value => String(Number(value.toPrecision(3)));
    const drawn = lines.map(({points, ours}) => draw("polyline", {
      points: points.map(point => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" "), fill: "none",
      stroke: ours ? "#d55e00" : "#666", "stroke-width": 1.5, "stroke-dasharray": ours ? "none" : "4 3",
    }));
    return make("figure", {}, make("figcaption", {}, label),
      draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label} by epoch`},
        draw("path", {d: `M${left} 10V${height - below}H${width - 12}`, fill: "none", stroke: "#999"}),
        text(round(y1), left - 5, 18, "end"), text(round(y0), left - 5, height - below, "end"),
        text(round(x0), left, height - 8, "start"), text(`epoch ${round(x1)}`, width - 12, height - 8, "end"), ...drawn));
  }

  function charts(runs, base) {
    return Object.entries(data.curves).flatMap(([name, label]) => {
      const lines = [...base.map(run => [run, false]), ...runs.map(run => [run, true])].flatMap(([run, ours]) => {
        const points = (run.curves?.[name] ?? []).map((value, n) => [run.epochs[n], value]).filter(p => p[1] !== null);
        return points.length ? [{points, ours}] : [];
      });
      return lines.some(line => line.ours) ? [chart(label, lines)] : [];
    });
  }

  function oneRun(run) {
    if (run.problem) return make("p", {class: "note"}, `${run.folder}: ${run.problem}`);
    const parts = [make("h4", {}, `Seed ${run.seed}`),
      make("ul", {}, ...run.topology.map(sentence => make("li", {}, sentence)))];
    const surface = data.surfaces[run.folder];
    if (surface) parts.push(make("figure", {}, make("img", {class: "surface", src: surface.picture, alt: "loss surface"}),
      make("figcaption", {}, `The loss around it: ${surface.told}.`)));
    parts.push(make("pre", {}, `${run.command} --out ${run.folder}`));
    return make("section", {}, ...parts);
  }

  function open(number) {
    const cell = data.cells[number], runs = cell.runs.map(n => data.runs[n]), base = cell.base.map(n => data.runs[n]);
    const shown = charts(runs, base), settings = runs.find(run => run.settings)?.settings;
    const parts = [make("form", {method: "dialog"}, make("button", {class: "close"}, "Close")),
      make("h3", {id: "cell-title"}, cell.title),
      make("dl", {}, ...cell.facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]))];
    if (cell.values.length) parts.push(make("h4", {}, cell.counted), grid(cell.values));
    if (shown.length) parts.push(make("h4", {}, "Curves"), make("div", {class: "charts"}, ...shown), make("p",
      {class: "note"}, "Each run of this cell" + (base.length ? "; dashed and grey, those of plain training." : ".")));
    if (runs.length) parts.push(make("h4", {}, "Runs, and the commands that repeat them"), ...runs.map(oneRun));
    if (cell.command) parts.push(make("h4", {}, "The place in its table, again"), make("pre", {}, cell.command));
    if (settings) parts.push(make("details", {}, make("summary", {}, "Configuration, resolved"),
      grid(Object.entries(settings))));
    dialog.replaceChildren(...parts);
    dialog.showModal();
    dialog.scrollTop = 0;
  }
})();
"""
