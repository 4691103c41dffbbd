// What stands beside the slide in a review: how far it is, verdicts with their confidence, the network's answer once it is allowed, all slides.

import { element } from "./dom.js";

/** @typedef {{ box: [number, number, number, number], text: string, right: boolean | null }} Hotspot box in level-0 px: x, y, width, height */
/** @typedef {[title: string, verdict: string, noted: boolean, done: boolean, answer: string, current: boolean]} Row */
/** @typedef {{ turn: number, performed: number, title: string, stage: string, message: string, error: string, undone: number, verdicts: string[],
 *   steps: number, verdict: string | null, confidence: number | null, note: string, before: string, answer: string | null, revealing: boolean,
 *   countdown: number | null, rows: Row[], hotspots: Hotspot[] }} Sheet what the kernel says, as `Sitting.sheet` has it */
/** @typedef {{ decide: (verdict: number, confidence: number | null) => void, choose: (verdict: number) => void, act: (type: string, values?: object) => void,
 *   showHotspot: (number: number) => void }} Deeds */

export class ReviewPanel {
  /**
   * @param {Deeds} deeds
   * @param {HTMLElement} display the controls of the maps
   */
  constructor(deeds, display) {
    this.deeds = deeds;
    this.built = "";
    this.drawn = "";
    /** @type {{ row: HTMLElement, button: HTMLButtonElement, tag: HTMLElement, dots: HTMLButtonElement[] }[]} */
    this.verdicts = [];
    this.place = element("strong");
    this.open = element("span");
    this.bar = element("div", { class: "sv-done", "aria-hidden": "true" });
    this.stage = element("h3");
    this.answer = element("strong");
    this.before = element("span");
    this.network = element("div", { class: "sv-network" }, element("span", { text: "Network" }), this.answer, element("span", { text: "You, before" }), this.before);
    this.scale = element("span", { text: "Confidence, low to high" });
    this.list = element("div", { class: "sv-verdicts", role: "group", "aria-label": "Verdict" });
    this.hint = element("p", { class: "sv-hint", "aria-live": "polite" });
    this.note = element("input", { type: "text", maxlength: 2000, placeholder: "Note", "aria-label": "Note", autocomplete: "off", spellcheck: "false" });
    this.note.addEventListener("focus", () => this.sheet?.countdown && deeds.act("hold"));
    this.note.addEventListener("change", () => deeds.act("note", { text: this.note.value }));
    this.countdown = element("span", { "aria-live": "polite" });
    this.reveal = press("Show now", "Show the network's answer now (Enter)", () => deeds.act("reveal"));
    this.coming = element("div", { class: "sv-coming", hidden: true }, this.countdown, this.reveal);
    this.error = element("p", { class: "sv-warning", role: "alert", hidden: true });
    this.message = element("p", { class: "sv-hint", hidden: true });
    this.ways = [
      press("Previous", "Previous slide (P)", () => deeds.act("go", { way: "previous" })),
      press("Next", "Next slide (N)", () => deeds.act("go", { way: "next" })),
      press("Next open", "Next slide with something to do (U)", () => deeds.act("go", { way: "undone" })),
      press("Undo", "Take back the last verdict (Z)", () => deeds.act("undo")),
    ];
    this.hotspots = element("ol", { class: "sv-hotspots" });
    this.found = element("section", { "aria-label": "Hotspots", hidden: true }, element("h3", { text: "Hotspots" }), this.hotspots);
    this.display = element("details", { hidden: true }, element("summary", { text: "Display of the map" }), display);
    this.table = element("tbody");
    const names = ["Slide", "You", "Network"].map((text) => element("th", { scope: "col", text }));
    this.slides = element("div", { class: "sv-slides" }, element("table", {}, element("thead", {}, element("tr", {}, ...names)), this.table));
    this.all = element("details", { open: true }, element("summary", { text: "All slides" }), this.slides);
    this.reading = element("div", {}, this.stage, this.network, element("div", { class: "sv-scales" }, element("span", { text: "Verdict" }), this.scale), this.list, this.hint, this.note, this.coming);
    const head = element("div", { class: "sv-place" }, this.place, this.open);
    this.root = element("section", { class: "sv-review", "aria-label": "Review" }, head, this.bar, this.reading, this.error, this.message, element("div", { class: "sv-ways" }, ...this.ways), this.found, this.display, this.all);
  }

  /**
   * @param {Sheet} sheet
   * @param {number | null} chosen the verdict that waits for its confidence, from 1
   * @param {number | null} hotspot that is in sight
   * @param {number} seconds until the network's answer comes
   */
  set(sheet, chosen, hotspot, seconds) {
    this.sheet = sheet;
    const all = sheet.rows.length;
    const reads = sheet.title !== "";
    this.place.textContent = sheet.title || `${all} slides`;
    this.open.textContent = ` · ${sheet.undone} open`;
    this.bar.style.setProperty("--done", `${(100 * (all - sheet.undone)) / Math.max(all, 1)}%`);
    this.reading.hidden = !reads;
    this.stage.textContent = sheet.stage;
    this.answer.textContent = this.answer.title = sheet.answer ?? "hidden";
    this.before.textContent = sheet.before || "–";
    this.network.classList.toggle("sv-blind", sheet.answer === null);
    this.setVerdicts(sheet, chosen);
    if (document.activeElement !== this.note && (/** @type {any} */ (this.note.getRootNode())).activeElement !== this.note) this.note.value = sheet.note;
    this.note.disabled = sheet.message !== "";
    this.coming.hidden = !sheet.revealing;
    this.countdown.textContent = sheet.countdown === null ? "The network's answer comes next" : `Network's answer in ${seconds} s · Z takes the verdict back`;
    this.error.hidden = !sheet.error;
    this.error.textContent = sheet.error;
    this.message.hidden = !sheet.message;
    this.message.textContent = sentence(sheet.message);
    this.setHotspots(sheet.hotspots, hotspot);
    this.setRows(sheet.rows);
  }

  /**
   * @param {Sheet} sheet
   * @param {number | null} chosen
   */
  setVerdicts(sheet, chosen) {
    const built = JSON.stringify([sheet.verdicts, sheet.steps]);
    if (built !== this.built) {
      this.built = built;
      this.verdicts = sheet.verdicts.map((verdict, i) => this.createVerdict(verdict, i + 1, sheet.steps));
      this.list.replaceChildren(...this.verdicts.map(({ row }) => row));
      this.scale.hidden = !sheet.steps;
    }
    const locked = sheet.message !== "";
    sheet.verdicts.forEach((verdict, i) => {
      const { row, button, tag, dots } = this.verdicts[i];
      const stored = verdict === sheet.verdict;
      row.classList.toggle("sv-stored", stored);
      row.classList.toggle("sv-chosen", chosen === i + 1);
      button.disabled = locked;
      button.setAttribute("aria-pressed", String(stored || chosen === i + 1));
      tag.hidden = !stored;
      dots.forEach((dot, n) => {
        dot.disabled = locked;
        dot.classList.toggle("sv-full", sheet.confidence !== null && n < sheet.confidence && (stored || sheet.verdict === null));
        dot.classList.toggle("sv-carried", sheet.verdict === null);
        dot.setAttribute("aria-pressed", String(stored && n + 1 === sheet.confidence));
      });
    });
    const waits = chosen === null ? "" : `${sheet.verdicts[chosen - 1]}: how sure? 1 to ${sheet.steps}, or a dot`;
    const carried = sheet.steps && sheet.confidence !== null && sheet.verdict === null ? `Confidence ${sheet.confidence} is carried over: a verdict alone stores both.` : "";
    this.hint.textContent = waits || carried;
    this.hint.hidden = !this.hint.textContent;
  }

  /**
   * @param {string} verdict
   * @param {number} key
   * @param {number} steps of the confidence
   */
  createVerdict(verdict, key, steps) {
    const tag = element("span", { class: "sv-tag", text: "saved", hidden: true });
    const button = element("button", { type: "button", title: `${verdict} (${key})` }, element("kbd", { text: String(key), "aria-hidden": "true" }), element("span", { text: verdict }), tag);
    button.addEventListener("click", ({ detail }) => detail > 1 || this.deeds.choose(key));
    const dots = Array.from({ length: steps }, (_, n) => {
      const label = `${verdict}, confidence ${n + 1} of ${steps}`;
      const dot = element("button", { type: "button", class: "sv-dot", title: label, "aria-label": label });
      dot.addEventListener("click", ({ detail }) => detail > 1 || this.deeds.decide(key, n + 1)); // the second of a double click means nothing
      return dot;
    });
    const row = element("div", { class: "sv-verdict" }, button, element("div", { class: "sv-dots" }, ...dots));
    return { row, button, tag, dots };
  }

  /**
   * @param {Hotspot[]} hotspots
   * @param {number | null} shown
   */
  setHotspots(hotspots, shown) {
    this.found.hidden = !hotspots.length;
    this.hotspots.replaceChildren(
      ...hotspots.map(({ text, right }, number) => {
        const go = element("button", { type: "button", class: "sv-link", text, title: "Area and share of the map; go there (J and K go through them)" });
        go.addEventListener("click", () => this.deeds.showHotspot(number));
        const calls = /** @type {const} */ ([[true, "Right", "Y"], [false, "Wrong", "X"]]).map(([value, label, key]) => {
          const call = press(label, `Hotspot ${number + 1} is ${label.toLowerCase()} (${key})`, () => this.deeds.act("judge", { hotspot: number, right: value }));
          call.setAttribute("aria-pressed", String(right === value));
          return call;
        });
        return element("li", { class: number === shown ? "sv-here" : "" }, go, element("span", { class: "sv-calls" }, ...calls));
      }),
    );
  }

  /** @param {Row[]} rows */
  setRows(rows) {
    const drawn = JSON.stringify(rows);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.table.replaceChildren(
      ...rows.map(([title, verdict, noted, done, answer, current], number) => {
        const go = element("button", { type: "button", class: "sv-link", text: title, title: `Open ${title}` });
        go.addEventListener("click", () => this.deeds.act("open", { number }));
        const own = element("td", { text: verdict || "–" });
        if (noted) own.append(element("span", { class: "sv-noted", text: "✎", title: "has a note", role: "img", "aria-label": "has a note" }));
        const row = element("tr", { class: `${current ? "sv-here" : ""} ${done ? "" : "sv-undone"}` }, element("td", {}, go), own, element("td", { text: answer }));
        if (current) row.setAttribute("aria-current", "true");
        return row;
      }),
    );
    const [here, box] = [/** @type {HTMLElement | null} */ (this.table.querySelector(".sv-here")), this.slides];
    if (here) box.scrollTop = here.offsetTop - box.clientHeight / 2; // the page stays where it is
  }
}

/**
 * @param {string} text
 * @param {string} title
 * @param {() => void} act
 */
function press(text, title, act) {
  const made = element("button", { type: "button", class: "sv-cancel", text, title });
  made.addEventListener("click", act);
  return made;
}

/** @param {string} text */
const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "");
