// The board's figures by row and column, and paired differences worked out from items.
"use strict";

dcsft.figures = (() => {
  const RIGHT = 0.5; // a response counts as right from this score on

  const group = (column) => column.distribution || "other";

  function cell(board, row, column) {
    const at = row * board.columns.length + column;
    const { cells } = board;
    const n = cells.n[at];
    if (n === null) return null;
    const estimate = (of) =>
      of[0][at] === null ? null : { value: of[0][at], low: of[1][at], high: of[2][at] };
    return {
      n, unscored: cells.unscored[at], unanswered: cells.unanswered[at], deviation: cells.deviation[at],
      accuracy: estimate(cells.accuracy), difference: estimate(cells.difference),
    };
  }

  // Row, other, column -> a comparison of the board, turned round where it stands the other way.
  function tested(board) {
    const found = new Map();
    const all = board.comparisons;
    all.row.forEach((row, at) => {
      const key = `${row} ${all.other[at]} ${all.column[at]}`;
      // Of several families the first: that to the baseline, which the table prints, before all pairs.
      if (!found.has(key)) found.set(key, at);
    });
    return (row, other, column) => {
      const straight = found.get(`${row} ${other} ${column}`);
      const turned = found.get(`${other} ${row} ${column}`);
      const places = [straight, turned].filter((at) => at !== undefined);
      if (!places.length) return null;
      const at = Math.min(...places);
      const sign = at === straight ? 1 : -1;
      const [value, low, high] = [all.value[at], all.low[at], all.high[at]];
      return {
        value: sign * value,
        low: low === null ? null : sign > 0 ? low : -high,
        high: high === null ? null : sign > 0 ? high : -low,
        n: all.n[at], p: all.p[at], holm: all.p_holm[at],
        better: sign > 0 ? all.better[at] : all.worse[at],
        worse: sign > 0 ? all.worse[at] : all.better[at],
        method: all.methods[all.method[at]], family: all.families[all.family[at]],
      };
    };
  }

  function quantile(table, degrees) {
    const x = 1 / degrees;
    let at = table.findIndex(([inverse]) => inverse <= x);
    if (at === 0) return table[0][1];
    if (at < 0) at = table.length - 1;
    const [[x0, t0], [x1, t1]] = [table[at - 1], table[at]];
    return t1 + ((t0 - t1) * (x - x1)) / (x0 - x1);
  }

  // The exact two-sided binomial test on the items that differ.
  function mcnemar(better, worse) {
    const n = better + worse;
    const k = Math.min(better, worse);
    if (n === 0) return 1;
    let log = -n * Math.LN2;
    for (let i = 1; i <= k; i++) log += Math.log(n - k + i) - Math.log(i);
    let sum = 0;
    let term = 1;
    for (let i = k; i >= 0; i--) {
      sum += term;
      term *= i / (n - i + 1);
    }
    return Math.min(1, 2 * sum * Math.exp(log));
  }

  // The difference of two rows' unweighted means over tasks, with the interval of statistics.mean_over_tasks.
  // parts: one { ours, theirs, clusters } a task; clusters is null where every item is on its own.
  function paired(parts, table) {
    let [items, groups, squares, value, better, worse, largest] = [0, 0, 0, 0, 0, 0, 0];
    let binary = true;
    const sums = new Map();
    for (const { ours, theirs, clusters } of parts) {
      const kept = [];
      let total = 0;
      for (let i = 0; i < ours.length; i++) {
        const difference = ours[i] - theirs[i];
        if (Number.isNaN(difference)) continue;
        kept.push(i);
        total += difference;
        if (difference > 0) better++;
        if (difference < 0) worse++;
        if (difference !== 0 && Math.abs(difference) !== 1) binary = false;
      }
      if (!kept.length) return null;
      const mean = total / kept.length;
      value += mean / parts.length;
      items += kept.length;
      for (const i of kept) {
        const error = (ours[i] - theirs[i] - mean) / (parts.length * kept.length);
        if (clusters) sums.set(clusters[i], (sums.get(clusters[i]) || 0) + error);
        else {
          groups++;
          squares += error * error;
          largest = Math.max(largest, Math.abs(error));
        }
      }
    }
    for (const sum of sums.values()) {
      groups++;
      squares += sum * sum;
      largest = Math.max(largest, Math.abs(sum));
    }
    const alone = groups === items;
    const found = { value, low: null, high: null, n: items, better, worse, p: null, holm: null };
    if (parts.length === 1 && binary && alone) {
      found.p = mcnemar(better, worse);
      found.method = "McNemar, exact";
    }
    if (groups < 2 || items === parts.length || largest < 1e-12 / items) return found;
    const variance = (groups / (groups - 1)) * ((items - 1) / (items - parts.length)) * squares;
    const margin = quantile(table, groups - 1) * Math.sqrt(variance);
    return { ...found, low: value - margin, high: value + margin };
  }

  // "right", "partial", "wrong", "silent" (wrong, for want of an answer) or "unscored".
  function verdict(score, silent) {
    if (score === null || Number.isNaN(score)) return "unscored";
    if (silent) return "silent";
    if (score >= 1) return "right";
    return score > 0 ? "partial" : "wrong";
  }
  const SAID = {
    right: ["✓", "right"], partial: ["◐", "partial credit"], wrong: ["✗", "wrong"],
    silent: ["∅", "no answer, counted as wrong"], unscored: ["?", "not scored"],
  };
  function Verdict({ score, silent, short }) {
    const kind = verdict(score, silent);
    const [mark, said] = SAID[kind];
    const label = kind === "partial" ? `score ${dcsft.text.fixed(score, 3)}` : said;
    return dcsft.html`<span class=${`verdict ${kind}`}>
      <span aria-hidden="true">${mark}</span> ${short ? dcsft.html`<span class="hidden">${label}</span>` : label}
    </span>`;
  }

  return { RIGHT, group, cell, tested, mcnemar, paired, quantile, verdict, Verdict };
})();
