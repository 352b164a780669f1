// What the reader does: switches, sorting, the slider through a run, light and dark.
const byId = (id) => document.getElementById(id);
const every = (selector) => [...document.querySelectorAll(selector)];

/** Draw figures anew: those whose names are given, or all. */
function draw(names = Object.keys(DRAW)) {
  for (const host of every("[data-figure]").filter((one) => names.includes(one.dataset.figure))) {
    host.replaceChildren();
    DRAW[host.dataset.figure](host, host.dataset.alt);
  }
}

/** Show what the switches say: × and titles of one convention, arms and verdicts of one reading. */
function apply() {
  for (const element of every("[data-convention], [data-head]")) {
    const { convention, head } = element.dataset;
    element.hidden = Boolean(
      (convention && convention !== state.convention) || (head && state.head && head !== state.head),
    );
  }
  for (const option of byId("run-arm").options) option.hidden = option.disabled = !isShown(option.value);
  const open = [...byId("run-arm").options].filter((option) => !option.disabled);
  if (!isShown(byId("run-arm").value))
    byId("run-arm").value = (open.find(({ value }) => value.startsWith("mst")) ?? open[0])?.value;
  const costs = grouped(rowsOf("conventions").filter((row) => row.scale === "as run" && row.arm.startsWith("mst")));
  byId("said").textContent =
    `${counting()}: ${[...costs].map(([arm, [row]]) => `${label(arm)} ${times(row)}`).join(", ")}`;
  choose();
  draw();
}

/** Another run: its steps on the slider, its tables and pictures. */
function choose() {
  state.arm = byId("run-arm").value;
  state.steps = rowsOf("schedules").filter((row) => row.arm === state.arm);
  byId("step").max = state.steps.length - 1;
  if (state.place >= state.steps.length) byId("step").value = state.place = state.steps.length - 1;
  for (const element of every("[data-run]")) element.hidden = element.dataset.run !== state.arm;
  move();
}

/** Another step of the run: what it says, and where the cursor stands. */
function move() {
  state.place = Number(byId("step").value);
  const row = state.steps[state.place];
  if (!row) return;
  const cost = rowsOf("flops_by_step").find((one) => one.arm === state.arm && one.step === row.step)[state.convention];
  const scored = state.steps.slice(0, state.place + 1).findLast((one) => one.validation_loss !== null);
  const words = [
    `${label(state.arm)}, step ${row.step} of ${state.steps.at(-1).step}: ${row.phase}`,
    `sparsity ${percent(row.sparsity)}`,
    `loss ${row.loss.toFixed(3)}`,
    scored ? `validation loss ${scored.validation_loss.toFixed(3)} at step ${scored.step}` : "not validated yet",
    `${row.attention_pattern} attention`,
    `drop fraction ${percent(row.drop_fraction)}`,
    `${count(cost)} FLOPs so far (${counting()})`,
  ];
  byId("at-step").textContent = `${words.join("; ")}.`;
  byId("step").setAttribute("aria-valuetext", words.slice(0, 3).join("; "));
  drawStep(row);
}

function drawStep(row) {
  const host = byId("run-drawing");
  const shade = shades(state.arm);
  const own = sign(state.arm);
  const x = { name: "step", min: 0 };
  host.replaceChildren();
  const places = panels(host, 3, "20rem");
  const alt = `${label(state.arm)}, at step ${row.step}.`;
  const losses = {
    ...own,
    dash: undefined,
    points: state.steps.map((one) => [one.step, one.loss]),
    marks: state.steps
      .filter((one) => one.validation_loss !== null)
      .map((one) => ({
        ...end(state.arm, [one.step, one.validation_loss]),
        said: `validation loss ${number(one.validation_loss)}`,
      })),
  };
  lines(places[0], {
    title: "Loss (marks: validation)",
    alt,
    height: 340,
    x,
    y: { name: "nats per token" },
    shades: shade,
    series: [losses],
    cursor: row.step,
  });
  const sparsity = { ...own, dash: undefined, points: state.steps.map((one) => [one.step, one.sparsity]) };
  lines(places[1], {
    title: "Sparsity of the maskable weights",
    alt,
    height: 340,
    x,
    y: { name: "share of zeros", form: percent, min: 0, max: 1 },
    shades: shade,
    series: [sparsity],
    cursor: row.step,
  });
  const updates = rowsOf("topology_by_layer").filter((one) => one.arm === state.arm);
  const last = updates.findLast((one) => one.step <= row.step);
  const densities = last
    ? updates.filter((one) => one.step === last.step)
    : rowsOf("masks").filter((one) => one.arm === state.arm && !updates.length);
  const bars = densities.map((one) => ({
    name: one.layer,
    note: percent(one.density),
    parts: [{ from: 0, to: one.density, colour: own.colour }],
  }));
  if (bars.length)
    rows(places[2], {
      title: last ? `Density by layer after the update at step ${last.step}` : "Density by layer, the same throughout",
      alt,
      x: { name: "share of weights that are active", form: percent, min: 0, max: 1 },
      rows: bars,
    });
  else
    places[2].append(
      updates.length ? "No topology update yet." : `${label(state.arm)} has no masks: all of its weights are active.`,
    );
}

/** Sort by a column: numbers first to last, words after; the first column goes back to Table 1's order. */
function sort(table, heading) {
  const place = heading.cellIndex;
  const up = heading.getAttribute("aria-sort") !== "ascending";
  const value = (row) =>
    place ? Number.parseFloat(row.cells[place].innerText.replace("−", "-")) : Number(row.dataset.place);
  const known = (row) => !Number.isNaN(value(row));
  const text = (row) => row.cells[place].innerText;
  const order = (a, b) =>
    known(a) && known(b) ? value(a) - value(b) : known(a) - known(b) || text(a).localeCompare(text(b));
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => (up ? order(a, b) : order(b, a))));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
}

function theme() {
  return (
    document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

function tellTheme() {
  byId("theme").setAttribute("aria-pressed", String(theme() === "dark"));
  draw(["masks"]); // the only figure whose colours are not CSS variables
}

for (const id of ["convention", "head"])
  byId(id).addEventListener("change", ({ target }) => {
    state[id] = target.value;
    apply();
  });
byId("run-arm").addEventListener("change", () => {
  choose();
  draw(["topology_by_layer", "masks"]);
});
byId("step").addEventListener("input", move);
byId("all-columns").addEventListener("change", ({ target }) =>
  byId("table1-rows").classList.toggle("all", target.checked),
);
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  tellTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tellTheme);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
for (const table of every(".sortable"))
  for (const heading of table.tHead.rows[0].cells)
    heading.firstElementChild.addEventListener("click", () => sort(table, heading));
for (const swatch of every(".swatch")) {
  const { colour, shape, hollow } = sign(swatch.dataset.arm);
  mark(node(swatch, "svg", { viewBox: "0 0 30 16", "aria-hidden": "true" }), shape, 15, 8, 6, colour, hollow);
}
addEventListener("beforeprint", () =>
  every("details").forEach((one) => {
    one.open = true;
  }),
);
let seen = innerWidth;
addEventListener("resize", () => {
  if (seen !== innerWidth) {
    seen = innerWidth;
    draw();
    move();
  }
});
byId("step").value = state.place = 0;
apply();
byId("step").value = Math.floor(state.steps.length / 2);
move();
