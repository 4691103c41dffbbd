// The values of maps: tiles that are kept, and the part in sight as one plane of numbers at the resolution of the screen.

/** @typedef {import("./client.js").Tile} Tile */
/** @typedef {{ height: number, width: number, step: [number, number], origin: [number, number] }} Level */
/** @typedef {{ y: number, x: number, scale: number, height: number, width: number }} Sight left upper corner in level-0 px, screen px a level-0 px, size in screen px */
/** @typedef {{ values: Float32Array, height: number, width: number }} Plane NaN where nothing is known */

const SIDE = 256; // px of a tile
const KEPT = 160; // tiles, 40 MB at most
const CODES = 4095;
const ABSENT = 65535;
const FINE = 0.75; // screen px that a value has at least, where there are coarser levels

export class ValueTiles {
  /**
   * @param {import("./client.js").KernelClient} client
   * @param {() => void} arrived
   */
  constructor(client, arrived) {
    this.client = client;
    this.arrived = arrived;
    /** @type {Map<string, Float32Array>} */
    this.kept = new Map();
    /** @type {Map<string, Tile>} */
    this.asked = new Map();
    /** @type {Set<string>} */
    this.failed = new Set();
  }

  /**
   * The values of a layer in sight. Tiles that are missing are asked for; what is coarser, or of the epoch before, stands in for them.
   * @param {{ number: number, epoch: number, levels: Level[] }} layer
   * @param {Sight} sight
   * @returns {Plane}
   */
  plane(layer, sight) {
    const levels = layer.levels;
    let chosen = levels.findIndex((level) => level.step[1] * sight.scale >= FINE);
    if (chosen < 0) chosen = levels.length - 1;
    const values = new Float32Array(sight.height * sight.width).fill(NaN);
    const needed = this.visible(layer, chosen, sight);
    for (const tile of needed) this.ask(tile);
    const coarsest = levels.length - 1;
    this.forget(layer.number, needed, coarsest);
    if (chosen !== coarsest && needed.some((tile) => !this.kept.has(tile.join("/")))) {
      for (const level of [coarsest, chosen + 1]) {
        if (level === coarsest) for (const tile of this.visible(layer, level, sight)) this.ask(tile);
        this.draw(layer, level, sight, values);
      }
    }
    this.draw(layer, chosen, sight, values);
    return { values, height: sight.height, width: sight.width };
  }

  /**
   * @param {{ number: number, epoch: number, levels: Level[] }} layer
   * @param {number} index
   * @param {Sight} sight
   * @returns {Tile[]}
   */
  visible(layer, index, sight) {
    const level = layer.levels[index];
    const rows = span(sight.y, sight.height / sight.scale, level.step[0], level.origin[0], level.height);
    const columns = span(sight.x, sight.width / sight.scale, level.step[1], level.origin[1], level.width);
    /** @type {Tile[]} */
    const tiles = [];
    for (let row = Math.floor(rows[0] / SIDE); row * SIDE < rows[1]; row++)
      for (let column = Math.floor(columns[0] / SIDE); column * SIDE < columns[1]; column++)
        tiles.push([layer.number, layer.epoch, index, row, column]);
    return tiles;
  }

  /**
   * Draw a level over what is there, interpolated linearly.
   * @param {{ number: number, epoch: number, levels: Level[] }} layer
   * @param {number} index
   * @param {Sight} sight
   * @param {Float32Array} into
   */
  draw(layer, index, sight, into) {
    const level = layer.levels[index];
    const rows = span(sight.y, sight.height / sight.scale, level.step[0], level.origin[0], level.height);
    const columns = span(sight.x, sight.width / sight.scale, level.step[1], level.origin[1], level.width);
    const [height, width] = [rows[1] - rows[0], columns[1] - columns[0]];
    if (height <= 0 || width <= 0) return;
    const part = new Float32Array(height * width).fill(NaN);
    let any = false;
    for (const tile of this.visible(layer, index, sight)) {
      const values = this.kept.get(tile.join("/")) ?? this.kept.get(`${tile[0]}/${tile[1] - 1}/${tile.slice(2).join("/")}`);
      if (values === undefined) continue;
      any = true;
      const [top, left] = [tile[3] * SIDE, tile[4] * SIDE];
      const across = Math.min(SIDE, level.width - left);
      const [from, to] = [Math.max(left, columns[0]), Math.min(left + across, columns[1])];
      for (let y = Math.max(top, rows[0]); y < Math.min(top + SIDE, rows[1], level.height); y++) {
        const start = (y - top) * across;
        part.set(values.subarray(start + from - left, start + to - left), (y - rows[0]) * width + from - columns[0]);
      }
    }
    if (!any) return;
    // value k of the level is centred at level-0 position origin + k * step; it covers half a step on either side
    const places = (/** @type {number} */ count, /** @type {number} */ start, /** @type {0 | 1} */ axis, /** @type {number} */ first, /** @type {number} */ size) => {
      const [low, high, share] = [new Int32Array(count), new Int32Array(count), new Float32Array(count)];
      for (let i = 0; i < count; i++) {
        const place = (start + (i + 0.5) / sight.scale - 0.5 - level.origin[axis]) / level.step[axis] - first;
        if (place < -0.5 || place >= size - 0.5) {
          low[i] = -1;
          continue;
        }
        const inside = Math.min(Math.max(place, 0), size - 1);
        low[i] = Math.floor(inside);
        high[i] = Math.min(low[i] + 1, size - 1);
        share[i] = inside - low[i];
      }
      return { low, high, share };
    };
    const down = places(sight.height, sight.y, 0, rows[0], height);
    const across = places(sight.width, sight.x, 1, columns[0], width);
    for (let i = 0; i < sight.height; i++) {
      if (down.low[i] < 0) continue;
      const [upper, lower, share] = [down.low[i] * width, down.high[i] * width, down.share[i]];
      for (let j = 0; j < sight.width; j++) {
        const left = across.low[j];
        if (left < 0) continue;
        const right = across.high[j];
        const over = part[upper + left] + (part[upper + right] - part[upper + left]) * across.share[j];
        const under = part[lower + left] + (part[lower + right] - part[lower + left]) * across.share[j];
        const value = over + (under - over) * share;
        if (value === value) into[i * sight.width + j] = value;
      }
    }
  }

  /** @param {Tile} tile */
  ask(tile) {
    const key = tile.join("/");
    const kept = this.kept.get(key);
    if (kept) {
      this.kept.delete(key);
      this.kept.set(key, kept); // used last
      return;
    }
    if (this.asked.has(key) || this.failed.has(key)) return;
    this.asked.set(key, tile);
    this.client
      .request(tile)
      .then(({ data, top }) => decode(data, top))
      .then((values) => {
        this.kept.set(key, values);
        for (const oldest of this.kept.keys()) {
          if (this.kept.size <= KEPT) break;
          this.kept.delete(oldest);
        }
        this.arrived();
      })
      .catch(() => this.failed.add(key))
      .finally(() => this.asked.delete(key));
  }

  /**
   * Drop what was asked for of a layer and is no longer in sight, but for the coarsest level, which stands in for others.
   * @param {number} layer
   * @param {Tile[]} needed
   * @param {number} coarsest
   */
  forget(layer, needed, coarsest) {
    const keys = new Set(needed.map((tile) => tile.join("/")));
    for (const [key, tile] of this.asked) {
      if (tile[0] === layer && tile[2] !== coarsest && !keys.has(key)) {
        this.client.drop(tile);
        this.asked.delete(key);
      }
    }
  }
}

/**
 * First and past-last index of a level's values that an extent of the slide needs.
 * @param {number} start in level-0 px
 * @param {number} extent in level-0 px
 * @param {number} step
 * @param {number} origin
 * @param {number} size
 * @returns {[number, number]}
 */
function span(start, extent, step, origin, size) {
  const low = Math.max(Math.floor((start - origin) / step) - 1, 0);
  const high = Math.min(Math.ceil((start + extent - origin) / step) + 2, size);
  return [Math.min(low, size), Math.max(high, Math.min(low, size))];
}

/**
 * Values of a tile, as `streamview_jupyter.sources.encode_values` codes them.
 * @param {Uint8Array<ArrayBuffer>} data
 * @param {number} top
 */
async function decode(data, top) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = planes.length / 2;
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const code = (planes[i] << 8) | planes[i + count];
    values[i] = code === ABSENT ? NaN : (code / CODES) ** 2 * top;
  }
  return values;
}
