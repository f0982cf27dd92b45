// Data files: loaded on demand as scripts, since a page on disk cannot fetch other files.
"use strict";

const dcsft = (() => {
  const NAME = /^(board|b\d+t\d+(items|scores|[rd]\d+)|p\d+(items|r0))$/;
  const KEPT = 60; // files of responses held at a time
  const held = new Map();
  const waiting = new Map();

  function take(name, content) {
    held.set(name, content);
    const answers = [...held.keys()].filter((key) => /[rd]\d+$/.test(key));
    for (const key of answers.slice(0, Math.max(0, answers.length - KEPT))) held.delete(key);
  }

  function load(name) {
    if (held.has(name)) return Promise.resolve(held.get(name));
    if (waiting.has(name)) return waiting.get(name);
    const coming = new Promise((resolve, reject) => {
      if (!NAME.test(name)) throw new Error("no such data file");
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      const done = (settle) => {
        waiting.delete(name);
        script.remove();
        settle();
      };
      script.onload = () =>
        done(() => (held.has(name) ? resolve(held.get(name)) : reject(new Error(`data/${name}.js is damaged`))));
      script.onerror = () => done(() => reject(new Error(`data/${name}.js is missing`)));
      document.head.append(script);
    });
    waiting.set(name, coming);
    return coming;
  }

  function bytes(text) {
    const found = atob(text);
    const out = new Uint8Array(found.length);
    for (let i = 0; i < found.length; i++) out[i] = found.charCodeAt(i);
    return out;
  }

  function widened(raw, width) {
    if (width === 1) return raw;
    const view = new DataView(raw.buffer);
    const out = width === 2 ? new Uint16Array(raw.length / 2) : new Uint32Array(raw.length / 4);
    for (let i = 0; i < out.length; i++) {
      out[i] = width === 2 ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true);
    }
    return out;
  }

  // Whole numbers, -1 for none.
  function numbers(packed) {
    if (!packed) return null;
    const codes = widened(bytes(packed.d), packed.w);
    const none = 256 ** packed.w - 1;
    return Array.from(codes, (code) => (code === none ? -1 : code));
  }

  // A function from an item's place to its text, null for none.
  function texts(packed) {
    if (!packed) return () => null;
    const codes = numbers(packed.c);
    return (at) => (codes[at] >= 0 ? packed.v[codes[at]] : null);
  }

  // One row's scores, NaN where a response could not be scored; null where the row lacks the task.
  function scores(packed, row, n) {
    if (packed.r[row] == null) return null;
    const raw = bytes(packed.r[row]);
    const out = new Float64Array(n);
    const whole = packed.w < 1 ? null : widened(raw, packed.w);
    for (let i = 0; i < n; i++) {
      const code = whole ? whole[i] : (raw[i >> 2] >> (2 * (i & 3))) & 3;
      out[i] = code < packed.v.length ? packed.v[code] : NaN;
    }
    return out;
  }

  // What files hold once all of them are there: { found, error }.
  function useData(names) {
    const key = names.join(" ");
    const [state, set] = preactHooks.useState({ key: null, found: null, error: null });
    preactHooks.useEffect(() => {
      let here = true;
      Promise.all(names.map(load)).then(
        (found) => here && set({ key, found, error: null }),
        (error) => here && set({ key, found: null, error: error.message }),
      );
      return () => {
        here = false;
      };
    }, [key]);
    if (state.key === key) return state;
    const known = names.every((name) => held.has(name));
    return { found: known ? names.map((name) => held.get(name)) : null, error: null };
  }

  return { take, load, numbers, texts, scores, useData };
})();
window.dcsft = dcsft;
