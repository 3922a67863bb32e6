// The drawings of a case: error against step, where the errors are, the graph.

const CURVE = { width: 430, height: 250, left: 52, right: 14, top: 12, bottom: 42 };

// Decades from the least to the greatest, a handful of them marked.
function decades(values) {
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  const step = Math.max(1, Math.ceil((high - low) / 6));
  const marks = [];
  for (let mark = low; mark <= high; mark += step) marks.push(mark);
  return { low, high, marks };
}

function curve(ladder) {
  const rungs = ladder.map((rung) => rung.map(toNumber)).filter(([step]) => step > 0).sort((a, b) => a[0] - b[0]);
  const sizes = rungs.flatMap(([, error, bound]) => [error, bound]).filter((size) => size > 0 && Number.isFinite(size));
  if (rungs.length < 2 || !sizes.length) return null;
  const { width, height, left, right, top, bottom } = CURVE;
  const y = decades(sizes);
  const ends = [Math.log10(rungs[0][0]), Math.log10(rungs.at(-1)[0])];
  const across = (step) => left + 8 + ((Math.log10(step) - ends[0]) / (ends[1] - ends[0])) * (width - left - right - 16);
  const down = (size) => {
    const share = (Math.log10(Math.max(size, 10 ** y.low)) - y.low) / (y.high - y.low);
    return height - bottom - share * (height - top - bottom);
  };
  const line = (which, name) => {
    const points = rungs.filter((rung) => Number.isFinite(rung[which]));
    return svg("polyline", { class: name, points: points.map((rung) => `${across(rung[0])},${down(rung[which])}`).join(" ") });
  };
  const marks = y.marks.map((mark) => [
    svg("line", { class: "grid", x1: left, x2: width - right, y1: down(10 ** mark), y2: down(10 ** mark) }),
    svg("text", { x: left - 8, y: down(10 ** mark) + 4, "text-anchor": "end" }, `1e${mark}`),
  ]);
  const dots = rungs.filter((rung) => Number.isFinite(rung[1])).map(([step, error, bound]) =>
    svg("circle", { class: error > 0 ? "dot" : "dot zero", cx: across(step), cy: down(error), r: 3.5 },
      svg("title", {}, `step ${figure(step)}: error ${figure(error)}, bound ${figure(bound)}`)));
  const steps = rungs.map(([step]) =>
    svg("text", { x: across(step), y: height - bottom + 17, "text-anchor": "middle" }, figure(step)));
  const smallest = Math.min(...rungs.map((rung) => rung[1]));
  const told = `Error against step: ${rungs.length} steps, the smallest error is ${figure(smallest)}`;
  return el("figure", {}, el("h3", {}, "Error against step"),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": told },
      marks, steps, line(2, "bound"), line(1, "curve"), dots,
      svg("text", { x: (left + width) / 2, y: height - 5, "text-anchor": "middle" }, "step, relative to the input")),
    el("figcaption", {}, "Central differences: their distance from the accepted derivative, which is extrapolated from " +
      "them (line), and the bound on it (dashed)."));
}

// ---- Heat maps

// Where block `block` begins, of `size` elements in `blocks` blocks whose sizes differ by one at most.
const begin = (block, size, blocks) => block * Math.floor(size / blocks) + Math.min(block, size % blocks);

// The index of an element: of its row among all, and its column.
function indexOf(row, column, shape) {
  const index = shape.length ? [column] : [];
  for (const size of shape.slice(0, -1).reverse()) {
    index.unshift(row % size);
    row = Math.floor(row / size);
  }
  return `[${index.join(", ")}]`;
}

function heatMap(name, { shape, cells }, bound) {
  const rows = cells.length, columns = cells[0].length;
  if (rows * columns < 2) return null;
  const values = cells.map((row) => row.map(toNumber));
  const finite = values.flat().filter(Number.isFinite);
  const top = Math.max(0, ...finite);
  // What keeps its bound stays blank; above it, shades by orders of magnitude, six at most.
  const blank = Math.max(0, toNumber(bound) || 0);
  const low = Math.max(blank, top * 1e-6);
  const shade = (value) => {
    if (value <= blank) return 0;
    return top > low ? 0.2 + 0.8 * Math.max(0, Math.log(value / low) / Math.log(top / low)) : 1;
  };
  const side = Math.max(5, Math.min(20, Math.floor(360 / Math.max(rows, columns))));
  const sizes = [shape.slice(0, -1).reduce((a, b) => a * b, 1), shape.at(-1) ?? 1];
  const reduced = sizes[0] > rows || sizes[1] > columns;
  let wrong = 0;
  const squares = values.flatMap((row, i) => row.map((value, j) => {
    const isFinite = Number.isFinite(value);
    const share = isFinite ? shade(value) : 1;
    if (share > 0) wrong += 1;
    const place = indexOf(begin(i, sizes[0], rows), begin(j, sizes[1], columns), shape);
    const title = `${reduced ? "from " : ""}${place}: ${isFinite ? figure(value) : "not finite"}`;
    const size = Math.max(1, side - 1);
    return svg("rect", { class: isFinite ? "heat-top" : "heat-nan", "fill-opacity": share.toFixed(2), x: j * side,
      y: i * side, width: size, height: size }, svg("title", {}, title));
  }));
  const width = columns * side, height = rows * side;
  const told = `Errors over ${name}, shape ${shape.join(" × ")}: ${wrong} of ${rows * columns} cells above the bound`;
  return el("figure", {}, el("h3", {}, `Errors over ${name}`, ` (${shape.join(" × ")})`),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": told },
      svg("rect", { class: "heat-none", width, height }), squares),
    el("figcaption", {}, el("span", { class: "key none" }), `within the bound, ${figure(blank)}  `,
      el("span", { class: "key top" }), `up to ${figure(top)}  `,
      finite.length < rows * columns ? [el("span", { class: "key nan" }), "not finite  "] : null,
      reduced ? "A cell shows the largest error of the elements that it covers; the last axis runs across."
        : "The last axis runs across."));
}

// ---- Graphs

function edge(points) {
  let path = `M${points[0]} ${points[1]}`;
  for (let at = 2; at < points.length; at += 2) {
    const [x0, y0, x1, y1] = points.slice(at - 2, at + 2);
    const half = (y1 - y0) / 2;
    path += `C${x0} ${y0 + half} ${x1} ${y1 - half} ${x1} ${y1}`;
  }
  const [x, y] = points.slice(-2);
  return [svg("path", { class: "edge", d: path }), svg("path", { class: "tip", d: `M${x - 4} ${y - 7}h8l-4 7z` })];
}

function box([kind, name, label, detail, text, x, y, width, height], atFault) {
  const round = kind === "input" || kind === "output" ? height / 2 : 5;
  const classes = `box ${kind}${atFault && kind !== "output" && name === atFault ? " at-fault" : ""}`;
  const middle = x + width / 2;
  return svg("g", {}, svg("title", {}, text), svg("rect", { class: classes, x, y, width, height, rx: round }),
    svg("text", { class: "label", x: middle, y: y + (detail ? 17 : height / 2 + 4) }, label),
    detail ? svg("text", { x: middle, y: y + 33 }, detail) : null);
}

function graph(number, atFault) {
  const found = drawing(number);
  if (!found) return null;
  const lines = found.lines ?? found.boxes.map((one) => one[4]);
  const text = el("details", { open: Boolean(found.lines) }, el("summary", {}, "The graph as text"),
    el("pre", {}, lines.join("\n")));
  if (found.lines) return el("div", {}, el("h3", {}, "Graph"), text);
  const edges = found.edges.map(edge);
  const width = found.width + 4, height = found.height + 4;
  return el("figure", {}, el("h3", {}, "Graph"),
    el("div", { class: "graph", tabindex: 0, role: "group", "aria-label": `A graph of ${count(lines.length, "box", "boxes")}` },
      svg("svg", { viewBox: `-2 -2 ${width} ${height}`, width, height, role: "img", "aria-label": lines.join("; ") },
        edges, found.boxes.map((one) => box(one, atFault)))), text);
}
