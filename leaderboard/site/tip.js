// One tooltip for all cells: by hover and by focus, kept while the pointer is on it, gone with Escape.
"use strict";

dcsft.tip = (() => {
  const { html } = dcsft;
  const ID = "tip";
  let set = () => {};
  let shown = null;
  let leaving = 0;
  let said = null;

  function show(element, lines) {
    said = lines;
    clearTimeout(leaving);
    if (shown && shown !== element) shown.removeAttribute("aria-describedby");
    shown = element;
    element.setAttribute("aria-describedby", ID);
    set({ lines, box: element.getBoundingClientRect() });
  }

  function hide() {
    clearTimeout(leaving);
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    set(null);
  }

  // Moving to a cell by keyboard scrolls it into view: the tooltip goes along.
  const follow = () => {
    if (shown && shown.isConnected) set({ lines: said, box: shown.getBoundingClientRect() });
    else if (shown) hide();
  };

  const leave = () => {
    clearTimeout(leaving);
    leaving = setTimeout(() => {
      if (!shown || document.activeElement !== shown) hide();
    }, 200);
  };

  function Tip() {
    const [content, setContent] = preactHooks.useState(null);
    const box = preactHooks.useRef(null);
    set = setContent;
    preactHooks.useEffect(() => {
      const key = (event) => event.key === "Escape" && hide();
      addEventListener("keydown", key);
      addEventListener("scroll", follow, true);
      const later = () => setTimeout(follow);
      addEventListener("hashchange", later);
      return () => {
        removeEventListener("keydown", key);
        removeEventListener("scroll", follow, true);
        removeEventListener("hashchange", later);
      };
    }, []);
    preactHooks.useLayoutEffect(() => {
      if (!content || !box.current) return;
      const own = box.current.getBoundingClientRect();
      const [wide, high] = [document.documentElement.clientWidth, document.documentElement.clientHeight];
      const left = Math.max(8, Math.min(content.box.left, wide - own.width - 8));
      const below = content.box.bottom + 4;
      box.current.style.left = `${left}px`;
      box.current.style.top = `${below + own.height > high ? Math.max(8, content.box.top - own.height - 4) : below}px`;
    }, [content]);
    return html`<div id=${ID} role="tooltip" class="tip" ref=${box} hidden=${!content}
        onMouseEnter=${() => clearTimeout(leaving)} onMouseLeave=${leave}>
      ${content && content.lines.map(([what, said]) => html`<div><span>${what}</span> <bdi>${said}</bdi></div>`)}
    </div>`;
  }

  return { show, hide, leave, Tip };
})();
