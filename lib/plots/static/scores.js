// The page of a scored folder: sorts and filters cards, draws outlines of regions over the pictures. No library.
const images = JSON.parse(document.getElementById("data").textContent); // worst score first; some have a picture
const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const BINS = 16, STEP = 60;
const view = { sort: "score", broken: false, search: "", bin: null, shown: STEP };
let chosen = [], at = 0;

const orders = {
  score: (a, b) => a.mos - b.mos,
  area: (a, b) => b.area - a.area,
  peak: (a, b) => b.peak - a.peak,
  path: (a, b) => (a.path < b.path ? -1 : 1),
};
const binOf = (image) => Math.min(BINS - 1, Math.floor(((image.mos - 1) / 4) * BINS));

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function picture(image) {
  const box = element("div", { class: "picture", style: `--ratio: ${image.width / image.height}` });
  const say = `${image.path}: ${image.n} distorted regions`;
  box.append(element("img", { src: `data:image/jpeg;base64,${image.picture}`, alt: say }));
  box.append(element("img", { src: `data:image/png;base64,${image.heat}`, alt: "", class: "heat" }));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  for (const one of image.regions) {
    for (const rim of ["rim", ""]) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", `M${one.points.join(" ")}Z`);
      path.setAttribute("class", rim);
      svg.append(path);
    }
  }
  box.append(svg);
  return box;
}

function words(image, number) {
  const count = image.n;
  const figures = element("div", { class: "figures" }, element("span", { class: "rank" }, `${number + 1}.`),
    element("strong", {}, `MOS ${image.mos.toFixed(2)}`),
    element("span", {}, count ? `${percent(image.area)} in ${count} region${count > 1 ? "s" : ""}` : "no region"));
  const told = element("div", { class: "words" }, figures);
  if (image.prompt) told.append(element("p", { class: "prompt" }, image.prompt));
  told.append(element("div", { class: "path" }, image.path));
  return told;
}

function choose() {
  const search = view.search.toLowerCase();
  chosen = images.filter((image) =>
    (!view.broken || image.n) && (view.bin === null || binOf(image) === view.bin) &&
    (!search || `${image.path} ${image.prompt}`.toLowerCase().includes(search)));
  chosen.sort(orders[view.sort]); // stable: the worst score first among equals
  view.shown = STEP;
  draw();
}

function draw() {
  const cards = chosen.slice(0, view.shown).map((image, number) => {
    const shown = image.picture ? [picture(image), words(image, number)] : [words(image, number)];
    const card = element("button", { class: "card", type: "button" }, ...shown);
    card.addEventListener("click", () => open(number));
    return card;
  });
  byId("cards").replaceChildren(...cards);
  byId("count").textContent = `${chosen.length.toLocaleString("en")} of ${images.length.toLocaleString("en")} images`;
  byId("more").hidden = chosen.length <= view.shown;
}

function open(number) {
  at = number;
  const image = chosen[at], told = words(image, at), box = image.picture ? picture(image) : "";
  if (image.regions?.length) {
    const head = element("tr", {}, ...["region", "x", "y", "width", "height", "area", "peak"].map((name) => element("th", {}, name)));
    const rows = image.regions.map((one, index) => {
      const cells = [index + 1, ...one.box.map(Math.round), percent(one.area), one.peak];
      return element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell))));
    });
    told.append(element("table", {}, head, ...rows));
    told.append(element("p", { class: "soft" }, `In pixels of ${image.width} x ${image.height}; peak of 255.`));
  }
  byId("large").replaceChildren(box, told);
  byId("place").textContent = `${at + 1} of ${chosen.length}`;
  if (!byId("dialog").open) byId("dialog").showModal();
}

const step = (by) => { if (chosen[at + by]) open(at + by); };

function histogram() {
  const counts = Array(BINS).fill(0);
  for (const image of images) counts[binOf(image)] += 1;
  const most = Math.max(...counts, 1);
  byId("histogram").replaceChildren(...counts.map((count, bin) => {
    const range = `MOS ${(1 + (4 * bin) / BINS).toFixed(2)} to ${(1 + (4 * (bin + 1)) / BINS).toFixed(2)}: ${count} images`;
    const bar = element("button", { type: "button", title: range, "aria-label": range, "aria-pressed": view.bin === bin },
      element("span", { style: `height: ${count ? Math.max(3, (100 * count) / most) : 0}%` }));
    bar.addEventListener("click", () => { view.bin = view.bin === bin ? null : bin; histogram(); choose(); });
    return bar;
  }));
}

function press(buttons, pressed) {
  for (const button of buttons) button.setAttribute("aria-pressed", button === pressed);
}

byId("sort").addEventListener("change", (event) => { view.sort = event.target.value; choose(); });
byId("search").addEventListener("input", (event) => { view.search = event.target.value; choose(); });
byId("more").addEventListener("click", () => { view.shown += STEP; draw(); });
byId("broken").addEventListener("click", (event) => {
  view.broken = !view.broken;
  event.target.setAttribute("aria-pressed", view.broken);
  choose();
});
const layers = [...document.querySelectorAll("[data-show]")];
for (const button of layers) {
  button.addEventListener("click", () => { document.body.dataset.layer = button.dataset.show; press(layers, button); });
}
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => byId("dialog").close());
byId("dialog").addEventListener("click", (event) => { if (event.target === byId("dialog")) byId("dialog").close(); });
document.addEventListener("keydown", (event) => {
  if (!byId("dialog").open) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
histogram();
choose();
