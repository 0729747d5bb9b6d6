"""Keyboard, names and look of a widget in the browser: the one piece of JavaScript of the kit.

ipywidgets has no keyboard events, and no names for what screen readers find without words: icons, sliders, pictures.
anywidget brings its own bundled loader, so nothing comes from the network.
"""

import anywidget
import traitlets

# The listener sits on the window and captures, because JupyterLab's own shortcuts do so on the document: keys that
# belong to the inspector must not run or cut cells. Keys with Ctrl, Alt or Meta stay Lab's, text fields keep theirs.
SCRIPT = """
const MOVES = ["ArrowLeft", "ArrowRight", "Home", "End"];
const isText = (e) => e.isContentEditable || e.tagName === "TEXTAREA" || e.tagName === "SELECT" ||
  (e.tagName === "INPUT" && !["checkbox", "radio", "button", "range"].includes(e.type));

function render({ model, el }) {
  const selector = "." + model.get("scope");
  let waiting = false, root = null, frame = null;
  const name = () => {
    const set = (part, key, text) => { if (part.getAttribute(key) !== text) part.setAttribute(key, text); };
    for (const one of root.querySelectorAll("[title]:is(button, input, select, textarea)"))
      if (one.title && (one.tagName !== "BUTTON" || !one.innerText.trim())) set(one, "aria-label", one.title);
    for (const one of root.querySelectorAll("[role=slider]"))
      set(one, "aria-label", one.closest(".jupyter-widgets")?.querySelector(".widget-label")?.innerText ?? "");
    for (const one of root.querySelectorAll(".widget-toggle-button"))
      set(one, "aria-pressed", String(one.classList.contains("mod-active")));
    root.querySelectorAll(".mi-panel img").forEach((one, n) => set(one, "alt", model.get("texts")[n] ?? ""));
  };
  // ipywidgets makes its parts later than this one, and some of them anew.
  const changes = new MutationObserver(name), watched = ["class", "title"];
  const adopt = () => {
    root = el.closest(selector);
    if (!root) { frame = requestAnimationFrame(adopt); return; }
    root.tabIndex = 0;
    changes.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: watched });
    model.on("change:texts", name);
    name();
  };
  const listen = (event) => {
    if (!root || !root.contains(event.target) || event.ctrlKey || event.altKey || event.metaKey) return;
    if (isText(event.target)) {
      if (event.key === "Escape") { event.stopPropagation(); event.target.blur(); root.focus(); }
      return;
    }
    const move = MOVES.includes(event.key);
    if (!move && event.key.length !== 1 || event.key === " ") return;
    if (move && event.target.getAttribute("role") === "slider") return;
    event.stopPropagation();
    event.preventDefault();
    const field = event.key === model.get("note_key") && root.querySelector(".mi-note textarea");
    if (field) { field.focus(); return; }
    if (event.repeat && waiting) return;  // a held key must not run ahead of the kernel
    waiting = true;
    model.send({ key: event.key });
  };
  const touched = (event) => { if (root && root.contains(event.target)) model.send({ key: "Focus" }); };
  const chosen = (event) => {
    const one = event.target.closest?.(".mi-strip [data-place]");
    if (!one || !root?.contains(one)) return;
    root.focus();  // the button is about to be made anew
    model.send({ place: Number(one.dataset.place) });
  };
  const answered = () => { waiting = false; };
  adopt();
  window.addEventListener("keydown", listen, true);
  window.addEventListener("focusin", touched);
  window.addEventListener("click", chosen);
  model.on("change:handled", answered);
  return () => {
    cancelAnimationFrame(frame);
    changes.disconnect();
    model.off("change:texts", name);
    window.removeEventListener("keydown", listen, true);
    window.removeEventListener("focusin", touched);
    window.removeEventListener("click", chosen);
    model.off("change:handled", answered);
  };
}
export default { render };
"""

STYLE = """
.mask-inspector { container-type: inline-size; padding: 8px; border-radius: 6px; gap: 6px; outline: none;
  overflow: hidden; border: 1px solid var(--jp-border-color2, #ccc); color: var(--jp-ui-font-color1, #222);
  background: var(--jp-layout-color1, transparent); font-family: var(--jp-ui-font-family, sans-serif); }
.mask-inspector:focus { border-color: var(--jp-brand-color1, #1976d2); }
.mask-inspector .widget-html-content { line-height: 1.45; font-size: var(--jp-ui-font-size1, 13px); }
.mask-inspector .mi-bar { flex-flow: row wrap; align-items: center; gap: 4px 14px; overflow: visible; }
.mask-inspector .mi-bar > * { margin: 0; }
.mask-inspector .mi-nav { width: auto; gap: 4px; align-items: center; overflow: visible; }
.mask-inspector .mi-nav > * { margin: 0; }
.mask-inspector .widget-label { width: auto; min-width: 0; margin-right: 6px; color: var(--jp-ui-font-color2, #555); }
.mask-inspector .widget-toggle-buttons { width: auto; }
.mask-inspector .widget-toggle-buttons .widget-toggle-button { width: auto; min-width: 5em; padding: 0 10px;
  margin: 0; }
.mask-inspector .widget-checkbox { width: auto; }
.mask-inspector .mi-strip .widget-html-content { display: flex; gap: 4px; overflow-x: auto; height: 60px; }
.mask-inspector .mi-strip button { padding: 2px; border: 0; background: none; color: inherit; cursor: pointer; }
.mask-inspector .mi-strip button[aria-current] { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -2px; }
.mask-inspector .mi-strip img { height: 52px; display: block; }
.mask-inspector .mi-panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(160px, 100%), 1fr));
  gap: 8px; align-items: start; overflow: visible; }
.mask-inspector .mi-panel { min-width: 0; max-width: 768px; margin: 0; overflow: hidden; }
.mask-inspector .mi-panel img { width: 100%; height: auto; max-height: 72vh; object-fit: contain;
  object-position: left top; }
.mask-inspector .mi-panel .widget-image { width: 100%; margin: 0; }
.mask-inspector .mi-legend { min-height: 24px; }
.mask-inspector .mi-prompt { max-height: 4.4em; overflow-y: auto; overflow-wrap: anywhere; }
.mask-inspector .mi-title { font-weight: 600; }
.mask-inspector .mi-quiet { color: var(--jp-ui-font-color2, #555); }
.mask-inspector .mi-error { color: var(--jp-error-color0, #b71c1c); font-weight: 600; }
.jp-mod-dark .mask-inspector .mi-error, [data-jp-theme-light="false"] .mask-inspector .mi-error { color: #ff8a80; }
.mask-inspector .mi-scroll { overflow-x: auto; }
.mask-inspector table.mi-figures { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.mask-inspector table.mi-figures th, .mask-inspector table.mi-figures td { padding: 1px 14px 1px 0; text-align: right;
  white-space: nowrap; }
.mask-inspector table.mi-figures th { font-weight: 400; color: var(--jp-ui-font-color2, #555); }
.mask-inspector table.mi-figures :first-child { text-align: left; }
@container (max-width: 640px) {
  .mask-inspector table.mi-figures { font-size: 12px; line-height: 1.25; }
  .mask-inspector table.mi-figures th, .mask-inspector table.mi-figures td { padding: 1px 7px 1px 0; }
  .mask-inspector table.mi-figures th { white-space: normal; vertical-align: bottom; }
}
.mask-inspector .mi-swatch { display: inline-block; width: 18px; height: 0; margin: 0 5px 3px 0; border-top: 4px solid;
  vertical-align: middle; }
.mask-inspector .mi-note { flex: 1 1 260px; width: auto; }
.mask-inspector .mi-note textarea { height: 3.2em; }
.mask-inspector kbd { padding: 0 4px; border: 1px solid var(--jp-border-color1, #bbb); border-radius: 3px;
  font-size: 0.9em; font-family: var(--jp-code-font-family, monospace); }
"""


class KeyListener(anywidget.AnyWidget):
    """An invisible widget that sends `{"key": name}` for keys pressed inside the nearest element of class `scope`.

    For a click on one of the small pictures it sends `{"place": number}`.

    The name is "Focus" when the reader enters another part of that element, by a click or by Tab. Whoever handles a
    key raises `handled`; until then repeats of a held key are dropped. `note_key` moves the focus into the note,
    Escape leaves it. `texts` stand for the pictures of `.mi-panel` where nobody sees them, in order.
    """

    _esm = SCRIPT
    _css = STYLE
    scope = traitlets.Unicode("mask-inspector").tag(sync=True)
    note_key = traitlets.Unicode("t").tag(sync=True)
    handled = traitlets.Int(0).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
