// The view of one slide in a page: what is in sight, and what the user does.

import { KernelClient } from "./client.js";
import { button, element } from "./dom.js";
import { Panel, Progress, short } from "./panel.js";
import { Scene } from "./scene.js";
import { createViewer, openSlide, Point } from "./slide.js";
import { ValueTiles } from "./values.js";

/** @typedef {import("./panel.js").Layer} Layer */

const SMALLEST = 8; // screen px that a drawn region must have
const PAN = 0.15; // of what is in sight, per key
const STEP = 0.05; // of opacity, per key
const QUIET = 80; // ms without a move of the mouse before the kernel is asked for the raw value
const NARROW = 620; // px: below, the panel is closed at first
const KEYS = [
  ["Arrows", "move"],
  ["+ and −", "zoom"],
  ["0", "fit the slide"],
  ["R", "draw a region; Escape ends it"],
  ["V", "select what is in sight"],
  ["Delete", "clear the selection"],
  ["T", "show or hide maps"],
  ["[ and ]", "opacity of the topmost map"],
  ["P", "open or close the panel"],
  ["?", "these keys"],
];

export class SlideView {
  /** @param {any} model */
  constructor(model) {
    this.model = model;
    this.slide = model.get("_slide");
    this.mapsHidden = false;
    this.drawing = false;
    this.following = false;
    /** @type {[number, number] | null} */
    this.cursor = null;
    /** @type {[number, number, number, number] | null} */
    this.drawn = null;
    /** @type {Map<number, Record<string, any>>} */
    this.changes = new Map(); // of layers, by the user, that the kernel has not confirmed
    /** @type {(() => void)[]} */
    this.undo = [];
    /** @type {number | undefined} */
    this.frame = undefined;
    /** @type {number | undefined} */
    this.asking = undefined;
    this.opened = false;
    this.sized = false; // whether it was in sight once: a notebook opens what is far below without a size
    this.pictured = false;
    this.stage = element("div", { class: "sv-stage", tabindex: 0, role: "application" });
    this.scene = new Scene();
    this.glass = element("div", { class: "sv-glass", hidden: true });
    this.notice = element("div", { class: "sv-notice", role: "alert", hidden: true });
    this.help = element("div", { class: "sv-help", role: "dialog", "aria-label": "Keys", hidden: true }, element("dl", {}, ...this.keyNames.flatMap(([key, text]) => [element("dt", { text: key }), element("dd", { text })])));
    this.readout = element("span", { class: "sv-readout" });
    this.live = element("span", { class: "sv-live", "aria-live": "polite" });
    this.panel = new Panel((layer, changes) => this.changeDisplay(layer, changes));
    this.progress = new Progress((job) => this.client?.send({ type: "cancel", job }));
    this.drawButton = button("draw", "Draw a region (R)", () => this.setDrawing(!this.drawing));
    this.drawButton.setAttribute("aria-pressed", "false");
    this.clearButton = button("clear", "Clear the selection (Delete)", () => this.select(null));
    this.panelButton = button("panel", "Maps and answers (P)", () => this.togglePanel());
    this.title = element("strong");
    const tools = element("div", { class: "sv-tools", role: "toolbar", "aria-label": "View" }, ...this.createTools());
    const heading = element("div", { class: "sv-heading" }, this.title, tools);
    const picture = element("div", { class: "sv-picture" }, this.stage, this.scene.canvas, this.glass, this.scene.scaleBar, this.help, this.notice);
    this.main = element("div", { class: "sv-main" }, picture, this.createSide());
    const status = element("div", { class: "sv-status" }, this.readout, element("span", { class: "sv-notice-use", text: this.slide.notice }));
    this.root = element("div", { class: "sv-root", "data-state": "connecting" }, heading, this.progress.root, this.main, status, this.live);
    this.main.style.height = this.model.get("height");
  }

  /** What the sheet of keys lists. */
  get keyNames() {
    return KEYS;
  }

  /** What stands beside the slide. */
  createSide() {
    return this.panel.root;
  }

  /** @returns {HTMLElement[]} */
  createTools() {
    return [
      button("fit", "Fit the slide (0)", () => this.viewer?.viewport.goHome()),
      button("in", "Zoom in (+)", () => this.zoom(1.5)),
      button("out", "Zoom out (−)", () => this.zoom(1 / 1.5)),
      this.drawButton,
      button("visible", "Select what is in sight (V)", () => this.selectVisible()),
      this.clearButton,
      button("help", "Keys (?)", () => (this.help.hidden = !this.help.hidden)),
      this.panelButton,
    ];
  }

  open() {
    this.client = new KernelClient(
      this.model,
      (state) => this.setState(state),
      (content) => this.receive(content),
    );
    this.scene.values = new ValueTiles(this.client, () => this.redraw());
    this.viewer = createViewer(this.stage);
    /** @type {any} */ (this.viewer).innerTracker.keyHandler = null; // keys are handled here
    /** @type {any} */ (this.viewer).innerTracker.keyDownHandler = null;
    this.viewer.addHandler("update-viewport", () => this.redraw());
    this.viewer.addHandler("animation-finish", () => this.reportViewport());
    this.viewer.addHandler("open", () => {
      this.opened = true;
      const item = /** @type {OpenSeadragon.Viewer} */ (this.viewer).world.getItemAt(0);
      item.addHandler("fully-loaded-change", (/** @type {any} */ { fullyLoaded }) => (this.root.dataset.loaded = String(fullyLoaded)));
      this.follow();
      this.goto();
      this.reportViewport();
    });
    this.viewer.addHandler("tile-drawn", () => {
      if (this.pictured || !this.opened) return;
      this.pictured = true;
      this.setState("ready");
    });
    this.showSlide();
    const changes = {
      _layers: () => this.setLayers(),
      _slide: () => (this.model.get("_slide").epoch === this.slide.epoch ? this.setPredictions() : this.showSlide()),
      _regions: () => this.redraw(),
      _job: () => this.setJob(),
      _target: () => this.goto(),
      selection: () => this.showSelection(),
      viewport: () => this.follow(),
      theme: () => this.setTheme(),
      height: () => (this.main.style.height = this.model.get("height")),
    };
    for (const [name, handler] of Object.entries(changes)) {
      this.model.on(`change:${name}`, handler);
      this.undo.push(() => this.model.off(`change:${name}`, handler));
    }
    this.listen(window, "keydown", (event) => this.key(/** @type {KeyboardEvent} */ (event)), true);
    this.listen(this.stage, "pointermove", (event) => this.moved(/** @type {PointerEvent} */ (event)));
    this.listen(this.stage, "pointerleave", () => this.left());
    this.listen(this.glass, "pointerdown", (event) => this.beginRegion(/** @type {PointerEvent} */ (event)));
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    this.listen(scheme, "change", () => this.setTheme());
    const observer = new MutationObserver(() => this.setTheme());
    observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    this.undo.push(() => observer.disconnect());
    const resized = new ResizeObserver(() => this.resized());
    resized.observe(this.root);
    this.undo.push(() => resized.disconnect());
    this.setTheme();
    this.setLayers();
    this.setPredictions();
    this.setJob();
    this.showSelection();
    this.setPanel(this.root.clientWidth >= NARROW || this.root.clientWidth === 0);
  }

  close() {
    for (const each of this.undo) each();
    cancelAnimationFrame(this.frame ?? 0);
    clearTimeout(this.asking);
    this.client?.close();
    this.viewer?.destroy();
    this.root.remove();
  }

  /**
   * @param {EventTarget} target
   * @param {string} name
   * @param {(event: Event) => void} handler
   * @param {boolean} capture
   */
  listen(target, name, handler, capture = false) {
    target.addEventListener(name, handler, capture);
    this.undo.push(() => target.removeEventListener(name, handler, capture));
  }

  /** Open the slide that the kernel shows now, in place of the one before. */
  showSlide() {
    this.slide = this.model.get("_slide");
    const { slide, viewer } = this;
    this.opened = this.pictured = false;
    this.reported = undefined;
    this.root.dataset.state = slide.width ? "connecting" : "empty";
    this.root.dataset.loaded = "false";
    this.title.textContent = this.title.title = slide.name;
    this.stage.setAttribute("aria-label", `Slide ${slide.name}. Arrows move, plus and minus zoom, question mark lists all keys.`);
    this.scene.mpp = slide.mpp;
    this.scene.clear();
    this.left();
    if (!viewer || !this.client) return;
    if (slide.width) openSlide(viewer, slide, this.client, (text) => this.say(`A part of the slide could not be read: ${text}`));
    else viewer.close();
  }

  // what the kernel says

  /** @param {"ready" | "lost"} state */
  setState(state) {
    const lost = state === "lost";
    this.notice.hidden = !lost;
    this.notice.textContent = lost ? "The kernel does not answer: it is busy, or was started anew. If this stays, run this cell again." : "";
    if (lost) this.root.dataset.state = "lost";
    else if (!this.slide.width) this.root.dataset.state = "empty";
    else if (this.client?.ready && this.pictured) this.root.dataset.state = "ready";
  }

  /** @param {any} content */
  receive(content) {
    if (content.type === "value") {
      if (content.client === this.client?.name && this.cursor && this.cursor[0] === content.y && this.cursor[1] === content.x) this.showReadout(content.value);
    } else if (content.type === "error") {
      this.say(content.text);
    }
  }

  /** @param {string} text for the status line, read out by screen readers */
  say(text) {
    this.live.textContent = text;
    this.readout.textContent = text;
  }

  /** @returns {Layer[]} as the kernel describes them, with what the user changed since */
  get layers() {
    return this.model.get("_layers").map((/** @type {Layer} */ layer) => ({ ...layer, ...this.changes.get(layer.number) }));
  }

  setLayers() {
    for (const layer of this.model.get("_layers")) {
      const changes = this.changes.get(layer.number) ?? {};
      for (const [name, value] of Object.entries(changes)) if (layer[name] === value) delete changes[name];
    }
    this.panel.setLayers(this.layers);
    this.redraw();
  }

  setPredictions() {
    this.panel.setPredictions(this.model.get("_slide").predictions ?? []);
  }

  setJob() {
    const job = this.model.get("_job");
    this.progress.set(job);
    if (job && job.state !== this.lastState) this.live.textContent = job.state === "running" ? "The run has begun." : job.text;
    this.lastState = job?.state;
  }

  setTheme() {
    const chosen = this.model.get("theme");
    const lab = document.body.dataset.jpThemeLight;
    const dark = chosen === "auto" ? (lab === undefined ? matchMedia("(prefers-color-scheme: dark)").matches : lab === "false") : chosen === "dark";
    this.root.dataset.theme = dark ? "dark" : "light";
  }

  // what is in sight

  /** Height and width of the picture on the screen, and its left upper corner and scale. */
  sight() {
    const viewer = /** @type {OpenSeadragon.Viewer} */ (this.viewer);
    const item = viewer.world.getItemAt(0);
    const bounds = item.viewportToImageRectangle(viewer.viewport.getBounds(true));
    const width = Math.max(1, Math.round(this.stage.clientWidth));
    const height = Math.max(1, Math.round(this.stage.clientHeight));
    return { y: bounds.y, x: bounds.x, scale: width / bounds.width, height, width };
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (this.opened && this.stage.clientWidth) this.draw();
    });
  }

  draw() {
    this.scene.draw(this.sight(), this.mapsHidden ? [] : this.layers.filter((layer) => layer.visible), this.outlines(), this.drawn ?? this.model.get("selection"));
  }

  /** @returns {import("./scene.js").Outlined[]} */
  outlines() {
    return this.model.get("_regions");
  }

  resized() {
    this.root.classList.toggle("sv-narrow", this.root.clientWidth < NARROW);
    if (!this.sized && this.stage.clientWidth) {
      this.sized = true;
      this.follow();
      this.goto();
    }
    this.redraw();
  }

  reportViewport() {
    if (!this.opened || !this.stage.clientWidth || this.following) {
      this.following = false;
      return;
    }
    const { y, x, scale, height, width } = this.sight();
    this.model.set("viewport", [x, y, width / scale, height / scale].map((number) => Math.round(number * 100) / 100));
    this.reported = String(this.model.get("viewport"));
    this.model.save_changes();
  }

  /** Show what a linked view, or the kernel, has set. */
  follow() {
    const viewport = this.model.get("viewport");
    if (!this.opened || !this.stage.clientWidth || !viewport || String(viewport) === this.reported) return;
    const now = this.sight();
    const [x, y, width] = viewport;
    if (Math.abs(now.x - x) * now.scale < 1 && Math.abs(now.y - y) * now.scale < 1 && Math.abs(now.width / now.scale - width) * now.scale < 1) return;
    this.following = true;
    const viewer = /** @type {OpenSeadragon.Viewer} */ (this.viewer);
    const item = viewer.world.getItemAt(0);
    const { containerSize } = viewer.viewport; // of the last frame: the widget may have got its size after it
    if (containerSize.x !== this.stage.clientWidth || containerSize.y !== this.stage.clientHeight)
      viewer.viewport.resize(new Point(this.stage.clientWidth, this.stage.clientHeight), true);
    viewer.viewport.fitBounds(item.imageToViewportRectangle(x, y, width, viewport[3]), !this.pictured);
  }

  goto() {
    const target = this.model.get("_target");
    if (!this.opened || !this.stage.clientWidth || !target || target.number === this.lastTarget) return;
    this.lastTarget = target.number;
    const viewport = /** @type {OpenSeadragon.Viewer} */ (this.viewer).viewport;
    const item = /** @type {OpenSeadragon.Viewer} */ (this.viewer).world.getItemAt(0);
    if (target.scale !== null) viewport.zoomTo(item.imageToViewportZoom(1 / target.scale));
    viewport.panTo(item.imageToViewportCoordinates(target.x, target.y));
  }

  /** @param {number} factor */
  zoom(factor) {
    this.viewer?.viewport.zoomBy(factor);
    this.viewer?.viewport.applyConstraints();
  }

  // the value under the cursor

  /** @param {PointerEvent} event */
  moved(event) {
    if (!this.opened) return;
    const box = this.stage.getBoundingClientRect();
    const sight = this.sight();
    this.spot = [Math.floor(event.clientY - box.top), Math.floor(event.clientX - box.left)];
    this.cursor = [sight.y + (event.clientY - box.top) / sight.scale, sight.x + (event.clientX - box.left) / sight.scale];
    this.showReadout();
    clearTimeout(this.asking);
    const layer = this.topmost();
    if (layer === undefined) return;
    const [y, x] = this.cursor;
    this.asking = window.setTimeout(() => this.client?.send({ type: "value", client: this.client.name, layer: layer.number, y, x }), QUIET);
  }

  left() {
    this.cursor = null;
    clearTimeout(this.asking);
    this.readout.textContent = "";
  }

  topmost() {
    return this.mapsHidden ? undefined : this.layers.findLast((layer) => layer.visible && layer.colormap !== "");
  }

  /** @param {number | null} [raw] */
  showReadout(raw) {
    if (!this.cursor || !this.spot) return;
    const [y, x] = this.cursor;
    const mpp = this.slide.mpp;
    const parts = [`x ${Math.floor(x)}, y ${Math.floor(y)} px`];
    if (mpp) parts.push(`${((x * mpp[1]) / 1000).toFixed(3)}, ${((y * mpp[0]) / 1000).toFixed(3)} mm`);
    const layer = this.topmost();
    const plane = layer && this.scene.planes.get(layer.number);
    if (layer && plane) {
      const value = plane.values[this.spot[0] * plane.width + this.spot[1]];
      if (value === value) parts.push(`${short(value)} ${layer.unit}, ${Math.round((100 * value) / (layer.cap || 1))}% of full colour${raw === undefined || raw === null ? "" : `, raw ${short(raw)}`}`);
      else parts.push("no map here");
    }
    this.readout.textContent = parts.join("  ·  ");
  }

  // what the user does

  /**
   * @param {number} number
   * @param {object} changes
   */
  changeDisplay(number, changes) {
    // shown at once, until the kernel says the same; what takes the kernel to change is not
    if (!("blur_um" in changes) && !("colormap" in changes)) this.changes.set(number, { ...this.changes.get(number), ...changes });
    this.client?.send({ type: "display", layer: number, changes });
    this.setLayers();
  }

  /** @param {boolean} on */
  setDrawing(on) {
    this.drawing = on;
    this.glass.hidden = !on;
    this.drawButton.setAttribute("aria-pressed", String(on));
    this.drawn = null;
    this.redraw();
    if (on) this.say("Drag over the region. Escape ends drawing.");
  }

  /** @param {PointerEvent} event */
  beginRegion(event) {
    if (event.button !== 0 || !this.opened) return;
    event.preventDefault();
    this.glass.setPointerCapture(event.pointerId);
    const box = this.glass.getBoundingClientRect();
    const start = [event.clientY - box.top, event.clientX - box.left];
    const sight = this.sight();
    const move = (/** @type {PointerEvent} */ now) => {
      const end = [now.clientY - box.top, now.clientX - box.left];
      const [top, left] = [Math.min(start[0], end[0]), Math.min(start[1], end[1])];
      this.drawn = [sight.x + left / sight.scale, sight.y + top / sight.scale, Math.abs(end[1] - start[1]) / sight.scale, Math.abs(end[0] - start[0]) / sight.scale];
      this.redraw();
    };
    const stop = () => {
      this.glass.removeEventListener("pointermove", move);
      const drawn = this.drawn;
      this.drawn = null;
      if (!drawn || drawn[2] * sight.scale < SMALLEST || drawn[3] * sight.scale < SMALLEST) {
        this.redraw();
        this.say(`Nothing was drawn: drag over at least ${SMALLEST} screen px.`);
        return;
      }
      this.setDrawing(false);
      this.select(drawn);
    };
    this.glass.addEventListener("pointermove", move);
    this.glass.addEventListener("pointerup", stop, { once: true });
  }

  selectVisible() {
    if (!this.opened) return;
    const { y, x, scale, height, width } = this.sight();
    this.select([x, y, width / scale, height / scale]);
  }

  /** @param {[number, number, number, number] | null} region in level-0 px, x first */
  select(region) {
    const whole = region && this.inside(region);
    if (region && !whole) {
      this.say("Nothing is selected: the region lies outside the slide.");
      return;
    }
    this.model.set("selection", whole);
    this.model.save_changes();
    this.showSelection();
  }

  /**
   * The part of a region that is inside the slide, in whole px.
   * @param {[number, number, number, number]} region
   * @returns {[number, number, number, number] | null}
   */
  inside(region) {
    const [left, top] = [Math.max(Math.round(region[0]), 0), Math.max(Math.round(region[1]), 0)];
    const right = Math.min(Math.round(region[0] + region[2]), this.slide.width);
    const bottom = Math.min(Math.round(region[1] + region[3]), this.slide.height);
    return right <= left || bottom <= top ? null : [left, top, right - left, bottom - top];
  }

  showSelection() {
    const selection = this.model.get("selection");
    this.clearButton.disabled = !selection;
    if (selection) {
      const [, , width, height] = selection;
      const mpp = this.slide.mpp;
      const size = mpp ? `, ${((width * mpp[1]) / 1000).toFixed(2)} × ${((height * mpp[0]) / 1000).toFixed(2)} mm` : "";
      this.say(`Selected ${width} × ${height} px${size}`);
    }
    this.redraw();
  }

  /** @param {boolean} open */
  setPanel(open) {
    this.panel.root.hidden = !open;
    this.panelButton.setAttribute("aria-pressed", String(open));
    this.redraw();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = event.composedPath()[0];
    if (!(target instanceof Element) || !this.root.contains(target)) return;
    if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (this.drawing) this.setDrawing(false);
      this.help.hidden = true;
      return;
    }
    event.stopImmediatePropagation(); // the notebook has shortcuts of its own
    if (target.matches("input, select") || (target.matches("button") && (event.key === " " || event.key === "Enter"))) return;
    const action = this.keyActions()[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  }

  /** @returns {Record<string, () => void>} */
  keyActions() {
    return {
      ArrowLeft: () => this.pan(-1, 0),
      ArrowRight: () => this.pan(1, 0),
      ArrowUp: () => this.pan(0, -1),
      ArrowDown: () => this.pan(0, 1),
      "+": () => this.zoom(1.5),
      "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5),
      0: () => this.viewer?.viewport.goHome(),
      r: () => this.setDrawing(!this.drawing),
      v: () => this.selectVisible(),
      Delete: () => this.select(null),
      t: () => this.toggleMaps(),
      "[": () => this.fade(-STEP),
      "]": () => this.fade(STEP),
      p: () => this.togglePanel(),
      "?": () => (this.help.hidden = !this.help.hidden),
    };
  }

  /**
   * @param {number} x
   * @param {number} y
   */
  pan(x, y) {
    const viewport = this.viewer?.viewport;
    if (!viewport || !this.opened) return;
    const bounds = viewport.getBounds();
    viewport.panBy(new Point(x * bounds.width * PAN, y * bounds.height * PAN));
    viewport.applyConstraints();
  }

  togglePanel() {
    this.setPanel(this.panel.root.hasAttribute("hidden"));
  }

  toggleMaps() {
    this.mapsHidden = !this.mapsHidden;
    this.say(this.mapsHidden ? "Maps are hidden." : "Maps are shown.");
    this.redraw();
  }

  /** @param {number} by */
  fade(by) {
    const layer = this.topmost();
    if (layer) this.changeDisplay(layer.number, { opacity: Math.min(Math.max(layer.opacity + by, 0), 1) });
  }
}
