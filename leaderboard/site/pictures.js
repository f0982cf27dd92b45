// An item's pictures, with its gold box and those that rows answered drawn on them.
"use strict";

dcsft.pictures = (() => {
  const { html } = dcsft;
  const FILE = /^[0-9a-f]{32}\.webp$/;
  const COLORS = ["one", "two", "three", "four"];

  // The boxes in an answer: [x1, y1, x2, y2] in pixels of the original, or a list of such; else none.
  function boxesIn(text) {
    if (typeof text !== "string" || text.length > 10000 || !text.trim().startsWith("[")) return [];
    let found;
    try {
      found = JSON.parse(text);
    } catch {
      return [];
    }
    const box = (one) => Array.isArray(one) && one.length === 4 && one.every((x) => typeof x === "number" && Number.isFinite(x));
    if (box(found)) return [found];
    return Array.isArray(found) && found.length && found.every(box) ? found.slice(0, 50) : [];
  }

  const file = (picture) => (picture && FILE.test(picture[0]) ? `pictures/${picture[0]}` : null);

  function Thumbnail({ picture }) {
    const source = file(picture);
    return source ? html`<img class="thumbnail" src=${source} alt="" loading="lazy" width="40" height="40" />` : null;
  }

  function Boxes({ boxes, width, height }) {
    const stroke = Math.max(width, height) / 160;
    return boxes.map(({ box: [x1, y1, x2, y2], kind }, at) => html`<g key=${at} class=${`box ${kind}`}>
      ${["under", "over"].map((layer) => html`<rect class=${layer} x=${Math.min(x1, x2)} y=${Math.min(y1, y2)}
        width=${Math.abs(x2 - x1)} height=${Math.abs(y2 - y1)} stroke-width=${layer === "under" ? 1.8 * stroke : stroke}
        stroke-dasharray=${kind === "gold" ? "none" : `${4 * stroke} ${2 * stroke}`} />`)}
    </g>`);
  }

  // answers: [{ name, text }], the gold one first.
  function Pictures({ pictures, answers, drawn, toggle }) {
    const boxes = answers.flatMap(({ text }, at) =>
      boxesIn(text).map((box) => ({ box, kind: at ? COLORS[(at - 1) % COLORS.length] : "gold" })));
    return html`<div class="pictures">
      ${pictures.map((picture, at) => {
        const source = file(picture);
        const [, width, height] = picture;
        if (!source) return html`<p class="none">The image has an invalid name.</p>`;
        const said = `Image ${at + 1} of ${pictures.length}, ${width} by ${height} pixels` +
          (boxes.length && drawn ? `, with ${boxes.length} boxes drawn` : "");
        return html`<svg key=${source} role="img" aria-label=${said} viewBox=${`0 0 ${width} ${height}`}
            class=${width <= 96 ? "picture small" : "picture"} style=${{ "aspect-ratio": `${width} / ${height}` }}>
          <image href=${source} width=${width} height=${height} preserveAspectRatio="none" />
          ${drawn && at === 0 && html`<${Boxes} boxes=${boxes} width=${width} height=${height} />`}
        </svg>`;
      })}
      ${boxes.length > 0 && html`<div class="legend">
        <label><input type="checkbox" checked=${drawn} onChange=${toggle} /> Draw boxes</label>
        ${answers.map(({ name, text }, at) => boxesIn(text).length > 0 && html`<span key=${at}>
          <svg class="key" viewBox="0 0 24 12" aria-hidden="true"><g class=${`box ${at ? COLORS[(at - 1) % COLORS.length] : "gold"}`}>
            <rect class="under" x="3" y="2" width="18" height="8" stroke-width="3.5" />
            <rect class="over" x="3" y="2" width="18" height="8" stroke-width="2" stroke-dasharray=${at ? "5 2" : "none"} /></g></svg>
          <${dcsft.text.Name} text=${name} most=${40} /></span>`)}
      </div>`}
    </div>`;
  }

  return { boxesIn, Pictures, Thumbnail };
})();
