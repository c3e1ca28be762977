"use strict";
// The list of classes sorts and filters; without this script it is a plain table. What it shows is
// read from the table's cells and data attributes: nothing is ever written as HTML.
(() => {
  const table = document.getElementById("class-table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const byName = new Intl.Collator("en", { numeric: true });
  const name = (row) => row.cells[0].textContent;
  const orders = {
    name: (a, b) => byName.compare(name(a), name(b)),
    accuracy: (a, b) => a.dataset.accuracy - b.dataset.accuracy,
    videos: (a, b) => a.dataset.videos - b.dataset.videos,
  };
  const headers = [...table.querySelectorAll("th[data-order]")];
  for (const header of headers) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = orders[header.dataset.order];
      rows.sort((a, b) => (down ? order(b, a) : order(a, b)) || byName.compare(name(a), name(b)));
      body.append(...rows);
    });
  }

  const tools = document.getElementById("class-tools");
  const filter = document.getElementById("class-filter");
  const found = document.getElementById("class-found");
  tools.hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = name(row).toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    found.textContent = filter.value.trim() ? `${shown} of ${rows.length}` : "";
  });

  // Paper cannot be unfolded.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const details of unfolded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of unfolded) details.open = false;
  });
})();
