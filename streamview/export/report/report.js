
"use strict";
(() => {
  const table = document.getElementById("cohort");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const text = document.getElementById("filter-text");
  const answer = document.getElementById("filter-answer");
  const count = document.getElementById("filter-count");
  const inWords = new Intl.Collator(undefined, { numeric: true });

  function compare(first, second, sign) {
    if (first === "" || second === "") return (first === "") - (second === "");  // what is missing comes last either way
    const numbers = [Number(first), Number(second)];
    return sign * (numbers.some(Number.isNaN) ? inWords.compare(first, second) : numbers[0] - numbers[1]);
  }

  function sortBy(column) {
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head, n) => head.setAttribute("aria-sort", n !== column ? "none" : ascending ? "ascending" : "descending"));
    const value = (row) => row.cells[column].dataset.value ?? "";
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), ascending ? 1 : -1)));
  }

  function filter() {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      const fits = row.textContent.toLowerCase().includes(wanted) && (answer.value === "" || row.dataset.answer === answer.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${body.rows.length} shown`;
  }

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => sortBy(column));
  });
  text.addEventListener("input", filter);
  answer.addEventListener("change", filter);
  filter();

  function showMap(region) {
    const choice = region.querySelector("[data-choice]:checked");
    const outline = region.querySelector("[data-outline]");
    const slider = region.querySelector("[data-opacity]");
    for (const part of region.querySelectorAll("[data-number]")) {
      const chosen = part.dataset.number === (choice ? choice.value : "0");
      const off = !chosen || (part.classList.contains("outline") && outline && !outline.checked);
      part.classList.toggle("off", off);
    }
    for (const heat of region.querySelectorAll(".heat")) heat.style.opacity = slider.value / 100;
    slider.nextElementSibling.value = `${slider.value}%`;
  }

  for (const region of document.querySelectorAll(".region")) {
    region.addEventListener("input", () => showMap(region));
    showMap(region);
  }
  for (const controls of document.querySelectorAll(".controls")) controls.hidden = false;
})();
