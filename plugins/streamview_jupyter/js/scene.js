// What lies over the slide: maps, what was analysed, annotations, the selection, and the scale bar.

import { colour } from "./colours.js";
import { element } from "./dom.js";
import { short } from "./panel.js";

/** @typedef {import("./panel.js").Layer} Layer */
/** @typedef {import("./values.js").Sight} Sight */
/** @typedef {{ name: string, colour: string, points: [number, number][] }} Outlined */

const ANALYSED = "#4c8bf5";
const SELECTED = "#ffffff";
const WIDEST = 140; // px of the scale bar

export class Scene {
  constructor() {
    /** @type {[number, number] | null} y, x */
    this.mpp = null;
    this.canvas = element("canvas", { class: "sv-overlay", "aria-hidden": "true" });
    this.scaleBar = element("div", { class: "sv-scale-bar" });
    /** @type {import("./values.js").ValueTiles | null} */
    this.values = null;
    /** @type {Map<number, import("./values.js").Plane>} the values in sight, by layer */
    this.planes = new Map();
  }

  /**
   * @param {Sight} sight
   * @param {Layer[]} layers that are visible, bottom first
   * @param {Outlined[]} regions
   * @param {number[] | null} selection x, y, width, height in level-0 px
   */
  draw(sight, layers, regions, selection) {
    const { canvas, values } = this;
    if (canvas.width !== sight.width || canvas.height !== sight.height) [canvas.width, canvas.height] = [sight.width, sight.height];
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.clearRect(0, 0, sight.width, sight.height);
    this.planes.clear();
    for (const layer of layers) {
      if (!values) continue;
      const plane = values.plane(layer, sight);
      this.planes.set(layer.number, plane);
      const picture = new OffscreenCanvas(sight.width, sight.height);
      /** @type {OffscreenCanvasRenderingContext2D} */ (picture.getContext("2d")).putImageData(colour(plane, layer), 0, 0);
      context.drawImage(picture, 0, 0);
    }
    for (const { levels } of layers) {
      const [{ step, origin, height, width }] = levels;
      rectangle(context, sight, [origin[1] - (step[1] - 1) / 2, origin[0] - (step[0] - 1) / 2, width * step[1], height * step[0]], ANALYSED, 1.5);
    }
    for (const { points, colour: ink } of regions) outline(context, sight, points, ink, 2);
    if (selection) rectangle(context, sight, selection, SELECTED, 2);
    this.drawScaleBar(sight);
  }

  clear() {
    /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d")).clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.planes.clear();
    this.scaleBar.textContent = "";
    this.scaleBar.style.width = "0";
  }

  /** @param {Sight} sight */
  drawScaleBar(sight) {
    const unit = this.mpp?.[1] ?? 1;
    const largest = (WIDEST / sight.scale) * unit;
    const power = 10 ** Math.floor(Math.log10(largest));
    const length = power * (largest >= 5 * power ? 5 : largest >= 2 * power ? 2 : 1);
    this.scaleBar.style.width = `${(length / unit) * sight.scale}px`;
    this.scaleBar.textContent = this.mpp === null ? `${short(length)} px` : length >= 1000 ? `${short(length / 1000)} mm` : `${short(length)} µm`;
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Sight} sight
 * @param {number[]} box x, y, width, height in level-0 px
 * @param {string} ink
 * @param {number} width
 */
function rectangle(context, sight, [x, y, across, down], ink, width) {
  outline(context, sight, [[x, y], [x + across, y], [x + across, y + down], [x, y + down]], ink, width);
}

/**
 * A closed line on a darker one that is wider.
 * @param {CanvasRenderingContext2D} context
 * @param {Sight} sight
 * @param {[number, number][]} points x, y in level-0 px
 * @param {string} ink
 * @param {number} width
 */
function outline(context, sight, points, ink, width) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo((x - sight.x) * sight.scale, (y - sight.y) * sight.scale);
  context.closePath();
  context.strokeStyle = "#000000";
  context.lineWidth = width + 2;
  context.stroke();
  context.strokeStyle = ink;
  context.lineWidth = width;
  context.stroke();
}
