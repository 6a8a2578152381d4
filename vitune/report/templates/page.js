"use strict";
(() => {
  const valueOf = (line, place, kind) => {
    const cell = line.cells[place];
    const value = cell.dataset.value ?? cell.textContent.trim();
    return kind === "number" ? Number(value) : value;
  };
  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const table = heading.closest("table");
      const { kind } = heading.dataset;
      const before = heading.getAttribute("aria-sort");
      const first = kind === "number" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = before === first ? second : first;
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const place = heading.cellIndex;
      const lines = [...table.tBodies[0].children].sort((one, two) => {
        const a = valueOf(one, place, kind);
        const b = valueOf(two, place, kind);
        return sign * (kind === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...lines);
    });
  }
  for (const input of document.querySelectorAll("input[data-filters]")) {
    input.parentNode.hidden = false;
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const line of document.getElementById(input.dataset.filters).tBodies[0].children) {
        line.hidden = !line.cells[0].dataset.value.toLowerCase().includes(wanted);
      }
    });
  }
  for (const button of document.querySelectorAll("button.copy")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  const showMore = (box) => {
    box.toggleAttribute("data-more", box.scrollWidth - box.clientWidth - box.scrollLeft > 4);
  };
  for (const box of document.querySelectorAll(".scroll")) {
    box.addEventListener("scroll", () => showMore(box), { passive: true });
    new ResizeObserver(() => showMore(box)).observe(box);
  }
  const openTarget = () => {
    const details = document.getElementById(location.hash.slice(1))?.querySelector("details");
    if (details) details.open = true;
  };
  addEventListener("hashchange", openTarget);
  if (location.hash) openTarget();
})();
