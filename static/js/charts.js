// Draws each figure the server wrote into the page, in the colours of tokens.css, and draws it again when its data or the
// theme changes. A figure that has not changed is left alone, so that nothing flickers.

const CONFIG = { responsive: true, displayModeBar: false };
const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);
const drawn = new WeakMap();

/** The value of a colour token in the theme shown. */
function colour(token) {
  probe.style.color = `var(--${token})`;
  return getComputedStyle(probe).color;
}

/** A colour that what lies below shows through. */
function pale(token, share) {
  return colour(token).replace("rgb(", "rgba(").replace(")", `, ${share})`);
}

const DRESS = {
  sankey(trace) {
    trace.node.color = trace.meta.nodes.map(colour);
    trace.link.color = trace.meta.links.map((token) => pale(token, 0.35));
    trace.link.hovercolor = trace.meta.links.map((token) => pale(token, 0.6));
    trace.textfont = { color: colour("ink") };
  },
  sunburst(trace) {
    const outside = (token) => pale(token, 0.55);
    const colors = trace.meta.sectors.map((token, i) => (i < trace.meta.inner ? colour(token) : outside(token)));
    trace.marker = { colors, line: { color: colour("surface"), width: 1 } };
    trace.textfont = { color: trace.meta.sectors.map((_, i) => colour(i < trace.meta.inner ? "surface" : "ink")) };
  },
};

function dressTrace(trace) {
  if (DRESS[trace.type]) return DRESS[trace.type](trace);
  const value = colour(trace.meta.token);
  trace.marker = { ...trace.marker, color: value };
  if (trace.type === "bar") trace.marker.line = { width: 0 };
  if (trace.marker.pattern) trace.marker.pattern.fgcolor = value, trace.marker.pattern.bgcolor = "rgba(0,0,0,0)", trace.marker.pattern.fillmode = "overlay";
  if (trace.type === "scatter") trace.line = { ...trace.line, color: value, width: 2.25 }, trace.marker.size = 7;
  if (trace.error_y) trace.error_y.color = value;
}

function dressLayout(layout) {
  const ink = colour("ink-soft"), line = colour("line");
  layout.font = { ...layout.font, color: ink };
  for (const axis of ["xaxis", "yaxis"]) layout[axis] = { ...layout[axis], gridcolor: line, linecolor: colour("line-strong") };
  layout.hoverlabel = { bgcolor: colour("surface"), bordercolor: colour("line-strong"), font: { color: colour("ink") } };
  for (const shape of layout.shapes ?? []) shape.line = { ...shape.line, color: colour(shape.name || "line-strong") };
  for (const note of layout.annotations ?? []) note.font = { size: 11, color: ink };
}

const isEmpty = ({ x, node, labels }) => !(x?.length || node?.label?.length || labels?.length);

function openOnClick(box) {
  box.on("plotly_click", ({ points }) => {
    const target = points[0]?.customdata;
    if (typeof target === "string" && target.startsWith("/") && !target.startsWith("//")) location.href = target;
  });
}

function draw(box, { again = false } = {}) {
  const text = document.getElementById(box.dataset.figure)?.textContent;
  if (!text || (!again && drawn.get(box) === text) || !box.checkVisibility()) return;
  const figure = JSON.parse(text);
  const empty = figure.data.every(isEmpty);
  box.classList.toggle("is-empty", empty);
  if (empty) return void (box.textContent = "Nothing yet.");
  if (!drawn.has(box)) box.textContent = "";
  figure.data.forEach(dressTrace);
  dressLayout(figure.layout);
  const first = !drawn.has(box);
  drawn.set(box, text);
  Plotly.react(box, figure.data, figure.layout, CONFIG);
  if (first) openOnClick(box);
}

function drawAll(options) {
  document.querySelectorAll("[data-figure]").forEach((box) => draw(box, options));
}

drawAll();
document.addEventListener("themechange", () => drawAll({ again: true }));
document.addEventListener("htmx:afterSettle", () => drawAll());
// A folded figure has no width to be drawn in: it waits until it is unfolded. Toggles do not bubble.
document.addEventListener("toggle", () => drawAll({ again: true }), { capture: true });
