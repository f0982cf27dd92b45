// Text from outside, and figures, as they are shown.
"use strict";

dcsft.html = htm.bind(preact.h);

dcsft.text = (() => {
  const { html } = dcsft;
  const CUT = 2000;
  const DIRECTIONS = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

  // A text in `most` characters. Its middle is left out, since names of variants begin alike.
  function cut(text, most) {
    if (text.length <= most) return text;
    const marks = Array.from(text.length > 4 * most ? text.slice(0, 2 * most) + text.slice(-2 * most) : text);
    if (marks.length <= most) return text;
    const end = Math.floor((most - 1) / 2);
    return marks.slice(0, most - 1 - end).join("") + "…" + marks.slice(-end).join("");
  }

  // Names in attributes, options and titles, where nothing isolates them: direction marks are spelt out.
  function plain(text, most = 80) {
    return cut(String(text).replace(DIRECTIONS, (mark) => `‹U+${mark.codePointAt(0).toString(16).toUpperCase()}›`), most);
  }

  // A name in running text: isolated, and cut rather than breaking the page.
  function Name({ text, most = 200 }) {
    return html`<bdi class="name">${cut(String(text), most)}</bdi>`;
  }

  // A label in a narrow place: it may break after an underscore, a slash or a dash, into parts of some length.
  function Label({ text }) {
    const parts = [];
    for (const part of plain(text).match(/[^_/-]*[_/-]*/g)) {
      if (!parts.length || (parts.at(-1).length > 9 && part.length > 3)) parts.push(part);
      else parts.push(parts.pop() + part);
    }
    return html`<bdi class="name">${parts.map((part) => html`${part}<wbr />`)}</bdi>`;
  }

  // The first few of many, and all of them on request.
  function Some({ all, most, what, draw }) {
    const [whole, show] = preactHooks.useState(false);
    preactHooks.useEffect(() => show(false), [all]);
    return html`${draw(whole ? all : all.slice(0, most))}
      ${all.length > most && html`<button type="button" aria-expanded=${String(whole)} onClick=${() => show(!whole)}>
        ${whole ? `Show the first ${most} only` : `Show all ${all.length.toLocaleString("en")} ${what}`}
      </button>`}`;
  }

  // A text of any length: its beginning, and all of it on request.
  function Long({ text, label }) {
    const [all, show] = preactHooks.useState(false);
    preactHooks.useEffect(() => show(false), [text]);
    if (text === null || text === undefined) return html`<p class="none">none</p>`;
    if (text === "") return html`<p class="none">empty</p>`;
    const long = text.length > CUT;
    return html`<div class="long">
      <pre dir="auto" tabindex="0" role="group" aria-label=${label}>${long && !all ? text.slice(0, CUT) : text}</pre>
      ${long &&
      html`<button type="button" aria-expanded=${String(all)} onClick=${() => show(!all)}>
        ${all ? "Show the beginning only" : `Show all ${text.length.toLocaleString("en")} characters`}
      </button>`}
    </div>`;
  }

  const missing = (value) => value === null || value === undefined;
  // Decimals as the tables print them: Python rounds an exact half to the even digit, `toFixed` away from 0.
  function fixed(value, digits) {
    const scaled = Math.abs(value) * 10 ** digits;
    // Only a value of so few binary places is an exact half; products like 58.135 * 100 may look like one.
    const half = scaled % 1 === 0.5 && Number.isInteger(value * 2 ** (digits + 1));
    const even = half && Math.floor(scaled) % 2 === 0;
    return even ? ((Math.sign(value) * Math.floor(scaled)) / 10 ** digits).toFixed(digits) : value.toFixed(digits);
  }
  const percent = (value, digits = 1) => (missing(value) ? "–" : fixed(100 * value, digits));
  function points(value, digits = 1) {
    if (missing(value)) return "–";
    const shown = fixed(100 * value, digits);
    const zero = Number(shown) === 0;
    return zero ? (0).toFixed(digits) : value > 0 ? `+${shown}` : shown.replace("-", "−");
  }
  const interval = (low, high, format) =>
    missing(low) || missing(high) ? "no interval" : `[${format(low)}, ${format(high)}]`;
  // A p-value as in the tables: `p_text` of report/table.py.
  function chance(p) {
    if (missing(p)) return "–";
    if (p < 0.001) return "< 0.001";
    let digits = 3;
    while (p !== 0.05 && digits < 17 && Number(fixed(p, digits)) === 0.05) digits++;
    return fixed(p, digits);
  }

  function Pick({ label, value, options, onPick, wide }) {
    return html`<label class=${wide ? "field wide" : "field"}>
      <span>${label}</span>
      <select aria-label=${label} value=${value} onChange=${(event) => onPick(event.currentTarget.value)}>
        ${options.map(([key, said]) => html`<option key=${key} value=${key} selected=${key === value}>${said}</option>`)}
      </select>
    </label>`;
  }

  function Find({ label, value, onFind }) {
    return html`<label class="field">
      <span>${label}</span>
      <input type="search" aria-label=${label} value=${value} onInput=${(event) => onFind(event.currentTarget.value)} />
    </label>`;
  }

  // "1 row", "12 rows"
  const counted = (count, what) => `${count.toLocaleString("en")} ${count === 1 ? what.replace(/s$/, "") : what}`;

  // Steps through a list that is shown in pieces.
  function Pages({ at, size, total, what, go }) {
    const last = Math.max(0, Math.ceil(total / size) - 1);
    if (!last) return html`<p class="pages">${counted(total, what)}</p>`;
    const first = at * size + 1;
    return html`<nav class="pages" aria-label=${`Pages of ${what}`}>
      <button type="button" disabled=${at <= 0} onClick=${() => go(at - 1)}>Previous</button>
      <span>${first}–${Math.min(total, first + size - 1)} of ${total.toLocaleString("en")} ${what}</span>
      <button type="button" disabled=${at >= last} onClick=${() => go(at + 1)}>Next</button>
    </nav>`;
  }

  function Waiting({ error }) {
    return error
      ? html`<p class="alert" role="alert">Part of this page is missing: ${error}. Copy the whole folder again.</p>`
      : html`<p class="wait" role="status">Reading …</p>`;
  }

  // What a choice of the address stands for; a name that is none, like "__proto__", gives the last.
  const chosen = (choices, name, otherwise) => (Object.hasOwn(choices, name) ? choices[name] : otherwise);
  const clamp = (text, most) => Math.min(Math.max(0, Number.parseInt(text, 10) || 0), Math.max(0, most));

  return { plain, Name, Label, Some, Long, fixed, percent, points, interval, chance, Pick, Find, counted, Pages, Waiting, chosen, clamp };
})();
