"use strict";
// Sorts a table by a column: click, or Tab to the column's name and press Enter or Space.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    while (head.firstChild) button.append(head.firstChild);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => (row.cells[place] ? row.cells[place].textContent.trim() : "");
      const number = (text) => parseFloat(text.replace(/[\u202f ]/g, "").replace("\u2212", "-").replace(/^[<>]/, "").replace(/^\./, "0."));
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => row.cells.length > 1);
        rows.sort((one, two) => {
          const [a, b] = [key(one), key(two)], [x, y] = [number(a), number(b)];
          const order = Number.isNaN(x) || Number.isNaN(y) ? (Number.isNaN(x) - Number.isNaN(y)) || a.localeCompare(b) : x - y;
          return down ? -order : order;
        });
        body.append(...rows);
      }
    });
  });
}
