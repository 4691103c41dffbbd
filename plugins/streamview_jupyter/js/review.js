// A reader at work: one slide of a session at a time, and the panel of its verdicts. What counts is stored by the kernel before it is shown.

import { button } from "./dom.js";
import { ReviewPanel } from "./review_panel.js";
import { SlideView } from "./view.js";

/** @typedef {import("./review_panel.js").Sheet} Sheet */

const REST = 2000; // ms after the last move until the view is stored
const PATIENCE = 2500; // ms without an answer to an action after which the reader is told
const SETTLE = 300; // ms in which a press was still meant for the slide before
const SELECTED = "#ffffff";
const KEYS = [
  ["1 to 9", "verdict; then 1 to 9 for the confidence, 0 for ten"],
  ["Enter", "show the network's answer now"],
  ["Z", "take back the last verdict"],
  ["N and P", "next and previous slide"],
  ["U", "next slide with something to do"],
  ["M", "write a note; Enter ends it"],
  ["J and K", "next and previous hotspot"],
  ["Y and X", "the hotspot is right, or wrong"],
  ["O", "show or hide the network's map"],
  ["[ and ]", "opacity of the map"],
  ["R", "draw a region; Delete takes the last away"],
  ["Arrows, +, −", "move and zoom"],
  ["F", "fit the slide"],
  ["?", "these keys"],
];

export class ReviewView extends SlideView {
  /** @param {any} model */
  constructor(model) {
    super(model);
    this.root.classList.add("sv-reviewing");
    /** @type {number | null} the verdict that waits for its confidence */
    this.chosen = null;
    /** @type {number | null} */
    this.hotspot = null;
    this.turn = -1;
    this.turned = 0;
    this.busy = 0; // when the action was sent that has no answer yet
    this.due = 0; // when the network's answer comes
  }

  /** @returns {Sheet} */
  get sheet() {
    return this.model.get("_review");
  }

  get keyNames() {
    return KEYS;
  }

  createSide() {
    this.review = new ReviewPanel(
      {
        decide: (verdict, confidence) => this.decide(verdict, confidence),
        choose: (verdict) => this.choose(verdict),
        act: (type, values) => this.act(type, values),
        showHotspot: (number) => this.showHotspot(number),
      },
      this.panel.root,
    );
    return this.review.root;
  }

  createTools() {
    this.drawButton.title = this.drawButton.ariaLabel = "Draw a region (R)";
    this.clearButton.title = this.clearButton.ariaLabel = "Take the last region away (Delete)";
    return [
      button("fit", "Fit the slide (F)", () => this.viewer?.viewport.goHome()),
      button("in", "Zoom in (+)", () => this.zoom(1.5)),
      button("out", "Zoom out (−)", () => this.zoom(1 / 1.5)),
      this.drawButton,
      this.clearButton,
      button("help", "Keys (?)", () => (this.help.hidden = !this.help.hidden)),
    ];
  }

  open() {
    super.open();
    const changed = () => this.setSheet();
    this.model.on("change:_review", changed);
    this.undo.push(() => this.model.off("change:_review", changed));
    const timer = window.setInterval(() => this.tick(), 250);
    this.undo.push(() => clearInterval(timer), () => clearTimeout(this.resting));
    this.setSheet();
  }

  // what the kernel says

  setSheet() {
    const { sheet } = this;
    this.busy = 0;
    if (sheet.turn !== this.turn) {
      this.turn = sheet.turn;
      this.turned = performance.now();
      this.chosen = this.hotspot = null;
      clearTimeout(this.resting);
      if (this.focused()) this.stage.focus({ preventScroll: true });
    }
    this.due = sheet.countdown === null ? 0 : performance.now() + 1000 * sheet.countdown;
    this.root.dataset.turn = String(sheet.turn);
    this.update();
    this.redraw();
  }

  setLayers() {
    super.setLayers();
    if (this.review) this.review.display.hidden = !this.layers.length;
  }

  update() {
    const seconds = Math.max(1, Math.ceil((this.due - performance.now()) / 1000));
    this.review?.set(this.sheet, this.chosen, this.hotspot, seconds);
    this.clearButton.disabled = !this.model.get("_regions").length;
    this.root.classList.toggle("sv-busy", this.busy > 0);
  }

  tick() {
    if (this.busy && performance.now() - this.busy > PATIENCE) this.say("The kernel has not stored this yet: it is busy.");
    if (this.due) this.update();
  }

  /** Whether what has the focus is in this view. */
  focused() {
    return this.root.contains(/** @type {Document} */ (this.root.getRootNode()).activeElement);
  }

  // what the reader does

  /**
   * @param {string} type
   * @param {object} values
   */
  act(type, values = {}) {
    const waits = type !== "note" && type !== "hold"; // what follows these need not wait for them
    if (waits && this.busy) return; // a second press, or the kernel is behind
    this.client?.send({ type, turn: this.turn, ...values });
    if (!waits) return;
    this.busy = performance.now();
    this.root.classList.add("sv-busy");
  }

  /**
   * @param {number} verdict
   * @param {number | null} confidence
   */
  decide(verdict, confidence) {
    if (!this.sheet.title || this.sheet.message) return;
    this.chosen = null;
    this.act("decide", { verdict, confidence });
    this.stage.focus({ preventScroll: true });
  }

  /** @param {number} verdict whose confidence comes next, unless there is one already or none is asked for */
  choose(verdict) {
    const { steps, confidence, title, message } = this.sheet;
    if (!title || message || performance.now() - this.turned < SETTLE) return;
    if (!steps || confidence !== null) {
      this.decide(verdict, null);
      return;
    }
    this.chosen = verdict;
    this.stage.focus({ preventScroll: true });
    this.update();
  }

  /** @param {number} digit */
  digit(digit) {
    const { steps, verdicts } = this.sheet;
    if (this.chosen !== null) {
      const confidence = digit || 10;
      if (confidence <= steps) this.decide(this.chosen, confidence);
    } else if (digit && digit <= verdicts.length) this.choose(digit);
  }

  /** @param {number} number */
  showHotspot(number) {
    const { hotspots } = this.sheet;
    if (!hotspots.length || !this.opened) return;
    this.hotspot = (number + hotspots.length) % hotspots.length;
    const [x, y, width, height] = hotspots[this.hotspot].box;
    const viewer = /** @type {OpenSeadragon.Viewer} */ (this.viewer);
    const room = 1.5 * Math.max(width, height, 64);
    const box = viewer.world.getItemAt(0).imageToViewportRectangle(x + width / 2 - room / 2, y + height / 2 - room / 2, room, room);
    viewer.viewport.fitBounds(box, false);
    this.say(`Hotspot ${this.hotspot + 1} of ${hotspots.length}`);
    this.update();
  }

  /** @param {boolean} right */
  judge(right) {
    if (this.hotspot !== null) this.act("judge", { hotspot: this.hotspot, right });
  }

  outlines() {
    const box = this.hotspot === null ? undefined : this.sheet.hotspots[this.hotspot]?.box;
    if (!box) return super.outlines();
    const [x, y, width, height] = box;
    /** @type {[number, number][]} */
    const points = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
    return [...super.outlines(), { name: "", colour: SELECTED, points }];
  }

  /** @param {[number, number, number, number] | null} region */
  select(region) {
    const whole = region && this.inside(region);
    if (region && !whole) this.say("Nothing is drawn: the region lies outside the slide.");
    else this.act("draw", { region: whole });
  }

  showSelection() {
    this.redraw();
  }

  reportViewport() {
    super.reportViewport();
    clearTimeout(this.resting);
    const { turn } = this;
    this.resting = window.setTimeout(() => {
      const view = this.model.get("viewport");
      if (this.opened && view && turn === this.turn) this.client?.send({ type: "rest", turn, view });
    }, REST);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = event.composedPath()[0];
    if (target === this.review?.note && (event.key === "Enter" || event.key === "Escape")) {
      event.stopImmediatePropagation();
      event.preventDefault();
      this.stage.focus({ preventScroll: true }); // which stores it
      return;
    }
    if (event.key === "Escape" && this.chosen !== null) {
      this.chosen = null;
      this.update();
    }
    if (event.repeat && !/^Arrow|^[-+=[\]]$/.test(event.key)) {
      if (target instanceof Element && this.root.contains(target) && !target.matches("input")) event.stopImmediatePropagation();
      return;
    }
    super.key(event);
  }

  keyActions() {
    const { "+": inward, "=": same, "-": outward, ArrowLeft, ArrowRight, ArrowUp, ArrowDown, "[": fainter, "]": stronger, "?": help, r } = super.keyActions();
    const digits = Object.fromEntries(Array.from({ length: 10 }, (_, digit) => [digit, () => this.digit(digit)]));
    return {
      ...{ "+": inward, "=": same, "-": outward, ArrowLeft, ArrowRight, ArrowUp, ArrowDown, "[": fainter, "]": stronger, "?": help, r },
      ...digits,
      Enter: () => this.sheet.revealing && this.act("reveal"),
      z: () => this.act("undo"),
      n: () => this.act("go", { way: "next" }),
      p: () => this.act("go", { way: "previous" }),
      u: () => this.act("go", { way: "undone" }),
      m: () => this.review?.note.focus(),
      j: () => this.showHotspot(this.hotspot === null ? 0 : this.hotspot + 1),
      k: () => this.showHotspot(this.hotspot === null ? -1 : this.hotspot - 1),
      y: () => this.judge(true),
      x: () => this.judge(false),
      o: () => this.toggleMaps(),
      f: () => this.viewer?.viewport.goHome(),
      Delete: () => this.select(null),
    };
  }
}
