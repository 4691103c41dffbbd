// The controls of the maps, the answers of the networks, and how a run goes.

import { element } from "./dom.js";
import { ramp } from "./colours.js";

/** @typedef {{ number: number, epoch: number, title: string, answer: string, source: string, unit: string, warnings: string[],
 *   levels: import("./values.js").Level[], colours: string[], visible: boolean, heat: boolean, outline: boolean, opacity: number,
 *   threshold: number, cap: number, colormap: string, blur_um: number }} Layer */

const PALETTES = ["teal-lime", "viridis", "turbo", "sky"];
const CAP_RANGE = 20; // how many times larger or smaller than at first a cap may be chosen

/** @param {number} value */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export class Panel {
  /** @param {(layer: number, changes: object) => void} change sends what the user changed */
  constructor(change) {
    this.change = change;
    this.answers = element("div", { class: "sv-answers" });
    this.maps = element("div", { class: "sv-maps" });
    this.root = element("section", { class: "sv-panel", "aria-label": "Maps and answers" }, this.maps, this.answers);
    /** @type {Map<number, MapControls>} */
    this.controls = new Map();
    this.empty = element("p", { class: "sv-hint", text: "No map yet. In a cell: v.add_saliency(result), or v.run(model) for the region that is drawn." });
    this.maps.append(this.empty);
  }

  /** @param {Layer[]} layers bottom first */
  setLayers(layers) {
    for (const [number, controls] of this.controls) {
      if (!layers.some((layer) => layer.number === number)) {
        controls.root.remove();
        this.controls.delete(number);
      }
    }
    for (const layer of layers) {
      let controls = this.controls.get(layer.number);
      if (controls === undefined) {
        controls = new MapControls(layer, (changes) => this.change(layer.number, changes));
        this.controls.set(layer.number, controls);
        this.maps.prepend(controls.root); // the topmost first
      }
      controls.set(layer);
    }
    this.empty.hidden = layers.length > 0;
  }

  /** @param {{ model: string, answer: string, trained: boolean, region: string, classes: string[], values: number[], shares: boolean }[]} predictions */
  setPredictions(predictions) {
    this.answers.replaceChildren(
      ...predictions.toReversed().map((prediction) => {
        const bars = prediction.classes.map((name, i) => {
          const value = prediction.values[i];
          const bar = element("div", { class: "sv-bar" });
          if (prediction.shares) bar.style.setProperty("--share", `${100 * value}%`);
          bar.append(element("span", { class: "sv-name", text: name }), element("span", { class: "sv-number", text: prediction.shares ? value.toFixed(3) : short(value) }));
          return bar;
        });
        const title = element("h3", { text: `${prediction.model}: ${prediction.answer}` });
        const region = element("p", { class: "sv-hint", text: `Region ${prediction.region}` });
        const untrained = prediction.trained ? [] : [element("p", { class: "sv-warning", text: "Random weights: the answer means nothing." })];
        return element("div", { class: "sv-answer" }, title, ...untrained, ...bars, region);
      }),
    );
  }
}

class MapControls {
  /**
   * @param {Layer} layer
   * @param {(changes: object) => void} change
   */
  constructor(layer, change) {
    this.layer = layer;
    this.change = change;
    this.firstCap = layer.cap || 1;
    this.id = `sv-${Math.random().toString(36).slice(2)}`;
    this.title = element("h3", {});
    this.answer = element("p", { class: "sv-hint" });
    this.warnings = element("div", {});
    this.legend = element("canvas", { class: "sv-legend", width: 256, height: 10, role: "img" });
    this.scale = element("div", { class: "sv-scale", "aria-hidden": "true" });
    const grid = element("div", { class: "sv-grid" });
    this.visible = this.check("Show", "visible");
    this.heat = this.check("Colours", "heat");
    this.outline = this.check("Outline", "outline");
    this.opacity = this.slider(grid, "Opacity", 0, 100, (value) => ({ opacity: value / 100 }), (value) => `${value}%`);
    this.threshold = this.slider(grid, "Hide below", 0, 100, (value) => ({ threshold: value / 100 }), (value) => `${value}%`);
    this.cap = this.slider(grid, "Full colour at", -100, 100, (value) => ({ cap: this.capOf(value) }), (value) => short(this.capOf(value)));
    this.blur = this.slider(grid, "Blur", 0, 60, (value) => ({ blur_um: value / 2 }), (value) => `${value / 2} µm`, true);
    this.colormap = element("select", { id: `${this.id}-colours` }, ...PALETTES.map((name) => element("option", { value: name, text: name })));
    this.colormap.addEventListener("change", () => this.change({ colormap: this.colormap.value }));
    grid.append(element("label", { for: this.colormap.id, text: "Colour map" }), this.colormap);
    const checks = element("div", { class: "sv-checks" }, this.visible.label, this.heat.label, this.outline.label);
    this.live = layer.colormap === "";
    this.root = element("div", { class: "sv-map", role: "group" }, this.title, this.warnings, this.answer, this.legend, this.scale);
    if (!this.live) this.root.append(checks, grid);
  }

  /** @param {number} place of the slider, -100 to 100 */
  capOf(place) {
    return this.firstCap * CAP_RANGE ** (place / 100);
  }

  /**
   * @param {string} label
   * @param {"visible" | "heat" | "outline"} name
   */
  check(label, name) {
    const input = element("input", { type: "checkbox" });
    input.addEventListener("change", () => this.change({ [name]: input.checked }));
    return { input, label: element("label", {}, input, document.createTextNode(` ${label}`)) };
  }

  /**
   * @param {HTMLElement} grid
   * @param {string} label
   * @param {number} min
   * @param {number} max
   * @param {(value: number) => object} changes
   * @param {(value: number) => string} text
   * @param {boolean} late whether to wait until the slider is let go
   */
  slider(grid, label, min, max, changes, text, late = false) {
    const id = `${this.id}-${label.replaceAll(" ", "-")}`;
    const input = element("input", { type: "range", min, max, step: 1, id });
    const output = element("output", { for: id });
    const show = () => {
      output.textContent = text(input.valueAsNumber);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => {
      show();
      if (!late) this.change(changes(input.valueAsNumber));
    });
    if (late) input.addEventListener("change", () => this.change(changes(input.valueAsNumber)));
    grid.append(element("label", { for: id, text: label }), input, output);
    /** @param {number} place @param {string} exact what the kernel has, which the slider may lie beside */
    const set = (place, exact) => {
      input.max = String(Math.max(max, Math.ceil(place)));
      if (Math.round(place) !== input.valueAsNumber) input.value = String(Math.round(place));
      output.textContent = exact;
      input.setAttribute("aria-valuetext", exact);
    };
    return { set };
  }

  /** @param {Layer} layer */
  set(layer) {
    if (layer.epoch !== this.layer.epoch && layer.blur_um !== this.layer.blur_um) this.firstCap = layer.cap || 1;
    this.layer = layer;
    this.root.setAttribute("aria-label", layer.title);
    this.title.textContent = layer.title;
    this.answer.textContent = layer.answer;
    this.warnings.replaceChildren(...layer.warnings.map((text) => element("p", { class: "sv-warning", text })));
    for (const name of /** @type {const} */ (["visible", "heat", "outline"])) this[name].input.checked = layer[name];
    this.opacity.set(100 * layer.opacity, `${Math.round(100 * layer.opacity)}%`);
    this.threshold.set(100 * layer.threshold, `${Math.round(100 * layer.threshold)}%`);
    this.cap.set((100 * Math.log((layer.cap || 1) / this.firstCap)) / Math.log(CAP_RANGE), short(layer.cap));
    this.blur.set(2 * layer.blur_um, `${short(layer.blur_um)} µm`);
    this.colormap.value = layer.colormap;
    this.drawLegend(layer);
  }

  /** @param {Layer} layer */
  drawLegend(layer) {
    const context = /** @type {CanvasRenderingContext2D} */ (this.legend.getContext("2d"));
    context.clearRect(0, 0, 256, 10);
    ramp(layer.colours).forEach((rgb, i) => {
      context.fillStyle = i / 255 < layer.threshold ? "transparent" : `rgb(${rgb.join(",")})`;
      context.fillRect(i, 0, 1, 10);
    });
    const hidden = `hidden below ${short(layer.threshold * layer.cap)}`;
    const range = `0 to ${short(layer.cap)} ${layer.unit}, ${hidden}`;
    this.legend.setAttribute("aria-label", `Colours: ${range}`);
    this.scale.replaceChildren(element("span", { text: "0" }), element("span", { text: hidden }), element("span", { text: `${short(layer.cap)} ${layer.unit}` }));
  }
}

export class Progress {
  /** @param {(job: number) => void} cancel */
  constructor(cancel) {
    this.text = element("span", { class: "sv-job-text" });
    this.bar = element("progress", { max: 1, "aria-label": "Progress of the run" });
    this.cancel = element("button", { type: "button", class: "sv-cancel", text: "Cancel" });
    this.root = element("div", { class: "sv-job", hidden: true }, this.text, this.bar, this.cancel);
    this.number = 0;
    this.cancel.addEventListener("click", () => cancel(this.number));
  }

  /** @param {{ number: number, state: string, text: string, fraction: number | null } | null} job */
  set(job) {
    this.root.hidden = job === null;
    if (job === null) return;
    const under_way = job.state === "forecast" || job.state === "running";
    this.number = job.number;
    this.root.dataset.state = job.state;
    this.text.textContent = job.text;
    this.bar.hidden = this.cancel.hidden = !under_way;
    if (job.fraction === null) this.bar.removeAttribute("value");
    else this.bar.value = job.fraction;
  }
}
