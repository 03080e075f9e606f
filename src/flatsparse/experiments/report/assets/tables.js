// The tables sort, points of plots show their text, and cells open their runs; text is only ever put in as text.
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

  // -- points of a plot: hover, tap or focus shows one's text, arrow keys go to the next, Enter opens its runs
  for (const plots of document.querySelectorAll(".plots")) {
    const message = plots.nextElementSibling;
    const show = point => {
      plots.querySelectorAll(".shown").forEach(other => other.classList.remove("shown"));
      point.classList.add("shown");
      message.replaceChildren(point.getAttribute("aria-label") + " ",
        make("button", {type: "button", "data-cell": point.dataset.point}, "Its runs"));
    };
    for (const plot of plots.querySelectorAll("svg")) {
      const points = [...plot.querySelectorAll("[id^='point-']")];
      points.forEach((point, n) => {
        const number = point.id.slice("point-".length), mark = point.querySelector("use");
        const [cx, cy] = ["x", "y"].map(name => mark.getAttribute(name));
        fill(point, {class: "point", role: "button", tabindex: n ? -1 : 0, "data-point": number,
          "aria-label": data.cells[number].point}, []);
        point.prepend(draw("circle", {cx, cy, r: 12, fill: "transparent"}));  // large enough for a finger
        for (const when of ["pointerenter", "click", "focus"]) point.addEventListener(when, () => show(point));
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
      make("figcaption", {}, `The loss around it: ${surface.text}.`)));
    parts.push(make("pre", {}, `${run.command} --out ${run.out}`));
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
