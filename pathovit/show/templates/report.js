// Filter, sort and zoom. The page says everything without it, too.
"use strict";
const table = document.querySelector("#slides tbody");
const rows = Array.from(table.rows);
const words = document.querySelector("#words");
const count = document.querySelector("#count");
const chips = Array.from(document.querySelectorAll(".state"));

function show() {
  const asked = words.value.trim().toLowerCase().split(/\s+/);
  const states = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.state);
  const sections = new Set();
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = asked.every((word) => text.includes(word)) && (!states.length || states.includes(row.dataset.state));
    row.hidden = !fits;
    if (fits) sections.add(row.dataset.slide);
    shown += fits;
  }
  for (const row of rows) {
    const section = document.getElementById(row.dataset.slide); // a slide that was given twice has two rows, and one of these
    if (section) section.hidden = !sections.has(row.dataset.slide);
  }
  count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
}

words.addEventListener("input", show);
for (const chip of chips) {
  chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    show();
  });
}

// A column, up and then down, and then in the order of predictions.csv again; what has no value comes last.
for (const head of document.querySelectorAll("#slides th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentElement;
    const next = { none: "ascending", ascending: "descending", descending: "none" }[cell.getAttribute("aria-sort")];
    for (const other of cell.parentElement.cells) other.setAttribute("aria-sort", "none");
    cell.setAttribute("aria-sort", next);
    const value = (row) => {
      const own = row.cells[cell.cellIndex]; // the reason of a slide that failed lies across the columns
      return own && own.colSpan === 1 ? own.textContent.trim() : "";
    };
    const sign = next === "descending" ? -1 : 1;
    const sorted = next === "none" ? rows : rows.slice().sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
      const [m, n] = [Number(x), Number(y)];
      return sign * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, undefined, { numeric: true }) : m - n);
    });
    table.append(...sorted);
    document.querySelector("#slides").classList.toggle("sorted", next !== "none");
  });
}

// A picture at its full size, under the pointer; a click or Escape puts it back.
for (const picture of document.querySelectorAll("img.overview")) {
  picture.addEventListener("click", (event) => {
    const frame = picture.parentElement;
    const box = picture.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const large = frame.classList.toggle("large");
    if (!large) return;
    const now = picture.getBoundingClientRect();
    frame.scrollTo(x * now.width - frame.clientWidth / 2, y * now.height - frame.clientHeight / 2);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const frame of document.querySelectorAll(".large")) frame.classList.remove("large");
});
