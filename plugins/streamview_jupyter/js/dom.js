// Elements made from text alone: nothing that comes from a file is ever read as HTML.

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, string | boolean | number>} [attributes] `text` is the content; true and false set or leave out
 * @param {...Node} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = String(value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false) made.setAttribute(key, String(value));
  }
  made.append(...children);
  return made;
}

const DRAWINGS = {
  fit: "M3 7V3h4M13 3h4v4M17 13v4h-4M7 17H3v-4",
  in: "M10 4v12M4 10h12",
  out: "M4 10h12",
  draw: "M4 6V4h2M9 4h2M14 4h2v2M16 9v2M16 14v2h-2M11 16H9M6 16H4v-2M4 11V9",
  visible: "M3 3h14v14H3zM6.500 6.500h7v7h-7z",
  clear: "M5 5l10 10M15 5L5 15",
  panel: "M3 4h14v12H3zM12 4v12",
  help: "M7.500 8a2.500 2.500 0 1 1 3.600 2.200c-.8.4-1.100.9-1.100 1.800M10 15v.5",
};

/**
 * A button with a drawn sign.
 * @param {keyof typeof DRAWINGS} sign
 * @param {string} label what it does, with its key
 * @param {() => void} press
 */
export function button(sign, label, press) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 20 20", width: "18", height: "18", "aria-hidden": "true" })) drawn.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [key, value] of Object.entries({ d: DRAWINGS[sign], fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linecap": "round", "stroke-linejoin": "round" })) path.setAttribute(key, value);
  drawn.append(path);
  const made = element("button", { type: "button", class: "sv-button", title: label, "aria-label": label }, drawn);
  made.addEventListener("click", press);
  return made;
}
