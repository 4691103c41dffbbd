// What a notebook shows: a view of one slide, or the review of a session.

import { ReviewView } from "./review.js";
import { SlideView } from "./view.js";

/** @param {{ model: any, el: HTMLElement }} context */
function render({ model, el }) {
  const view = model.get("_review") ? new ReviewView(model) : new SlideView(model);
  el.append(view.root);
  view.open();
  return () => view.close();
}

export default { render };
