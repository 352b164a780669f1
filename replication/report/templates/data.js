// The page's state, and its data: each figure's CSV as its link holds it, and how an arm looks everywhere.
const told = JSON.parse(document.getElementById("page-data").textContent);
const state = { convention: Object.keys(told.conventions)[0], head: "", arm: "", place: 0 };
const tables = {};

/** The rows of a figure's CSV, numbers as such; none where the page has no such data. */
function rowsOf(name) {
  return (tables[name] ??= parsed(document.getElementById(`csv-${name}`)?.href ?? ""));
}

function parsed(uri) {
  const cells = (line) =>
    [...line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)].map(
      ([, quoted, bare]) => quoted?.replaceAll('""', '"') ?? bare,
    );
  const [head, ...lines] = decodeURIComponent(uri.slice(uri.indexOf(",") + 1))
    .trim()
    .split("\n")
    .map(cells);
  const value = (text) => (text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text));
  return lines.map((line) => Object.fromEntries(line.map((text, place) => [head[place], value(text)])));
}

const isShown = (arm) => !told.arms[arm].head || !state.head || told.arms[arm].head === state.head;
const label = (arm) => told.arms[arm].label;
const counting = () => told.words[state.convention];
const times = (row) => `${row[state.convention].toFixed(2)}×`; // of a CSV that has it under every convention
const signed = (value) => `${value < 0 ? "" : "+"}${value.toFixed(3)}`;
const colour = (arm) => told.arms[arm].colour;

/** How an arm looks, in a legend as in a figure. */
function sign(arm) {
  const { marker, head } = told.arms[arm];
  return {
    name: label(arm),
    colour: colour(arm),
    shape: marker,
    hollow: head === "dense",
    dash: head === "dense" ? "6 4" : undefined,
  };
}

/** Rows by the value of a column, in order, of arms that are shown. */
function grouped(list, key = "arm") {
  const groups = new Map();
  for (const row of list)
    if (!row.arm || isShown(row.arm)) groups.set(row[key], [...(groups.get(row[key]) ?? []), row]);
  return groups;
}

/** As many panels side by side as there is room for; all there before any is drawn, so that each knows its width. */
function panels(host, number, least = "26rem") {
  host.style.setProperty("--least", number === 1 ? "100%" : least);
  const made = Array.from({ length: number }, () =>
    Object.assign(document.createElement("div"), { className: "panel" }),
  );
  host.append(...made);
  return made;
}

/** Arms, and the phases behind their lines where there are any. */
function legendOf(host, arms, behind = []) {
  legend(host, [...arms].map(sign));
  const named = behind.filter((phase) => phase.name in told.phases);
  if (named.length)
    legend(
      host,
      named.map((phase) => ({ ...phase, name: `MST's ${phase.name}`, shade: true })),
    );
}

/** MST's phases behind the lines, of the MST that is shown, or of the one run. */
function shades(arm = rowsOf("schedules").find((row) => row.arm.startsWith("mst") && isShown(row.arm))?.arm) {
  const found = [];
  for (const { phase, step } of rowsOf("schedules").filter((row) => row.arm === arm)) {
    const last = found.at(-1);
    if (last?.name === phase) last.to = step;
    else found.push({ name: phase, from: last?.to ?? 0, to: step, colour: told.phases[phase] ?? "none" });
  }
  return found;
}

function line(arm, points, more = {}) {
  return { ...sign(arm), points, width: arm.startsWith("mst") ? 2.4 : 1.7, ...more };
}

const end = (arm, [x, y]) => ({
  x,
  y,
  shape: sign(arm).shape,
  hollow: sign(arm).hollow,
  size: 5,
  said: `${label(arm)}: ${number(y)}`,
});
const flopsAxis = () => ({ name: `training FLOPs (${counting()})`, form: count, min: 0 });
