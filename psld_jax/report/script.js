"use strict";
// Plots, tables and pictures of a report. Nothing here asks the network for anything.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 900, HEIGHT = 470, LEFT = 76, RIGHT = 215, TOP = 14, BOTTOM = 52;
const MARKERS = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-3.6,-3.6h7.2v7.2h-7.2z", "M0,-4.8L4.6,3.6H-4.6z", "M0,-5L5,0L0,5L-5,0z",
  "M0,4.8L4.6,-3.6H-4.6z", "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", "M-4,-2.6L-2.6,-4L0,-1.4L2.6,-4L4,-2.6L1.4,0L4,2.6L2.6,4L0,1.4L-2.6,4L-4,2.6L-1.4,0z",
  "M0,-5L1.4,-1.6L5,-1.4L2.2,0.9L3.1,4.4L0,2.4L-3.1,4.4L-2.2,0.9L-5,-1.4L-1.4,-1.6z",
];

function make(name, attributes = {}, parent = null, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function html(name, properties = {}, parent = null) {
  const element = Object.assign(document.createElement(name), properties);
  if (parent) parent.append(element);
  return element;
}

function shown(value) {
  if (value === null || value === undefined) return "-";
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return Number(value.toPrecision(3)).toExponential();
  return Number(value.toPrecision(4)).toLocaleString("en");
}

const colour = (series) => (series.colour < 0 ? "var(--context)" : `var(--c${series.colour % 8})`);

class Scale {
  constructor(low, high, log, from, to) {
    Object.assign(this, { log, from, to });
    this.low = log ? Math.log10(low) : low;
    this.high = log ? Math.log10(high) : high;
    if (this.high === this.low) this.high = this.low + 1;
  }
  at(value) {
    const number = this.log ? Math.log10(value) : value;
    return this.from + ((number - this.low) / (this.high - this.low)) * (this.to - this.from);
  }
  ticks() {
    const [low, high] = this.log ? [10 ** this.low, 10 ** this.high] : [this.low, this.high];
    if (this.log) {
      const found = [];
      const steps = this.high - this.low > 2.5 ? [1] : this.high - this.low > 1.2 ? [1, 3] : [1, 2, 3, 5, 7];
      for (let power = Math.floor(this.low); power <= Math.ceil(this.high); power++)
        for (const step of steps) found.push(step * 10 ** power);
      const seen = found.filter((v) => Math.log10(v) >= this.low - 1e-9 && Math.log10(v) <= this.high + 1e-9);
      if (seen.length > 2) return seen; // else a small part of a decade, which is labelled as a linear axis is
    }
    const found = [];
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push(v);
    return found;
  }
}

class Plot {
  constructor(figure) {
    this.figure = figure;
    this.spec = JSON.parse(figure.querySelector("script").textContent);
    this.hidden = new Set();
    this.log = { x: this.spec.x.log, y: this.spec.y.log };
    this.whole = false;
    this.current = null;
    this.controls = html("div", { className: "controls" }, figure);
    this.holder = html("div", { className: "holder" }, figure);
    this.tip = html("div", { className: "tip", hidden: true }, figure);
    this.spoken = html("p", { className: "quiet" }, figure);
    this.spoken.setAttribute("aria-live", "polite");
    this.legend = html("div", { className: "legend" }, figure);
    this.legend.setAttribute("role", "group");
    this.legend.setAttribute("aria-label", "Show or hide curves");
    this.makeControls();
    this.makeLegend();
    this.draw();
  }

  makeControls() {
    for (const axis of ["x", "y"]) {
      if (!this.positive(axis)) continue;
      const button = html("button", { type: "button" }, this.controls);
      const say = () => { button.textContent = `${axis} axis: ${this.log[axis] ? "logarithmic" : "linear"}`; };
      button.onclick = () => { this.log[axis] = !this.log[axis]; say(); this.draw(); };
      say();
    }
    if (this.spec.y.range) {
      const button = html("button", { type: "button", textContent: "whole range" }, this.controls);
      button.setAttribute("aria-pressed", "false");
      button.onclick = () => {
        this.whole = !this.whole;
        button.setAttribute("aria-pressed", String(this.whole));
        button.textContent = this.whole ? "range where curves differ" : "whole range";
        this.draw();
      };
    }
    if (this.spec.series.length > 1) {
      html("button", { type: "button", textContent: "show all" }, this.controls).onclick = () => this.hide([]);
      html("button", { type: "button", textContent: "hide all" }, this.controls).onclick = () =>
        this.hide(this.spec.series.map((s) => s.name));
      if (this.spec.series.some((s) => s.colour < 0))
        html("button", { type: "button", textContent: "only coloured" }, this.controls).onclick = () =>
          this.hide(this.spec.series.filter((s) => s.colour < 0).map((s) => s.name));
    }
  }

  makeLegend() {
    const all = this.spec.series, grey = all.filter((s) => s.colour < 0);
    if (all.length < 2) return;
    const more = grey.length && grey.length < all.length ? html("details", {}, this.figure) : null;
    if (more) html("summary", { textContent: `${grey.length} grey curves` }, more);
    const others = more ? html("div", { className: "legend" }, more) : this.legend;
    this.keys = [];
    for (const series of all) {
      const button = html("button", { type: "button" }, series.colour < 0 ? others : this.legend);
      this.keys.push(button);
      const key = make("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" }, button);
      make("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: colour(series), "stroke-width": series.colour < 0 ? 1.5 : 3 }, key);
      make("path", { d: MARKERS[series.marker % 8], transform: "translate(13,6)", fill: colour(series) }, key);
      const best = series.group && series.colour >= 0 && grey.length ? ` (best of ${series.group})` : "";
      html("span", { textContent: series.name + best }, button);
      button.setAttribute("aria-pressed", "true");
      button.dataset.series = series.name;
      button.onclick = () => {
        const names = new Set(this.hidden);
        if (!names.delete(series.name)) names.add(series.name);
        this.hide([...names]);
      };
      button.onmouseenter = button.onfocus = () => this.light(series.name);
      button.onmouseleave = button.onblur = () => this.light(null);
    }
  }

  hide(names) {
    this.hidden = new Set(names);
    for (const button of this.keys || [])
      button.setAttribute("aria-pressed", String(!this.hidden.has(button.dataset.series)));
    this.draw();
  }

  positive(axis) {
    const index = axis === "x" ? 0 : 1;
    return this.spec.series.every((s) => s.points.every((p) => p[index] > 0));
  }

  visible() {
    return this.spec.series.filter((s) => !this.hidden.has(s.name));
  }

  range(axis) {
    const index = axis === "x" ? 0 : 1, given = this.spec[axis].range;
    if (given && !this.whole) return given;
    const values = this.visible().flatMap((s) => s.points.map((p) => p[index]));
    if (axis === "y") values.push(...this.spec.lines.map((line) => line.y));
    if (!values.length) return [1, 10];
    const low = Math.min(...values), high = Math.max(...values);
    if (this.log[axis]) {
      const room = Math.max((high / low) ** 0.04, 1.03);
      return [low / room, high * room];
    }
    const room = 0.04 * (high - low || Math.abs(high) || 1);
    return [low - room, high + room];
  }

  draw() {
    const spec = this.spec, bottom = HEIGHT - BOTTOM, right = WIDTH - RIGHT;
    const hadFocus = this.holder.contains(document.activeElement);
    this.holder.textContent = "";
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "application" }, this.holder);
    svg.setAttribute("aria-label", `${spec.title}. Arrow keys go from point to point; the table below has all numbers.`);
    const clip = `clip-${Plot.count = (Plot.count || 0) + 1}`;
    make("rect", { x: LEFT, y: TOP - 4, width: right - LEFT + 8, height: bottom - TOP + 4 }, make("clipPath", { id: clip }, svg));
    const x = new Scale(...this.range("x"), this.log.x, LEFT, right);
    const y = new Scale(...this.range("y"), this.log.y, bottom, TOP);
    Object.assign(this, { svg, x, y });
    for (const tick of spec.x.ticks || x.ticks()) {
      const at = x.at(tick);
      if (at < LEFT - 1 || at > right + 1) continue;
      make("line", { class: "grid", x1: at, x2: at, y1: TOP, y2: bottom }, svg);
      make("text", { class: "tick", x: at, y: bottom + 18, "text-anchor": "middle" }, svg, shown(tick));
    }
    for (const tick of y.ticks()) {
      make("line", { class: "grid", x1: LEFT, x2: right, y1: y.at(tick), y2: y.at(tick) }, svg);
      make("text", { class: "tick", x: LEFT - 8, y: y.at(tick) + 4, "text-anchor": "end" }, svg, shown(tick));
    }
    make("text", { x: (LEFT + right) / 2, y: HEIGHT - 10, "text-anchor": "middle" }, svg, spec.x.label);
    const middle = (TOP + bottom) / 2;
    make("text", { x: 16, y: middle, "text-anchor": "middle", transform: `rotate(-90 16 ${middle})` }, svg, spec.y.label);
    make("path", { class: "axis", d: `M${LEFT},${TOP}V${bottom}H${right}`, fill: "none" }, svg);

    const labels = [];
    const inside = make("g", { "clip-path": `url(#${clip})` }, svg);
    for (const line of spec.lines) {
      if (this.log.y && line.y <= 0) continue;
      const at = y.at(line.y), group = make("g", { class: "floor" }, inside);
      make("line", { x1: LEFT, x2: right, y1: at, y2: at }, group);
      labels.push({ text: line.label, want: at, colour: "var(--quiet)" });
    }
    this.points = [];
    const order = [...this.visible()].sort((a, b) => (a.colour < 0 ? 0 : 1) - (b.colour < 0 ? 0 : 1));
    for (const series of order) {
      const group = make("g", { class: `series${series.colour < 0 ? "" : " strong"}`, "data-series": series.name }, inside);
      const points = series.points.filter((p) => !(this.log.y && p[1] <= 0) && !(this.log.x && p[0] <= 0));
      const places = points.map((p) => [x.at(p[0]), y.at(p[1])]);
      make("path", { d: places.map((p, i) => `${i ? "L" : "M"}${p[0].toFixed(1)},${p[1].toFixed(1)}`).join(""), stroke: colour(series) }, group);
      points.forEach((point, i) => {
        const [px, py] = places[i], spread = point[2];
        if (spread) {
          const lower = this.log.y ? Math.max(point[1] - spread, 10 ** y.low) : point[1] - spread;
          make("path", { class: "bar", stroke: colour(series), d: `M${px},${y.at(lower)}V${y.at(point[1] + spread)}` }, group);
        }
        if (series.points.length < 60)
          make("path", { d: MARKERS[series.marker % 8], transform: `translate(${px},${py})${series.colour < 0 ? " scale(0.6)" : ""}`,
            style: `fill:${colour(series)};stroke:none` }, group);
        if (py >= TOP - 6 && py <= bottom + 6) this.points.push({ series, point, px, py, index: i });
      });
      const last = places[places.length - 1];
      const labelled = series.colour >= 0 || this.visible().length <= 10;
      if (last && labelled && last[1] >= TOP - 8 && last[1] <= bottom + 8)
        labels.push({ text: series.name, want: last[1], colour: series.colour < 0 ? "var(--quiet)" : colour(series), from: last });
    }
    this.placeLabels(svg, labels, right, bottom);
    svg.onmousemove = (event) => this.near(event);
    svg.onmouseleave = () => this.show(null);
    svg.onblur = () => this.show(null);
    svg.onkeydown = (event) => this.key(event);
    if (hadFocus) svg.focus();
  }

  placeLabels(svg, labels, right, bottom) {
    const gap = 15;
    labels.sort((a, b) => a.want - b.want);
    let last = -Infinity;
    for (const label of labels) last = label.at = Math.max(label.want, last + gap);
    let next = bottom + 6;
    for (const label of [...labels].reverse()) next = (label.at = Math.min(label.at, next)) - gap;
    for (const label of labels) {
      make("path", { d: `M${right + 4},${label.want}L${right + 16},${label.at}`, stroke: label.colour, fill: "none", opacity: 0.6 }, svg);
      const text = make("text", { x: right + 20, y: label.at + 4, style: `fill:${label.colour}` }, svg, label.text);
      if (label.text.length > 27) text.textContent = `${label.text.slice(0, 26)}…`;
    }
  }

  near(event) {
    const box = this.svg.getBoundingClientRect(), unit = WIDTH / box.width;
    const mx = (event.clientX - box.left) * unit, my = (event.clientY - box.top) * unit;
    let best = null, least = 40 ** 2;
    for (const p of this.points) {
      const distance = (p.px - mx) ** 2 + (p.py - my) ** 2 + (p.series.colour < 0 ? 20 : 0);
      if (distance < least) [best, least] = [p, distance];
    }
    this.show(best);
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") return this.show(null);
    if (!step || !this.points.length) return;
    event.preventDefault();
    const now = this.current;
    if (!now) return this.show(this.points.find((p) => p.series.colour >= 0) || this.points[0], true);
    let choice;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      choice = this.points.filter((p) => p.series === now.series && (p.index - now.index) * step > 0);
      choice.sort((a, b) => (a.index - b.index) * step);
    } else {
      choice = this.points.filter((p) => p.point[0] === now.point[0] && (p.py - now.py) * step > 0);
      choice.sort((a, b) => (a.py - b.py) * step);
    }
    this.show(choice[0] || now, true);
  }

  show(p, spoken = false) {
    this.current = p;
    this.tip.hidden = !p;
    if (this.ring) this.ring.remove();
    this.light(p ? p.series.name : null);
    if (!p) { this.spoken.textContent = ""; return; }
    this.ring = make("circle", { cx: p.px, cy: p.py, r: 8, fill: "none", stroke: "var(--text)", "stroke-width": 2 }, this.svg);
    const spread = p.point[2] ? ` ± ${shown(p.point[2])}` : "";
    const note = p.point[3] ? `\n${p.point[3]}` : "";
    const group = p.series.group ? ` (${p.series.group})` : "";
    const told = `${p.series.name}${group}\n${this.spec.x.short}: ${shown(p.point[0])}\n${this.spec.y.short}: ${shown(p.point[1])}${spread}${note}`;
    this.tip.textContent = told;
    this.tip.style.whiteSpace = "pre-line";
    const unit = this.svg.getBoundingClientRect().width / WIDTH, top = this.holder.offsetTop;
    this.tip.style.left = `${p.px > WIDTH / 2 ? Math.max(0, p.px * unit - this.tip.offsetWidth - 14) : p.px * unit + 14}px`;
    this.tip.style.top = `${top + p.py * unit + 10}px`;
    if (spoken) this.spoken.textContent = told.replace(/\n/g, ", ");
  }

  light(name) {
    for (const group of this.svg.querySelectorAll(".series")) {
      group.classList.toggle("lit", group.dataset.series === name);
      group.classList.toggle("faint", name !== null && group.dataset.series !== name);
    }
  }
}

function sortable(table) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => {
    button.onclick = () => {
      const head = button.parentElement, up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const [one, two] = [value(a), value(b)], [p, q] = [parseFloat(one), parseFloat(two)];
        const missing = (one === "" ? 1 : 0) - (two === "" ? 1 : 0);
        if (missing) return missing;  // what is missing comes last, whichever way
        const sign = up ? 1 : -1;
        return sign * (Number.isNaN(p) || Number.isNaN(q) ? one.localeCompare(two) : p - q);
      });
      body.append(...rows);
    };
  });
}

function pictures() {
  const dialog = document.querySelector("dialog");
  if (!dialog) return;
  const image = dialog.querySelector("img"), title = dialog.querySelector("p");
  for (const button of document.querySelectorAll(".gallery button")) {
    button.onclick = () => {
      const small = button.querySelector("img");
      Object.assign(image, { src: small.src, alt: small.alt });
      image.style.width = `${small.naturalWidth}px`;
      title.textContent = small.alt;
      dialog.showModal();
    };
  }
  for (const button of dialog.querySelectorAll("[data-zoom]"))
    button.onclick = () => { image.style.width = `${image.naturalWidth * button.dataset.zoom}px`; };
  dialog.querySelector("[data-close]").onclick = () => dialog.close();
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
}

document.querySelectorAll(".plot").forEach((figure) => new Plot(figure));
document.querySelectorAll("table.sortable").forEach(sortable);
pictures();
