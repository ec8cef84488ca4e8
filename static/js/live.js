// Regions marked data-live ask for themselves: "1" every two seconds, "5" every fifth time. The server leaves the mark out of its
// answer once nothing more will change, and the asking ends. It pauses in a hidden tab and while somebody has text selected in the region.
// The answer is morphed into the page: scroll places, focus and opened details stay as they are.

const PERIOD_MS = 2000;
const root = document.documentElement;

Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");
Idiomorph.defaults.callbacks.beforeNodeMorphed = (node) => !node.dataset || node.dataset.keep === undefined;

function isBeingRead(region) {
  const selection = document.getSelection();
  return !selection.isCollapsed && region.contains(selection.anchorNode);
}

function ask(isDue) {
  if (document.hidden) return;
  for (const region of document.querySelectorAll("[data-live]")) {
    if (isDue(region) && !isBeingRead(region)) htmx.trigger(region, "tick");
  }
}

let ticks = 0;
const timer = setInterval(() => {
  ticks += 1;
  if (!document.querySelector("[data-live]")) clearInterval(timer);
  ask((region) => ticks % Number(region.dataset.live) === 0);
}, PERIOD_MS);
document.addEventListener("visibilitychange", () => ask(() => true));

// What was said on the way here goes once the state it was said of is over. A refusal stays: somebody has to read it.
const stateNow = () => document.querySelector("[data-state]")?.dataset.state;
const stateThen = stateNow();
document.addEventListener("htmx:afterSettle", () => {
  if (stateNow() === stateThen) return;
  for (const said of document.querySelectorAll("[data-flash]:is(.success, .info)")) said.remove();
});
document.addEventListener("htmx:afterRequest", (event) => root.classList.toggle("is-offline", !event.detail.successful));
