// Surfaces to turn by hand: those of one group share one scale, and all on the page turn together.
(() => {
  const views = [...document.querySelectorAll(".views")].flatMap(group => {
    const {low, high, colors, surfaces} = JSON.parse(group.querySelector("script").textContent);
    return [...group.querySelectorAll("canvas")].map((canvas, n) => ({canvas, low, high, colors, ...surfaces[n]}));
  });
  let turn = 0.7, tilt = 0.55;  // shared, so that all are seen from one side

  function draw({canvas, low, high, colors, grid, heights}) {
    const size = canvas.clientWidth, dots = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = canvas.height = size * dots;
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    const reach = grid[grid.length - 1], unit = size / 3.4;
    const [c, s, up, inward] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
    const share = z => (z - low) / (high - low || 1);
    const at = (x, y, z) => {
      const across = (x * c - y * s) / reach, away = (x * s + y * c) / reach;
      return [size / 2 + unit * across, size * 0.62 - unit * (away * inward + (z - 0.3) * up), away];
    };
    const points = heights.map((row, i) => row.map((z, j) => at(grid[i], grid[j], 1.6 * share(z))));
    const line = (...ends) => {
      pen.beginPath();
      ends.forEach(([x, y], n) => n ? pen.lineTo(x, y) : pen.moveTo(x, y));
      pen.stroke();
    };
    pen.strokeStyle = "#999";
    const corners = [[-1, -1], [-1, 1], [1, 1], [1, -1]].map(([x, y]) => [x * reach, y * reach]);
    line(...[...corners, corners[0]].map(([x, y]) => at(x, y, 0)));
    const post = corners.reduce((a, b) => at(...a, 0)[0] < at(...b, 0)[0] ? a : b);  // at the left
    line(at(...post, 0), at(...post, 1.6));
    const quads = [];
    for (let i = 0; i + 1 < points.length; i++) for (let j = 0; j + 1 < points.length; j++) {
      const around = [points[i][j], points[i + 1][j], points[i + 1][j + 1], points[i][j + 1]];
      const z = (heights[i][j] + heights[i + 1][j] + heights[i + 1][j + 1] + heights[i][j + 1]) / 4;
      quads.push([around[0][2] + around[2][2], around, z]);
    }
    quads.sort((a, b) => b[0] - a[0]);  // far ones first
    for (const [, around, z] of quads) {
      pen.fillStyle = pen.strokeStyle = colors[Math.round((colors.length - 1) * share(z))];
      pen.beginPath();
      around.forEach(([x, y], n) => n ? pen.lineTo(x, y) : pen.moveTo(x, y));
      pen.closePath(); pen.fill(); pen.stroke();
    }
    pen.fillStyle = "#333"; pen.font = "12px system-ui, sans-serif";
    for (const [z, height] of [[low, 0], [high, 1.6]]) {
      const [x, y] = at(...post, height);
      pen.fillText(z.toPrecision(3), Math.max(2, x - 34), y + 4);
    }
  }

  const all = () => views.forEach(draw);
  const move = (dx, dy) => {
    turn -= 0.01 * dx;
    tilt = Math.min(1.55, Math.max(0.02, tilt + 0.01 * dy));
    requestAnimationFrame(all);
  };
  for (const {canvas} of views) {
    canvas.addEventListener("pointerdown", e => canvas.setPointerCapture(e.pointerId));
    canvas.addEventListener("pointermove", e => e.buttons && move(e.movementX, e.movementY));
    canvas.addEventListener("keydown", e => {
      const step = {ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10]}[e.key];
      if (step) { e.preventDefault(); move(...step); }
    });
  }
  window.addEventListener("resize", all);
  all();
})();
