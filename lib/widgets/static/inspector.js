// Keyboard, names for screen readers and clicks on small pictures of the mask inspector, for `lib/widgets/keys.py`.
//
// The listener sits on the window and captures, because JupyterLab's own shortcuts do so on the document: keys that
// belong to the inspector must not run or cut cells. Keys with Ctrl, Alt or Meta stay Lab's, text fields keep theirs.

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
