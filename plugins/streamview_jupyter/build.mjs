// Bundles js/ into static/, which is committed: users need neither Node nor the internet. `npm ci && npm run build`

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { build } from "esbuild";

const files = [...readdirSync("js").map((name) => `js/${name}`), "package.json", "package-lock.json"].sort();
const hash = createHash("sha256");
for (const file of files) hash.update(readFileSync(file));
const banner = `/* streamview_jupyter; built from sources ${hash.digest("hex")} */`;

await build({
  entryPoints: ["js/widget.js", "js/widget.css"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "inline",
  outdir: "static",
  banner: { js: banner, css: banner },
});
