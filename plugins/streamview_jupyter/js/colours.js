// From values to colours on the screen: cap, threshold, colour map, outline. The same rules as streamview.results.display.

/** @typedef {import("./values.js").Plane} Plane */
/** @typedef {{ colours: string[], cap: number, threshold: number, opacity: number, heat: boolean, outline: boolean }} Look */

const FAINTEST = 0.55; // alpha of the smallest value that is shown
const LINE = [0xff, 0xe1, 0x4a]; // yellow, over black

/** @param {string} hex */
const parts = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/**
 * 256 colours, [red, green, blue] each.
 * @param {string[]} colours from 0 to the cap
 */
export function ramp(colours) {
  const stops = colours.map(parts);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((from, channel) => Math.round(from + (stops[low + 1][channel] - from) * (place - low)));
  });
}

/**
 * Colour a plane of values.
 * @param {Plane} plane
 * @param {Look} look
 * @returns {ImageData}
 */
export function colour({ values, height, width }, look) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const shown = new Uint8Array(values.length); // 0 not known, 1 below the threshold, 2 shown
  const table = new Uint32Array(256);
  ramp(look.colours).forEach(([red, green, blue], i) => {
    const alpha = look.heat ? Math.round(255 * look.opacity * (FAINTEST + ((1 - FAINTEST) * i) / 255)) : 0;
    table[i] = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const strength = look.cap > 0 ? 255 / look.cap : 0;
  const least = Math.max(look.threshold * look.cap, Number.MIN_VALUE);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value !== value) continue;
    if (value >= least && strength) {
      shown[i] = 2;
      pixels[i] = table[Math.min(Math.round(value * strength), 255)];
    } else {
      shown[i] = 1;
    }
  }
  if (look.outline) drawOutline(pixels, shown, height, width);
  return image;
}

/**
 * Outline what is shown, three px wide on black of five; never along the border of what is known.
 * @param {Uint32Array} pixels
 * @param {Uint8Array} shown
 * @param {number} height
 * @param {number} width
 */
function drawOutline(pixels, shown, height, width) {
  /** @type {number[]} */
  const edges = [];
  for (let y = 0; y + 1 < height; y++) {
    for (let x = 0, i = y * width; x + 1 < width; x++, i++) {
      const here = shown[i];
      // the product of a shown and a hidden neighbour is 2; of two alike 1 or 4, with one not known 0
      if (here && (here * shown[i + 1] === 2 || here * shown[i + width] === 2)) edges.push(i);
    }
  }
  const yellow = ((0xff << 24) | (LINE[2] << 16) | (LINE[1] << 8) | LINE[0]) >>> 0;
  for (const [reach, ink] of [[2, 0xff000000], [1, yellow]]) {
    for (const i of edges) {
      const [y, x] = [Math.floor(i / width), i % width];
      for (let v = Math.max(y - reach, 0); v <= Math.min(y + reach, height - 1); v++)
        pixels.fill(ink, v * width + Math.max(x - reach, 0), v * width + Math.min(x + reach, width - 1) + 1);
    }
  }
}
