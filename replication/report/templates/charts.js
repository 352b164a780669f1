// Charts as inline SVG: lines and points over two axes, and rows of bars or marks. They know no arm and no figure.
const MARKS = {
  o: "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z",
  s: "M-.85-.85H.85V.85H-.85Z",
  D: "M0-1.15L1.15 0 0 1.15-1.15 0Z",
  "^": "M0-1.1L1.1.85H-1.1Z",
  v: "M0 1.1L1.1-.85H-1.1Z",
  "<": "M-1.1 0L.85 1.1V-1.1Z",
  ">": "M1.1 0L-.85 1.1V-1.1Z",
  p: "M0-1.1L1.05-.34.65.89H-.65L-1.05-.34Z",
  d: "M0-1.25L.7 0 0 1.25-.7 0Z",
  "*": "M0-1.35L.32-.44 1.28-.42.52.17.79 1.09 0 .55-.79 1.09-.52.17-1.28-.42-.32-.44Z",
  P: "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
  h: "M0-1.1L.95-.55V.55L0 1.1-.95.55V-.55Z",
  X: "M-1-.45L-.45-1 0-.55.45-1 1-.45.55 0 1 .45.45 1 0 .55-.45 1-1 .45-.55 0Z",
};
const ruler = document.createElement("canvas").getContext("2d");
ruler.font = "12px system-ui, sans-serif"; // as in the style sheet

function node(parent, name, attributes = {}, text = undefined) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** An empty picture as wide as its panel; `label` is its alternative text. */
function canvas(panel, height, label) {
  const width = Math.max(240, Math.round(panel.clientWidth));
  return [node(panel, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }), width];
}

/** Round values from low to high, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((value) => value >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => Number(((first + place) * step).toPrecision(12)));
}

/** Round values from low to high, each at least twice the one before, `count` of them at most. */
function doublings(low, high, count) {
  const decades = Array.from({ length: 2 + Math.floor(Math.log10(high / low)) }, (_, place) => place);
  const first = 10 ** Math.floor(Math.log10(low));
  const found = decades
    .flatMap((decade) => [1, 2, 5].map((digit) => Number((digit * first * 10 ** decade).toPrecision(12))))
    .filter((value) => value >= low && value <= high);
  return found.length > 1 ? found.slice(0, count) : ticks(low, high, Math.min(3, count));
}

/** Pixels that the widest of some texts takes. */
function widest(texts) {
  return Math.ceil(Math.max(0, ...texts.map((text) => ruler.measureText(text).width)));
}

function number(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: true });
}

function percent(value) {
  return `${Number((value * 100).toPrecision(3))} %`;
}

/** A count with the prefix of its thousands: 2.01 T is 2.01e12. */
function count(value) {
  const power = value > 0 ? Math.min(7, Math.max(0, Math.floor(Math.log10(value * 1.0001) / 3))) : 0;
  return `${Number((value / 1000 ** power).toPrecision(3))}${power ? ` ${"kMGTPEZ"[power - 1]}` : ""}`;
}

function mark(parent, shape, x, y, radius, colour, hollow, said) {
  const paint = hollow
    ? { fill: "var(--ground)", stroke: colour, "stroke-width": 2 }
    : { fill: colour, stroke: "var(--ground)", "stroke-width": 1 };
  const place = {
    d: MARKS[shape],
    transform: `translate(${x} ${y}) scale(${radius})`,
    "vector-effect": "non-scaling-stroke",
  };
  const made = node(parent, "path", { ...place, ...paint });
  if (said) node(made, "title", {}, said);
  return made;
}

function extent(values, { min, max, pad = 0.05, log }) {
  const low = min ?? Math.min(...values);
  const high = max ?? Math.max(...values);
  if (log) return [low / (high / low || 1) ** pad, high * (high / low || 1) ** pad];
  const room = (high - low || 1) * pad;
  return [min ?? low - room, max ?? high + room];
}

/**
 * Lines, bands and marks over two axes.
 * spec: title, alt; x, y: {name, form, min, max}, x logarithmic where it has `log`; shades: [{from, to, name, colour}]; cursor: an x;
 * series: [{name, colour, dash, width, stepped, points: [[x, y]], band: [[x, low, high]],
 *   marks: [{x, y, shape, size, hollow, said}]}].
 */
function lines(panel, spec) {
  const height = spec.height ?? 296;
  const [svg, width] = canvas(panel, height, `${spec.title}. ${spec.alt}`);
  const every = spec.series
    .flatMap((one) => [
      ...(one.points ?? []),
      ...(one.marks ?? []).map(({ x, y }) => [x, y]),
      ...(one.band ?? []).flatMap(([x, low, high]) => [
        [x, low],
        [x, high],
      ]),
    ])
    .filter(([, y]) => Number.isFinite(y));
  if (!every.length) {
    node(svg, "text", { x: 8, y: 40 }, "Nothing to show for these arms.");
    return;
  }
  const [left, right] = extent(
    every.map(([x]) => x),
    { pad: 0, ...spec.x },
  );
  const [low, high] = extent(
    every.map(([, y]) => y),
    spec.y,
  );
  const yTicks = ticks(low, high, 5);
  const form = spec.y.form ?? number;
  const inner = { left: 10 + widest(yTicks.map(form)), top: 46, right: width - 22, bottom: height - 40 };
  const along = spec.x.log ? Math.log : Number;
  const x = (value) =>
    inner.left + ((inner.right - inner.left) * (along(value) - along(left))) / (along(right) - along(left) || 1);
  const y = (value) => inner.bottom - ((inner.bottom - inner.top) * (value - low)) / (high - low || 1);
  node(svg, "text", { x: 0, y: 14, class: "title" }, spec.title);
  node(svg, "text", { x: 0, y: 30, class: "quiet" }, spec.y.name);
  for (const shade of spec.shades ?? []) {
    const area = {
      x: x(Math.max(left, shade.from)),
      y: inner.top,
      width: x(Math.min(right, shade.to)) - x(Math.max(left, shade.from)),
      height: inner.bottom - inner.top,
    };
    node(node(svg, "rect", { ...area, fill: shade.colour, class: "shade" }), "title", {}, shade.name);
  }
  for (const tick of yTicks) {
    node(svg, "line", { x1: inner.left, x2: inner.right, y1: y(tick), y2: y(tick), class: "grid" });
    node(svg, "text", { x: inner.left - 5, y: y(tick) + 4, "text-anchor": "end" }, form(tick));
  }
  axis(svg, x, inner, left, right, spec.x);
  const clip = `clip-${++lines.made}`;
  node(node(svg, "clipPath", { id: clip }), "rect", {
    x: inner.left - 6,
    y: inner.top - 6,
    width: inner.right - inner.left + 12,
    height: inner.bottom - inner.top + 7,
  });
  const plot = node(svg, "g", { "clip-path": `url(#${clip})` });
  for (const one of spec.series)
    if (one.band) {
      const there = one.band.map(([at, , top]) => `${x(at)} ${y(top)}`);
      const back = one.band.map(([at, bottom]) => `${x(at)} ${y(bottom)}`).reverse();
      node(plot, "path", { d: `M${[...there, ...back].join("L")}Z`, fill: one.colour, opacity: 0.18 });
    }
  for (const one of spec.series)
    if (one.points?.length) {
      const path = one.points.map(([at, value], place) =>
        one.stepped && place ? `V${y(value)}H${x(at)}` : `${place ? "L" : "M"}${x(at)} ${y(value)}`,
      );
      const style = {
        stroke: one.colour,
        "stroke-width": one.width ?? 1.8,
        "stroke-dasharray": one.dash,
        opacity: one.opacity,
      };
      node(node(plot, "path", { d: path.join(""), fill: "none", ...style }), "title", {}, one.name);
    }
  for (const one of spec.series)
    for (const each of one.marks ?? []) {
      mark(
        plot,
        each.shape,
        x(each.x),
        y(each.y),
        each.size ?? 5,
        one.colour,
        each.hollow,
        each.said ?? one.name,
      ).setAttribute("opacity", each.opacity ?? 1);
    }
  if (spec.cursor !== undefined)
    node(svg, "line", {
      x1: x(spec.cursor),
      x2: x(spec.cursor),
      y1: inner.top,
      y2: inner.bottom,
      stroke: "var(--ink)",
      "stroke-width": 2,
    });
}
lines.made = 0;

function axis(svg, x, inner, left, right, { name, form = number, log }) {
  const room = Math.max(2, Math.floor((inner.right - inner.left) / 75));
  const shown = log ? doublings(left, right, room) : ticks(left, right, room);
  for (const tick of shown)
    node(svg, "text", { x: x(tick), y: inner.bottom + 16, "text-anchor": "middle" }, form(tick));
  node(svg, "line", { x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom, stroke: "var(--faint)" });
  node(
    svg,
    "text",
    { x: (inner.left + inner.right) / 2, y: inner.bottom + 33, "text-anchor": "middle", class: "quiet" },
    name,
  );
}

/**
 * A row for each thing: parts of a bar, marks, an interval, and a note. Where it is narrow, names stand above bars.
 * spec: title, alt; x: {name, form, min, max}; guides: [{x, name}]; band: [from, to];
 * rows: [{name, note, interval: [low, high], parts: [{from, to, colour, name}],
 *   marks: [{x, shape, colour, hollow, size, said}]}].
 */
function rows(panel, spec) {
  const room = (key) => widest(spec.rows.map((row) => row[key] ?? ""));
  const narrow = panel.clientWidth - room("name") - room("note") < 200;
  const tall = narrow ? 38 : 24;
  const bar = 14;
  const height = 24 + tall * spec.rows.length + 44;
  const [svg, width] = canvas(panel, height, `${spec.title}. ${spec.alt}`);
  node(svg, "text", { x: 0, y: 14, class: "title" }, spec.title);
  if (!spec.rows.length) {
    node(svg, "text", { x: 8, y: 40 }, "Nothing to show for these arms.");
    return;
  }
  const inner = {
    left: narrow ? 14 : room("name") + 10,
    right: width - (narrow ? 22 : Math.max(22, room("note") + 10)),
    top: 24,
    bottom: height - 44,
  };
  const values = spec.rows.flatMap((row) => [
    ...(row.parts ?? []).flatMap(({ from, to }) => [from, to]),
    ...(row.marks ?? []).map((one) => one.x),
    ...(row.interval ?? []),
  ]);
  const [left, right] = extent([...values, ...(spec.guides ?? []).map((guide) => guide.x)], spec.x);
  const x = (value) =>
    inner.left + ((inner.right - inner.left) * (Math.min(right, Math.max(left, value)) - left)) / (right - left || 1);
  if (spec.band)
    node(svg, "rect", {
      x: x(spec.band[0]),
      width: x(spec.band[1]) - x(spec.band[0]),
      y: inner.top,
      height: inner.bottom - inner.top,
      fill: "var(--band)",
      opacity: 0.6,
    });
  for (const guide of spec.guides ?? []) {
    const line = node(svg, "line", {
      x1: x(guide.x),
      x2: x(guide.x),
      y1: inner.top,
      y2: inner.bottom,
      stroke: "var(--ink)",
      "stroke-dasharray": guide.dash,
    });
    if (guide.name) node(line, "title", {}, guide.name);
  }
  spec.rows.forEach((row, place) => {
    const top = inner.top + place * tall;
    const middle = top + (narrow ? 26 : 12);
    node(
      svg,
      "text",
      narrow ? { x: inner.left, y: top + 14 } : { x: inner.left - 8, y: middle + 4, "text-anchor": "end" },
      row.name,
    );
    if (row.marks) node(svg, "line", { x1: inner.left, x2: inner.right, y1: middle, y2: middle, class: "grid" });
    for (const part of row.parts ?? []) {
      const [from, to] = [part.from, part.to].sort((a, b) => a - b);
      const made = node(svg, "rect", {
        x: x(from),
        width: Math.max(0, x(to) - x(from)),
        y: middle - bar / 2,
        height: bar,
        fill: part.colour,
      });
      node(made, "title", {}, part.name ?? row.name);
    }
    if (row.interval) {
      const [from, to] = row.interval.map(x);
      const d = `M${from} ${middle}H${to}M${from} ${middle - 4}v8M${to} ${middle - 4}v8`;
      node(svg, "path", { d, stroke: "var(--ink)", "stroke-width": 1.5 });
    }
    for (const one of row.marks ?? [])
      mark(svg, one.shape, x(one.x), middle, one.size ?? 4, one.colour, one.hollow, one.said);
    if (row.note)
      node(
        svg,
        "text",
        narrow ? { x: inner.right, y: top + 14, "text-anchor": "end" } : { x: inner.right + 8, y: middle + 4 },
        row.note,
      );
  });
  axis(svg, x, inner, left, right, spec.x);
}

/**
 * A table of heat: the darker a cell, the larger its value, in [low, high].
 * spec: title, alt, columns: [name], chosen: a column's place, form;
 * low, high, bold: from where on; rows: [{name, values}].
 */
function heat(panel, spec) {
  const [tall, top] = [22, 72];
  const [svg, width] = canvas(panel, top + tall * spec.rows.length + 6, `${spec.title}. ${spec.alt}`);
  node(svg, "text", { x: 0, y: 14, class: "title" }, spec.title);
  const left = widest(spec.rows.map((row) => row.name)) + 10;
  const cell = Math.min(96, (width - left - 2) / spec.columns.length);
  const middle = (place) => left + (place + 0.5) * cell;
  spec.columns.forEach((name, place) =>
    name
      .split(/,? /)
      .forEach((word, line) =>
        node(svg, "text", { x: middle(place), y: 34 + 15 * line, "text-anchor": "middle", class: "quiet" }, word),
      ),
  );
  spec.rows.forEach((row, place) => {
    const y = top + place * tall;
    node(svg, "text", { x: left - 8, y: y + 15, "text-anchor": "end" }, row.name);
    row.values.forEach((value, at) => {
      const share = Math.min(1, Math.max(0, (value - spec.low) / (spec.high - spec.low)));
      const area = { x: left + at * cell + 1, y: y + 1, width: cell - 2, height: tall - 2 };
      node(svg, "rect", { ...area, fill: "var(--heat)", opacity: share.toFixed(3) });
      const style = { x: middle(at), y: y + 15, "text-anchor": "middle", "font-weight": value >= spec.bold ? 700 : 400 };
      node(svg, "text", { ...style, class: "cell" }, spec.form(value));
    });
  });
  const frame = { x: left + spec.chosen * cell, y: top - 1, width: cell, height: tall * spec.rows.length + 2 };
  node(svg, "rect", { ...frame, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5 });
}

/** Names beside their signs: [{name, colour, shape, hollow, dash, shade}]; without a shape and a dash a square, for an area. */
function legend(host, entries) {
  const list = Object.assign(document.createElement("ul"), { className: "legend" });
  for (const { name, colour, shape, hollow, dash, shade } of entries) {
    const item = document.createElement("li");
    const sign = node(item, "svg", { viewBox: "0 0 30 16", "aria-hidden": "true" });
    if (shape || dash !== undefined) {
      node(sign, "line", {
        x1: 0,
        x2: 30,
        y1: 8,
        y2: 8,
        stroke: colour,
        "stroke-width": 2.5,
        "stroke-dasharray": dash,
      });
      if (shape) mark(sign, shape, 15, 8, 5, colour, hollow);
    } else node(sign, "rect", { x: 8, y: 1, width: 14, height: 14, fill: colour, class: shade ? "shade" : undefined });
    item.append(name);
    list.append(item);
  }
  host.append(list);
}
