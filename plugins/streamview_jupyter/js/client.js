// Tiles from the kernel: asked for over the widget's messages, in batches, and dropped when they are no longer needed.

/** @typedef {[layer: number, epoch: number, level: number, row: number, column: number]} Tile */
/** @typedef {{ data: Uint8Array<ArrayBuffer>, top: number }} Received */
/** @typedef {{ tile: Tile, promise: Promise<Received>, resolve: (received: Received) => void, reject: (error: Error) => void, asked: number, users: number }} Pending */

const MOST = 256; // tiles of one message
const COLLECT = 8; // ms in which requests are collected into one message
const HELLO = 1000; // ms between two attempts to reach the kernel
const ATTEMPTS = 12; // before the user is told
const PATIENCE = 10000; // ms after which a tile is asked for again, and the kernel whether it listens
const SILENCE = 20000; // ms without a word from the kernel after which it is asked

export class KernelClient {
  /**
   * @param {any} model of the widget
   * @param {(state: "ready" | "lost") => void} changed
   * @param {(content: any) => void} other receives messages that are not tiles
   */
  constructor(model, changed, other) {
    this.model = model;
    this.changed = changed;
    this.other = other;
    this.name = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    this.ready = false;
    this.attempts = 0;
    this.heard = performance.now();
    /** @type {Map<string, Pending>} */
    this.pending = new Map();
    /** @type {Set<string>} */
    this.fresh = new Set();
    /** @type {Map<string, Tile>} */
    this.dropped = new Map();
    /** @type {number | undefined} */
    this.timer = undefined;
    this.received = (/** @type {any} */ content, /** @type {DataView<ArrayBuffer>[]} */ buffers) => this.receive(content, buffers);
    model.on("msg:custom", this.received);
    this.greet();
    this.watch = window.setInterval(() => this.check(), PATIENCE / 4);
  }

  close() {
    this.model.off("msg:custom", this.received);
    clearInterval(this.watch);
    clearTimeout(this.timer);
    clearTimeout(this.greeting);
    for (const { reject } of this.pending.values()) reject(new Error("closed"));
    this.pending.clear();
  }

  /** Ask the kernel whether it listens, until it answers. */
  greet() {
    this.ready = false;
    if (this.attempts === ATTEMPTS) this.changed("lost");
    this.attempts += 1;
    this.send({ type: "hello", client: this.name });
    clearTimeout(this.greeting);
    this.greeting = window.setTimeout(() => this.greet(), HELLO * Math.min(this.attempts, 5));
  }

  /** @param {object} content */
  send(content) {
    try {
      this.model.send(content);
    } catch {
      this.changed("lost"); // the kernel is gone, and its comm closed
    }
  }

  /**
   * @param {Tile} tile
   * @returns {Promise<Received>}
   */
  request(tile) {
    const key = tile.join("/");
    const pending = this.pending.get(key);
    if (pending) {
      pending.users += 1; // the slide and its small picture may need the same
      return pending.promise;
    }
    /** @type {Pick<Pending, "resolve" | "reject">} */
    const settle = { resolve() {}, reject() {} };
    /** @type {Promise<Received>} */
    const promise = new Promise((resolve, reject) => Object.assign(settle, { resolve, reject }));
    this.pending.set(key, { tile, promise, ...settle, asked: performance.now(), users: 1 });
    this.fresh.add(key);
    this.dropped.delete(key);
    this.schedule();
    return promise;
  }

  /** @param {Tile} tile that is no longer needed */
  drop(tile) {
    const key = tile.join("/");
    const pending = this.pending.get(key);
    if (!pending || --pending.users) return;
    this.pending.delete(key);
    if (!this.fresh.delete(key)) this.dropped.set(key, tile);
    this.schedule();
  }

  schedule() {
    if (this.timer === undefined) {
      this.timer = window.setTimeout(() => {
        this.timer = undefined;
        this.flush();
      }, COLLECT);
    }
  }

  flush() {
    if (!this.ready || !(this.fresh.size || this.dropped.size)) return;
    const needed = [...this.fresh].slice(0, MOST);
    for (const key of needed) this.fresh.delete(key);
    const dropped = [...this.dropped.values()].slice(0, MOST);
    this.dropped.clear();
    const tiles = needed.map((key) => /** @type {Pending} */ (this.pending.get(key)).tile);
    this.send({ type: "tiles", client: this.name, needed: tiles, dropped });
    if (this.fresh.size) this.schedule();
  }

  /** Ask again for what has not come, and after a silence whether the kernel is there. */
  check() {
    if (this.ready && performance.now() - this.heard > SILENCE && document.visibilityState === "visible") {
      this.attempts = ATTEMPTS - 3;
      this.greet();
      return;
    }
    const late = performance.now() - PATIENCE;
    const missing = [...this.pending].filter(([key, { asked }]) => asked < late && !this.fresh.has(key));
    if (!this.ready || !missing.length) return;
    for (const [key, entry] of missing) {
      entry.asked = performance.now();
      this.fresh.add(key);
    }
    this.attempts = 0;
    this.greet();
  }

  /**
   * @param {any} content
   * @param {DataView<ArrayBuffer>[]} buffers
   */
  receive(content, buffers) {
    this.heard = performance.now();
    if (content.type === "welcome") {
      if (content.client !== this.name) return;
      clearTimeout(this.greeting);
      this.ready = true;
      this.attempts = 0;
      this.changed("ready");
      this.flush();
    } else if (content.type === "tiles") {
      content.tiles.forEach((/** @type {number[]} */ numbers, /** @type {number} */ index) => {
        const top = /** @type {number} */ (numbers[5]);
        const { buffer, byteOffset, byteLength } = buffers[index];
        this.take(numbers.slice(0, 5).join("/"))?.resolve({ data: new Uint8Array(buffer, byteOffset, byteLength), top });
      });
    } else if (content.type === "failed") {
      this.take(content.tile.join("/"))?.reject(new Error(content.text));
    } else {
      this.other(content);
    }
  }

  /** @param {string} key */
  take(key) {
    const entry = this.pending.get(key);
    this.pending.delete(key);
    this.fresh.delete(key);
    return entry;
  }
}
