// What the reader does: which reading of the head is shown, sorting, light and dark.
const byId = (id) => document.getElementById(id);
const every = (selector) => [...document.querySelectorAll(selector)];

/** Show the rows and verdicts of one reading, or of both. */
function choose() {
  const chosen = byId("head").value;
  for (const element of every("[data-head]"))
    element.hidden = Boolean(chosen && element.dataset.head && element.dataset.head !== chosen);
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
}

byId("head").addEventListener("change", choose);
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
addEventListener("beforeprint", () =>
  every("details").forEach((one) => {
    one.open = true;
  }),
);
tellTheme();
