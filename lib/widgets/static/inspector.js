// The mask inspector: controls, keys, and what is asked of the kernel (`lib/widgets/inspector.py`).
//
// The list, the place in it and all settings live here; every question names the image it is about, so that nothing
// can be said of another one. Keys are captured on the window, because JupyterLab's own shortcuts do so on the
// document: keys that belong to the inspector must not run or cut cells. Keys with Ctrl, Alt or Meta stay Lab's.

const LAYERS = ["prediction", "label", "difference", "image"];
const KEPT = 8;  // decoded images
const LEGEND = {
  hit: "hit: predicted, and true",
  false: "false: predicted, matches nothing",
  missed: "missed: true, matches nothing",
  unjudged: "predicted, no label to compare with",
  small: "too small to count",
};
const CORRECTED = "#CC79A7", DRAWN = "#FFFFFF";
const FIGURES = [  // heading, cell, whether it needs a label
  ["MOS", (f) => number(f.mos)],
  ["true MOS", (f) => number(f.true_mos), true],
  ["precision", (f) => number(f.precision), true],
  ["recall", (f) => number(f.recall), true],
  ["hit", (f) => share(f.hit, f.n_true), true],
  ["missed", (f) => share(f.missed, f.n_true), true],
  ["false", (f) => share(f.false, f.n_predicted), true],
  ["IoU", (f) => number(f.iou), true],
  ["missed area", (f) => percent(f.missed_area), true],
  ["false area", (f) => percent(f.false_area), true],
  ["regions", (f) => number(f.n_predicted, 0), false],
  ["predicted area", (f) => percent(f.predicted_area), false],
];
const HELP = [
  ["← →", "image"], ["1-4", "layer"], ["[ ]", "threshold"], ["r", "regions"], ["a", "annotators"], ["l", "label beside"],
  ["f", "prediction / label"], ["v", "first / second run"], ["+ - 0", "zoom, whole image"], ["Shift + arrows", "pan"],
  ["g", "model right"], ["x", "model wrong"], ["w", "label wrong"], ["u", "unsure"], ["t", "note"], ["/", "filter"],
  ["c", "correct"], ["Esc", "back to the picture"],
];
const EDIT_HELP = [
  ["m", "move"], ["b", "rectangle"], ["o", "polygon (Enter or its first point closes it)"], ["Del", "erase"], ["z", "undo"],
];
const VERDICT_KEYS = "gxwu";

const number = (value, digits = 2) => (value == null ? "-" : value.toFixed(digits));
const percent = (value) => (value == null ? "-" : `${(100 * value).toFixed(1)}%`);
const share = (part, all) => (part == null ? "-" : `${part} of ${all}`);
const rgb = (colour) => `rgb(${colour.join(" ")})`;

// An element: h("div", {class: "a", onclick: f}, child, "text", ...).
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const option = (value, text = value) => h("option", { value }, text);
const isText = (e) => e.isContentEditable || ["TEXTAREA", "SELECT"].includes(e.tagName) ||
  (e.tagName === "INPUT" && !["checkbox", "radio", "button", "range"].includes(e.type));

class Inspector {
  constructor(model, el) {
    this.model = model;
    this.setup = model.get("setup");
    const { start, labelled } = this.setup;
    this.state = {
      layer: "prediction", opacity: 0.5, regions: true, annotators: false, beside: labelled, advance: false, ...start,
    };
    Object.assign(this, { ids: [], position: 0, want: null, item: null, touched: false, swapped: false, flipped: false,
      rankedAt: start.thresholds });
    this.place = new Place();
    if (start.place) Object.assign(this.place, start.place);
    this.cache = new Map();  // id -> promise of a decoded image
    this.painted = new Map();  // where -> {key, layer}
    this.waiting = new Map();  // number of a question -> [resolve, reject]
    this.build(el);
    this.events = new AbortController();
    window.addEventListener("keydown", (event) => this.onKey(event), { capture: true, signal: this.events.signal });
    this.heard = (answer, buffers) => this.hear(answer, buffers);
    model.on("msg:custom", this.heard);
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.panels);
    this.find({ keep: start.id });
  }

  close() {
    this.events.abort();
    this.sizes.disconnect();
    this.model.off("msg:custom", this.heard);
  }

  // The kernel ------------------------------------------------------------------------------------------------------

  // Resolves to [answer, bytes]; an answer that is an error rejects with its sentence.
  ask(what, details = {}) {
    const number = Math.random().toString(36).slice(2);  // several views of one widget hear each other's answers
    this.model.send({ do: what, number, ...details });
    return new Promise((resolve, reject) => this.waiting.set(number, [resolve, reject]));
  }

  hear(answer, buffers) {
    if (answer.event) {
      if (answer.event === "ranked") this.find({ keep: this.touched ? this.item?.id : null });
      else this.showStatus(answer.status);
      return;
    }
    const [resolve, reject] = this.waiting.get(answer.number) ?? [];
    this.waiting.delete(answer.number);
    if (answer.error) reject?.(new Error(answer.error));
    else resolve?.([answer, buffers]);
  }

  tell(sentence) { this.error.textContent = sentence; }

  async attempt(work) {
    try { await work(); } catch (error) { this.tell(error.message); }
  }

  load(id) {
    if (!this.cache.has(id)) {
      const thresholds = [...this.state.thresholds];
      const item = this.ask("image", { id, thresholds }).then(async (found) => ({ ...await decode(...found), thresholds }));
      item.catch(() => this.cache.delete(id));
      this.cache.set(id, item);
      if (this.cache.size > KEPT) this.cache.delete(this.cache.keys().next().value);
    }
    return this.cache.get(id);
  }

  // Building --------------------------------------------------------------------------------------------------------

  build(el) {
    const { setup, state } = this, button = (text, title, onclick, more = {}) =>
      h("button", { type: "button", title, "aria-label": title, onclick, ...more }, text);
    const check = (text, name) => {
      const box = h("input", { type: "checkbox", checked: state[name], onchange: () => this.set({ [name]: box.checked }) });
      this.boxes[name] = box;
      return h("label", {}, box, text);
    };
    this.boxes = {};
    this.root = h("div", { class: "mask-inspector", tabIndex: 0 });
    this.root.addEventListener("pointerdown", () => { this.touched = true; });

    // Where in the list, and which list.
    const go = () => this.go(this.number.value - 1);
    this.number = h("input", { type: "number", min: "1", "aria-label": "go to this place in the list", onchange: go,
      onkeydown: (event) => event.key === "Enter" && go() });  // Lab keeps Enter from changing a field
    this.total = h("span");
    this.sort = h("select", { "aria-label": "sort by", onchange: () => this.find() });
    this.filter = h("input", { class: "mi-filter", spellcheck: false, placeholder: 'filter, such as  missed > 0 and domain == "shifted"',
      "aria-label": "filter: an expression on the columns", onchange: () => this.findNew(),
      onkeydown: (event) => event.key === "Enter" && this.findNew() });
    this.views = h("select", { "aria-label": "saved views", onchange: () => this.openView(this.views.value) });
    this.viewName = h("input", { placeholder: "name", size: 10, "aria-label": "name of the view to save" });
    this.rankAgain = button("⟳", "rank all images again at these thresholds", () => this.rank());
    const navigation = h("div", { class: "mi-bar" },
      h("span", { class: "mi-nav" }, button("‹", "previous image (left arrow)", () => this.step(-1)), this.number, this.total,
        button("›", "next image (right arrow)", () => this.step(1))),
      h("label", {}, "Sort ", this.sort), this.rankAgain,
      h("label", {}, "View ", this.views),
      h("span", {}, this.viewName, button("save", "save image, filter, order and setting under this name", () => this.saveView())));

    // How it looks.
    this.layers = h("span", { class: "mi-choice" }, ...(setup.labelled ? LAYERS : ["prediction", "image"]).map((name) =>
      button(name, `layer: ${name}`, () => this.set({ layer: name }), { "data-value": name })));
    this.sliders = setup.runs.map((run, n) => {
      const name = setup.runs.length > 1 ? `Threshold ${run.name}` : "Threshold", shown = h("output", {}, state.thresholds[n]);
      const slider = h("input", { type: "range", min: "0", max: "254", "aria-label": name, oninput: () => {
        const thresholds = [...this.state.thresholds];
        thresholds[n] = Number(slider.value);
        this.set({ thresholds });
      } });
      return { slider, shown, part: h("label", {}, name, slider, shown) };
    });
    this.opacity = h("input", { type: "range", min: "0", max: "1", step: "0.05", "aria-label": "Opacity",
      oninput: () => this.set({ opacity: Number(this.opacity.value) }) });
    const ofLabels = setup.labelled ? [check("annotators", "annotators"), check("label beside", "beside")] : [];
    const flips = [];
    if (setup.labelled) flips.push(button("⇄ label", "prediction and label in turn (f)", () => this.flip("flipped")));
    if (setup.runs.length > 1) flips.push(button("⇄ run", "first and second run in turn (v)", () => this.flip("swapped")));
    const look = h("div", { class: "mi-bar" }, this.layers, ...this.sliders.map((one) => one.part),
      h("label", {}, "Opacity", this.opacity), check("regions", "regions"), ...ofLabels, ...flips,
      h("span", { class: "mi-nav" }, button("−", "zoom out (-)", () => this.zoom(1 / 1.5)),
        button("whole", "whole image (0)", () => this.zoom(0)), button("+", "zoom in (+)", () => this.zoom(1.5))));

    // The image.
    this.headline = h("div", { class: "mi-prompt" });
    this.facts = h("div", { class: "mi-quiet" });
    this.panels = h("div", { class: "mi-panels" });
    this.legend = h("div", { class: "mi-legend mi-quiet" });
    this.figures = h("div", { class: "mi-scroll" });
    this.verdicts = h("span", { class: "mi-choice" }, ...setup.verdicts.map((name) =>
      button(name, `verdict: ${name}`, () => this.judge(name), { "data-value": name })));
    this.note = h("textarea", { class: "mi-note", placeholder: "Note (t)", "aria-label": "note on this image", rows: 2,
      onchange: () => this.say({ note: this.note.value }) });
    this.correct = button("Correct the label", "draw, move and erase regions (c)", () => this.edit());
    this.tools = h("span", { class: "mi-choice", hidden: true }, ...["move", "rectangle", "polygon"].map((tool) =>
      button(tool, `tool: ${tool}`, () => this.tool(tool), { "data-value": tool })),
    button("erase", "erase the chosen region (Del)", () => this.onEdit("Delete")),
    button("undo", "undo (z)", () => this.onEdit("z")),
    button("label's own", "drop the correction", () => this.dropCorrection()));
    this.body = h("div", {}, look, this.headline, this.facts, this.panels, this.legend, this.figures,
      h("div", { class: "mi-bar" }, this.verdicts, check("next after a verdict", "advance"), this.correct, this.tools),
      h("div", { class: "mi-bar" }, this.note,
        button("Export", "write verdicts as CSV and corrections as label sets", () => this.export())));
    this.error = h("div", { class: "mi-error", role: "alert" });
    this.status = h("div", { class: "mi-quiet" });
    const keys = (list) => list.flatMap(([key, text]) => [h("kbd", {}, key), ` ${text}  `]);
    this.help = h("details", {}, h("summary", {}, "Keys"), h("div", {}, "Wheel zooms once the picture was clicked; drag moves; ",
      "double click zooms in and back. ", ...keys(HELP), h("br"), "While correcting: ", ...keys(EDIT_HELP)));
    this.root.append(navigation, h("div", { class: "mi-bar" }, this.filter, this.buildFields()), this.error,
      this.body, this.status, this.help);
    this.fillViews();
    this.fillState();
    el.append(this.root);
  }

  // Fields that write the expression: column, comparison, value.
  buildFields() {
    this.column = h("select", { "aria-label": "column to filter", onchange: () => this.fillFields() });
    this.comparison = h("select", { "aria-label": "comparison" });
    this.known = h("datalist", { id: `mi-${Math.random().toString(36).slice(2)}` });
    this.value = h("input", { class: "mi-value", list: this.known.id, placeholder: "value", "aria-label": "value to compare with",
      onkeydown: (event) => event.key === "Enter" && this.addCondition() });
    this.meaning = h("span", { class: "mi-quiet" });
    this.fillColumns(this.setup.columns);
    return h("span", { class: "mi-bar" }, this.column, this.comparison, this.value, this.known,
      h("button", { type: "button", "aria-label": "add this condition", onclick: () => this.addCondition() }, "add"),
      h("button", { type: "button", "aria-label": "clear the filter", onclick: () => { this.filter.value = ""; this.find(); } }, "clear"), this.meaning);
  }

  fillColumns(columns) {
    const { value } = this.column, orders = [this.sort.value || this.state.sort_by];
    this.columns = columns;
    this.column.replaceChildren(...columns.map(({ name }) => option(name)));
    this.column.value = value || "prompt";
    const sorts = this.setup.labelled ? ["worst"] : [];
    sorts.push("id ascending", ...columns.flatMap((one) => ("low" in one ? [one.name, `${one.name} ascending`] : [one.name])));
    this.sort.replaceChildren(...[...new Set([...sorts, ...orders])].map((name) => option(name)));
    [this.sort.value] = orders;
    this.fillFields();
  }

  fillFields() {
    const column = this.columns.find(({ name }) => name === this.column.value);
    if (!column) return;
    const numeric = "low" in column, before = this.comparison.value;
    const choices = numeric ? [">", ">=", "<", "<=", "==", "!="] : ["contains", "==", "!="];
    this.comparison.replaceChildren(...choices.map((name) => option(name)));
    if (choices.includes(before)) this.comparison.value = before;
    this.known.replaceChildren(...(column.values ?? []).map((name) => option(name)));
    this.meaning.textContent = column.meaning + (numeric && column.low != null ? `: ${column.low} to ${column.high}` : "");
  }

  addCondition() {
    const column = this.columns.find(({ name }) => name === this.column.value), text = this.value.value.trim();
    const name = /^[A-Za-z_]\w*$/.test(column.name) ? column.name : `\`${column.name}\``;
    const plain = "low" in column || ["True", "False"].includes(text);
    const literal = plain ? text || "0" : JSON.stringify(text);
    const condition = this.comparison.value === "contains"
      ? `${name}.str.contains(${literal}, case=False, regex=False)` : `${name} ${this.comparison.value} ${literal}`;
    this.filter.value = this.filter.value.trim() ? `${this.filter.value.trim()} and ${condition}` : condition;
    this.find();
  }

  // Finding ---------------------------------------------------------------------------------------------------------

  // Enter also leaves the field changed: one of the two is enough.
  findNew() { if (this.filter.value !== this.asked) this.find(); }

  // Ask for the list as filter and order say; `keep` stays on the screen when it is among the images found.
  find({ keep = null } = {}) {
    return this.attempt(async () => {
      const query = this.filter.value, sort_by = this.sort.value;
      this.asked = query;
      const [{ ids, status, columns }] = await this.ask("find", { query, sort_by });
      Object.assign(this.state, { query, sort_by });
      this.tell("");
      this.ids = ids;
      this.fillColumns(columns);
      if (!ids.length && query) this.tell(`No image matches ${query}; widen it`);
      this.body.hidden = !ids.length;
      await this.go(Math.max(0, ids.indexOf(keep)));
      this.showStatus(status);
    });
  }

  async rank() {
    await this.attempt(async () => {
      Object.assign(this, { touched: false, rankedAt: this.state.thresholds });
      await this.ask("rank", { thresholds: this.state.thresholds });
      await this.find();
    });
  }

  step(by) { return this.go(this.position + by); }

  // Show the image at a place of the list. While one is loading only the latest wish counts, so that a held key does
  // not run ahead of the kernel.
  async go(position) {
    const direction = position < this.position ? -1 : 1;
    this.position = Math.max(0, Math.min(position, this.ids.length - 1));
    this.number.value = this.position + 1;
    this.total.textContent = ` of ${this.ids.length.toLocaleString("en")}`;
    this.want = this.ids[this.position] ?? null;
    if (this.loading) return;
    this.loading = true;
    try {
      while (this.want !== null) {
        const id = this.want;
        const item = await this.load(id).catch((error) => { this.clear(); this.tell(error.message); });
        if (id !== this.want) continue;
        if (item) this.show(item);
        break;
      }
    } finally { this.loading = false; }
    for (const by of [direction, -direction]) this.ids[this.position + by] && this.load(this.ids[this.position + by]).catch(() => {});
  }

  clear() {
    this.item = null;
    delete this.root.dataset.shown;
    for (const part of [this.headline, this.facts, this.figures, this.legend, this.panels]) part.replaceChildren();
  }

  // Showing ---------------------------------------------------------------------------------------------------------

  show(item) {
    if (this.item?.size.join() !== item.size.join()) this.place.reset();
    if (this.item !== item) this.closeEditor();
    this.item = item;
    this.state.id = item.id;
    this.tell(item.problems.join("; "));
    this.headline.replaceChildren(h("span", { class: "mi-title" }, item.id), ` ${item.prompt}`);
    this.facts.textContent = item.facts.join(" · ");
    this.showSaid(item.said);
    this.compare();
    this.layOut();
  }

  showSaid(said) {
    this.item.said = said;
    this.note.value = said.note;
    this.mark(this.verdicts, said.verdict);
    this.correct.textContent = said.regions ? "Correct again" : "Correct the label";
  }

  mark(choice, value) {
    for (const one of choice.querySelectorAll("[data-value]")) one.setAttribute("aria-pressed", one.dataset.value === value);
  }

  set(changes) {
    this.touched = true;
    Object.assign(this.state, changes);
    this.fillState();
    if ("beside" in changes) this.layOut();
    if ("thresholds" in changes) this.compare();
    this.draw();
  }

  // Put the state on the controls.
  fillState() {
    const { state } = this;
    this.mark(this.layers, state.layer);
    this.sliders.forEach(({ slider, shown }, n) => { slider.value = shown.textContent = state.thresholds[n]; });
    this.opacity.value = state.opacity;
    for (const [name, box] of Object.entries(this.boxes)) box.checked = state[name];
  }

  flip(which) {
    this[which] = !this[which];
    this.draw();
  }

  // Ask how the metric sees the image at the thresholds, unless that is known or being asked.
  async compare() {
    const { item } = this;
    if (!item) return;
    this.showFigures();
    if (item.asking || item.thresholds.join() === this.state.thresholds.join()) return;
    item.asking = true;
    const thresholds = [...this.state.thresholds];
    await this.attempt(async () => Object.assign(item, (await this.ask("compare", { id: item.id, thresholds }))[0], { thresholds }));
    item.asking = false;
    if (item === this.item) { this.compare(); this.draw(); }
  }

  showFigures() {
    const { item } = this, labelled = Boolean(item.label);
    const columns = FIGURES.filter(([, , needs]) => needs === undefined || needs === labelled);
    const head = h("tr", {}, h("th"), ...columns.map(([name]) => h("th", {}, name)));
    const rows = item.figures.map((one, n) =>
      h("tr", {}, h("td", {}, this.setup.runs[n].name), ...columns.map(([, cell]) => h("td", {}, cell(one)))));
    this.figures.replaceChildren(h("table", { class: "mi-figures" }, h("tbody", {}, head, ...rows)));
  }

  showStatus(lines) {
    this.status.replaceChildren(...lines.flatMap((line) => [line, h("br")]));
  }

  // Panels ----------------------------------------------------------------------------------------------------------

  // One canvas for the label and for each run.
  layOut() {
    const { item, setup, state } = this;
    if (!item) return;
    const sources = [...(state.beside && item.label ? [-1] : []), ...setup.runs.keys()];
    if (this.panels.childElementCount !== sources.length) {
      this.panels.replaceChildren(...sources.map(() => {
        const canvas = h("canvas", { role: "img" });
        this.listen(canvas);
        return h("div", { class: "mi-panel" }, h("div", { class: "mi-panel-title" }), canvas);
      }));
    }
    [...this.panels.children].forEach((panel, k) => { panel.source = sources[k]; });
    this.resize();
  }

  resize() {
    if (!this.item) return;
    const [width, height] = this.item.size, sharp = window.devicePixelRatio || 1;
    for (const canvas of this.panels.querySelectorAll("canvas")) {
      const wide = canvas.parentElement.clientWidth, high = Math.min(wide * height / width, 0.72 * window.innerHeight);
      canvas.style.height = `${high}px`;
      canvas.width = Math.round(wide * sharp);
      canvas.height = Math.round(high * sharp);
    }
    this.draw();
  }

  // Draw at the next frame, however much has changed until then.
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.item) this.drawNow();
    });
  }

  drawNow() {
    const { item, state, setup } = this, shown = new Set();
    for (const panel of this.panels.children) {
      let { source } = panel, layer = source < 0 ? "label" : state.layer;
      if (source >= 0 && this.swapped) source = (source + 1) % setup.runs.length;
      if (this.flipped && source >= 0 && item.label) layer = layer === "label" ? "prediction" : "label";
      const run = source < 0 ? null : setup.runs[source].name, ofLabel = layer === "label";
      const outlines = state.regions ? this.outlines(Math.max(0, source), ofLabel) : [];
      outlines.forEach(([status]) => shown.add(status));
      const [title, canvas] = panel.children;
      title.textContent = source < 0 ? "label" : layer === "prediction" ? run : `${run}: ${layer}`;
      canvas.setAttribute("aria-label", `${title.textContent} of ${item.id}`);
      canvas.style.cursor = this.editor && this.editor.tool !== "move" ? "crosshair" : "grab";
      const colours = Object.fromEntries(Object.entries(setup.colours).map(([name, colour]) => [name, rgb(colour)]));
      drawPicture(canvas, item.size, this.place, {
        image: item.image, layer: this.layer(source, layer), outlines, drawn: this.drawnRegions(ofLabel),
        colours: { ...colours, unjudged: "#fff" }, pending: this.pending(),
      });
    }
    this.showLegend(shown);
    this.rankAgain.disabled = state.thresholds.join() === this.rankedAt.join();
    if (item.thresholds.join() === state.thresholds.join()) this.root.dataset.shown = `${item.id} ${item.thresholds}`;
  }

  outlines(run, ofLabel) {
    return this.item.regions[run].filter(([side, status]) => (ofLabel ? side === "true" : side === "predicted" || status === "missed"))
      .map(([, status, points]) => [status, points]);
  }

  drawnRegions(ofLabel) {
    const { item, state, editor } = this;
    if (editor) return editor.regions.map((one, k) => ({ ...one, colour: CORRECTED, handles: k === editor.chosen }));
    const kept = ofLabel && item.said.regions?.map((one) => ({ ...one, colour: CORRECTED }));
    const drawn = state.annotators ? item.annotators.map((one) => ({ ...one, colour: DRAWN, name: `${one.annotator + 1}` })) : [];
    return [...drawn, ...(kept || [])];
  }

  pending() {
    if (!this.editor?.pending) return null;
    const { tool, pending } = this.editor;
    return tool === "rectangle" ? [...corners({ shape: tool, points: pending }), pending[0]] : pending;
  }

  // The painted heatmap of a panel, or null; painted again only when something that it depends on has changed.
  layer(source, layer) {
    const { item, setup, state } = this, { opacity } = state;
    const run = Math.max(0, source), predicted = item.predicted[run], threshold = state.thresholds[run];
    if (layer === "image" || (layer !== "prediction" && !item.label) || (layer !== "label" && !predicted)) return null;
    const key = [item.id, opacity, layer === "label" ? "" : threshold].join(), where = `${source} ${layer}`;
    if (this.painted.get(where)?.key !== key) {
      const kinds = ["false", "missed", "hit"].map((name) => setup.colours[name]);
      const make = {
        prediction: () => paint(predicted, predictionTable(setup.palette, threshold, opacity)),
        label: () => paint(item.label, labelTable(setup.palette, opacity)),
        difference: () => paint(difference(predicted, item.label, threshold),
          colourTable(setup.palette.map((one, value) => kinds[value - 1] ?? one), (value) => (value ? opacity : 0))),
      };
      this.painted.set(where, { key, layer: make[layer]() });
    }
    return this.painted.get(where).layer;
  }

  showLegend(statuses) {
    const areas = new Set(this.setup.runs.map((run) => `${Number((100 * run.min_area).toPrecision(2))}%`));
    const area = [...areas].join(" and "), parts = [];
    const add = (colour, style, text) => parts.push(h("span", { class: "mi-key" },
      h("span", { class: "mi-swatch", style: `border-top: ${style} ${colour}` }), text));
    for (const [name, text] of Object.entries(LEGEND)) {
      if (!statuses.has(name)) continue;
      const style = { missed: "3px dashed", small: "1px solid" }[name] ?? "4px solid";
      const colour = this.setup.colours[name] ? rgb(this.setup.colours[name]) : "#fff";
      add(colour, style, name === "small" ? `${text}: up to ${area} of the image` : text);
    }
    if (this.editor || this.item.said.regions) add(CORRECTED, "3px solid", "corrected label");
    if (this.state.annotators && !this.editor) add(DRAWN, "2px solid", "drawn by an annotator (number)");
    this.legend.replaceChildren(...parts);
  }

  // Pointer ---------------------------------------------------------------------------------------------------------

  listen(canvas) {
    const frame = () => [canvas.clientWidth, canvas.clientHeight];
    const at = (event) => {
      const { left, top } = canvas.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    const onImage = (event) => {
      const { scale, left, top } = this.place.of(frame(), this.item.size), [x, y] = at(event);
      return [(x - left) / scale, (y - top) / scale];
    };
    let last = null, editing = false;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !this.item) return;
      event.preventDefault();
      this.root.focus({ preventScroll: true });
      const near = NEAR / this.place.of(frame(), this.item.size).scale;
      editing = Boolean(this.editor?.press(onImage(event), near));
      last = at(event);
      canvas.setPointerCapture(event.pointerId);
      this.draw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.item) return;
      if (this.editor && (editing || this.editor.pending)) this.editor.drag(onImage(event));
      else if (last) {
        const [x, y] = at(event);
        this.place.pan([x - last[0], y - last[1]], frame(), this.item.size);
        last = [x, y];
      } else return;
      this.draw();
    });
    const release = () => {
      if (editing) this.editor?.release();
      last = null;
      editing = false;
      this.draw();
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("dblclick", (event) => {
      if (this.editor?.tool === "polygon") { this.onEdit("Enter"); return; }
      if (this.place.zoom > 1) this.place.reset();
      else this.place.zoomAt(Math.max(2, 1 / this.place.of(frame(), this.item.size).scale), at(event), frame(), this.item.size);
      this.draw();
    });
    canvas.addEventListener("wheel", (event) => {
      // Without the focus the page scrolls on, and at the whole image as well.
      if (!this.root.contains(document.activeElement) || (event.deltaY > 0 && this.place.zoom <= 1)) return;
      event.preventDefault();
      const lines = event.deltaMode ? 30 : 1;
      this.place.zoomAt(Math.exp(-event.deltaY * lines / 400), at(event), frame(), this.item.size);
      this.draw();
    }, { passive: false });
    canvas.frame = frame;
  }

  // Zoom about the middle; 0 shows the whole image.
  zoom(factor) {
    const canvas = this.panels.querySelector("canvas");
    if (!canvas) return;
    const frame = canvas.frame();
    if (factor) this.place.zoomAt(factor, frame.map((side) => side / 2), frame, this.item.size);
    else this.place.reset();
    this.draw();
  }

  pan(by) {
    const canvas = this.panels.querySelector("canvas");
    if (canvas) this.place.pan(by, canvas.frame(), this.item.size);
    this.draw();
  }

  // Keys ------------------------------------------------------------------------------------------------------------

  onKey(event) {
    const { target, key } = event;
    if (!this.root.contains(target) || event.ctrlKey || event.altKey || event.metaKey) return;
    if (isText(target)) {
      if (key === "Escape") { event.stopPropagation(); target.blur(); this.root.focus(); }
      return;
    }
    if (target.type === "range" && key.startsWith("Arrow") && !event.shiftKey) return;
    if ((key === " " || key === "Enter") && target.tagName === "BUTTON") return;
    const wanted = this.onEdit(key) || this.keyAction(event);
    if (!wanted && key.length !== 1) return;  // Tab and the like stay the browser's
    event.stopPropagation();
    event.preventDefault();
    this.touched = true;
    if (typeof wanted === "function") wanted();
  }

  keyAction({ key, shiftKey }) {
    const { state, setup } = this, toggle = (name) => () => this.set({ [name]: !state[name] });
    const layers = setup.labelled ? LAYERS : ["prediction", "image"];
    const by = (change) => () => this.set({ thresholds: state.thresholds.map((at, n) => (n ? at : Math.max(0, Math.min(254, at + change)))) });
    const far = 60, pans = { ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] };
    if (shiftKey && pans[key]) return () => this.pan(pans[key]);
    if (VERDICT_KEYS.includes(key)) return () => this.judge(setup.verdicts[VERDICT_KEYS.indexOf(key)]);
    if (layers[Number(key) - 1]) return () => this.set({ layer: layers[Number(key) - 1] });
    return {
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      r: toggle("regions"), a: toggle("annotators"), l: toggle("beside"), "[": by(-5), "]": by(5),
      f: () => setup.labelled && this.flip("flipped"), v: () => setup.runs.length > 1 && this.flip("swapped"),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), 0: () => this.zoom(0),
      t: () => this.note.focus(), "/": () => this.filter.focus(), c: () => this.edit(),
    }[key];
  }

  // Verdicts and corrections ----------------------------------------------------------------------------------------

  // Keep a verdict, a note or corrected regions of the image on the screen.
  say(said) {
    const { item } = this;
    return this.attempt(async () => {
      if (!item) throw new Error("No picture is on the screen, so nothing was noted; step to an image that is shown.");
      const threshold = this.state.thresholds[0];
      const [answer] = await this.ask("judge", { id: item.id, ...said, ...("verdict" in said ? { threshold } : {}) });
      item.said = answer.said;
      if (item === this.item) this.showSaid(answer.said);
      this.showStatus(answer.status);
      this.draw();
    });
  }

  async judge(verdict) {
    const given = this.item?.said.verdict !== verdict;
    await this.say({ verdict: given ? verdict : "" });
    if (given && this.state.advance) await this.step(1);
  }

  edit() {
    if (this.editor) { this.closeEditor(); return; }
    if (!this.item) return;
    const { item } = this;
    this.editor = new RegionEditor(item.said.regions ?? item.annotators, item.size, (regions) => this.say({ regions }));
    this.tools.hidden = false;
    this.correct.setAttribute("aria-pressed", "true");
    this.tool("move");
    this.draw();
  }

  closeEditor() {
    this.editor = null;
    this.tools.hidden = true;
    this.correct.setAttribute("aria-pressed", "false");
    this.draw();
  }

  tool(name) {
    this.editor?.choose(name);
    this.mark(this.tools, name);
    this.draw();
  }

  // What a key does to the regions; false when the editor does not know it.
  onEdit(key) {
    const { editor } = this;
    if (!editor) return false;
    const tool = { m: "move", b: "rectangle", o: "polygon" }[key];
    if (tool) this.tool(tool);
    else if (key === "Delete" || key === "Backspace") editor.erase();
    else if (key === "z") editor.undo();
    else if (key === "Enter") editor.closePolygon();
    else if (key === "Escape") { if (editor.pending) editor.pending = null; else this.closeEditor(); }
    else return false;
    this.draw();
    return true;
  }

  async dropCorrection() {
    this.closeEditor();
    await this.say({ regions: null });
  }

  export() {
    return this.attempt(async () => {
      const [{ news }] = await this.ask("export");
      this.showStatus([news]);
    });
  }

  // Views -----------------------------------------------------------------------------------------------------------

  fillViews() {
    this.views.replaceChildren(option("", "-"), ...Object.keys(this.setup.views).map((name) => option(name)));
    this.filter.value = this.state.query;
    this.sort.value = this.state.sort_by;
  }

  saveView() {
    return this.attempt(async () => {
      const name = this.viewName.value.trim(), { zoom, x, y } = this.place;
      if (!name) throw new Error("Give the view a name first.");
      const [{ views }] = await this.ask("save_view", { name, view: { ...this.state, place: { zoom, x, y } } });
      this.setup.views = views;
      this.fillViews();
      this.views.value = name;
      this.showStatus([`Saved. MaskInspector(run, view=${JSON.stringify(name)}) opens it, and so does the list above.`]);
    });
  }

  async openView(name) {
    const view = this.setup.views[name];
    if (!view) return;
    Object.assign(this.state, view);
    this.fillViews();
    this.fillState();
    this.views.value = name;
    await this.find({ keep: view.id });
    Object.assign(this.place, view.place);
    this.draw();
  }
}

export default {
  render({ model, el }) {
    const inspector = new Inspector(model, el);
    return () => inspector.close();
  },
};
