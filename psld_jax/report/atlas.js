// The atlas: one row of pictures for each sampler, drawn from sheets with a row for each frame of the trajectory.

const SCREEN = 1000; // pixels that a row is wide at most

class Atlas {
  constructor(element) {
    this.data = JSON.parse(document.getElementById("atlas-data").textContent);
    this.sheets = new Map();
    this.budget = document.getElementById("budget");
    this.frame = document.getElementById("frame");
    this.rows = ["fine solution", ...this.data.samplers].map((name) => this.makeRow(element, name));
    for (const input of document.querySelectorAll(".atlas-controls input")) input.oninput = () => this.draw();
    this.draw();
  }

  makeRow(element, name) {
    const { samples, width, height } = this.data;
    const figure = html("figure", { className: "way" }, element);
    const caption = html("figcaption", {}, figure);
    html("strong", { textContent: name }, caption);
    const told = html("span", {}, caption);
    const canvas = html("canvas", { width: samples * (width + 1) - 1, height }, figure);
    canvas.setAttribute("role", "img");
    canvas.style.width = `${Math.min(SCREEN, canvas.width * 6)}px`;
    return { name, told, canvas };
  }

  async sheet(data) {
    if (!this.sheets.has(data)) {
      const image = new Image();
      image.src = `data:image/png;base64,${data}`;
      this.sheets.set(data, image.decode().then(() => image));
    }
    return this.sheets.get(data);
  }

  async draw() {
    const budget = this.data.budgets[this.budget.value], turn = (this.turn = (this.turn || 0) + 1);
    const part = this.frame.max > 0 ? this.frame.value / this.frame.max : 1;
    const view = document.querySelector("input[name=view]:checked");
    const named = view.parentElement.textContent.trim();
    const where = part === 1 ? "the end: the sample" : part === 0 ? "the start: noise" : `${Math.round(100 * part)}% of the steps`;
    this.tell(this.budget, "budget-told", String(budget));
    this.tell(this.frame, "frame-told", where);
    const fine = await this.sheet(this.data.fine);
    for (const row of this.rows) {
      const way = this.data.ways.find((w) => w.sampler === row.name && w.budget === budget);
      if (row.name === "fine solution" && !way) {
        this.paint(row, fine, 0, null, " of the ODE, from the same noise", "the samples that the others are compared to");
        continue;
      }
      if (!way) {
        this.paint(row, null, 0, null, `: ${budget} evaluations are too few for one step`, "no picture");
        continue;
      }
      const at = Math.round(part * (way.steps.length - 1));
      const sheet = await this.sheet(way.images[view.value === "difference" ? "predicted" : view.value]);
      if (turn !== this.turn) return; // the sliders have moved on
      const last = way.steps[way.steps.length - 1];
      const step = `step ${way.steps[at]} of ${last}, t = ${shown(way.times[at])}`;
      const error = way.error === null ? "not finite" : `error ${shown(way.error)}`;
      const noise = way.stochastic ? "; draws noise of its own" : "";
      const told = `: ${way.nfe} evaluations, ${step}; ${error}${noise}; ${way.note}`;
      this.paint(row, sheet, at, view.value === "difference" ? fine : null, told, named);
    }
  }

  tell(input, id, text) {
    document.getElementById(id).textContent = text;
    input.setAttribute("aria-valuetext", text);
  }

  // Draw frame number `at` of a sheet, or its difference to the fine solution, sample by sample.
  paint(row, sheet, at, fine, told, named) {
    const { samples, width, height } = this.data, context = row.canvas.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, row.canvas.width, height);
    row.told.textContent = told;
    row.canvas.setAttribute("aria-label", `${row.name}${told}. ${named}, ${samples} samples side by side.`);
    row.canvas.hidden = !sheet;
    if (!sheet) return;
    const copy = (image, number, top) =>
      context.drawImage(image, number * width, top, width, height, number * (width + 1), 0, width, height);
    for (let number = 0; number < samples; number++) {
      copy(sheet, number, at * height);
      if (!fine) continue;
      const ours = context.getImageData(number * (width + 1), 0, width, height);
      copy(fine, number, 0);
      const theirs = context.getImageData(number * (width + 1), 0, width, height);
      for (let i = 0; i < ours.data.length; i++)
        if (i % 4 < 3) ours.data[i] = 128 + (this.data.gain * (ours.data[i] - theirs.data[i])) / 2;
      context.putImageData(ours, number * (width + 1), 0);
    }
  }
}

document.querySelectorAll(".ways").forEach((element) => new Atlas(element));
