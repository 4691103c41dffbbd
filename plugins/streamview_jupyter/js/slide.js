// The slide in OpenSeadragon: tiles come from the kernel.

import OpenSeadragon from "openseadragon";

export const { Point } = OpenSeadragon;

/** @typedef {{ name: string, epoch: number, height: number, width: number, levels: number, mpp: [number, number] | null, background: number[] }} Slide */

const TILE = 512; // px
const SLIDE = 0; // the number of the slide among the layers
const FIRST = 8; // coarser levels are smaller than half a tile

/**
 * @param {OpenSeadragon.Viewer} viewer
 * @param {Slide} slide shown in place of another
 * @param {import("./client.js").KernelClient} client
 * @param {(text: string) => void} failed
 */
export function openSlide(viewer, slide, client, failed) {
  const source = new OpenSeadragon.TileSource(
    /** @type {any} */ ({
      width: slide.width,
      height: slide.height,
      tileSize: TILE,
      tileOverlap: 0,
      minLevel: Math.min(FIRST, slide.levels),
      maxLevel: slide.levels,
    }),
  );
  Object.assign(source, {
    getTileUrl: (/** @type {number} */ level, /** @type {number} */ x, /** @type {number} */ y) => `kernel:${slide.epoch}/${level}/${y}/${x}`,
    downloadTileStart(/** @type {any} */ context) {
      const [epoch, level, row, column] = context.src.slice("kernel:".length).split("/").map(Number);
      /** @type {import("./client.js").Tile} */
      const tile = [SLIDE, epoch, level, row, column];
      context.userData.tile = tile;
      client.request(tile).then(
        ({ data }) => context.finish(new Blob([data], { type: "image/jpeg" }), null, "rasterBlob"),
        (error) => {
          if (error.message !== "closed") failed(error.message);
          context.fail(error.message, null);
        },
      );
    },
    downloadTileAbort(/** @type {any} */ context) {
      client.drop(context.userData.tile);
    },
  });
  /** @type {any} */ (viewer).placeholderFillStyle = `rgb(${slide.background.join(",")})`;
  viewer.open(/** @type {any} */ (source));
}

/** @param {HTMLElement} element */
export function createViewer(element) {
  return OpenSeadragon(
    /** @type {any} */ ({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_LEFT",
      navigatorSizeRatio: 0.18,
      navigatorAutoFade: false,
      animationTime: 0.35,
      maxZoomPixelRatio: 8,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.3,
      imageLoaderLimit: 24,
      timeout: 120000,
      maxImageCacheCount: 300,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false },
    }),
  );
}
