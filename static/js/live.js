// Regions marked data-live ask for themselves every two seconds. The server leaves the mark out of its answer once nothing
// more will change, and the asking ends. It pauses in a hidden tab and while somebody has text selected in the region.
// The answer is morphed into the page: scroll places, focus and opened details stay as they are.

const PERIOD_MS = 2000;
const root = document.documentElement;

Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");
Idiomorph.defaults.callbacks.beforeNodeMorphed = (node) => !node.dataset || node.dataset.keep === undefined;

function isBeingRead(region) {
  const selection = document.getSelection();
  return !selection.isCollapsed && region.contains(selection.anchorNode);
}

function ask() {
  const regions = document.querySelectorAll("[data-live]");
  if (!regions.length) clearInterval(timer);
  if (document.hidden) return;
  for (const region of regions) {
    if (!isBeingRead(region)) htmx.trigger(region, "tick");
  }
}

const timer = setInterval(ask, PERIOD_MS);
document.addEventListener("visibilitychange", ask);
document.addEventListener("htmx:afterRequest", (event) => root.classList.toggle("is-offline", !event.detail.successful));
