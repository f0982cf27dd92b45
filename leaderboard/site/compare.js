// Two rows side by side: paired differences by column, and the items that changed.
"use strict";

dcsft.Compare = (() => {
  const { html } = dcsft;
  const { plain, Name, counted, percent, points, interval, chance, Pick, Pages, Waiting, clamp, chosen: choice } = dcsft.text;
  const { cell, paired, Verdict } = dcsft.figures;
  const SIZE = 25;

  // The two rows of the address, or the first that can be compared.
  function chosen(board, state) {
    const find = (name) => board.rows.findIndex((row) => row.name === name);
    let [a, b] = [find(state.a), find(state.b)];
    const others = board.rows.map((_, at) => at).filter((at) => board.rows[at].kind === "row" || board.rows.length < 3);
    if (b < 0) b = others.find((at) => at !== a && board.rows[at].is_baseline) ?? others.find((at) => at !== a) ?? 0;
    if (a < 0) a = others.find((at) => at !== b) ?? 0;
    return [a, b];
  }

  function options(board) {
    return board.rows.map((row) => [row.name, plain(row.name, 60) + (row.kind === "seeds" ? ` (${row.members.length} seeds)` : "")]);
  }

  const both = (board, task, a, b) => [a, b].every((row) => board.rows[row].kind === "row" && cell(board, row, task) !== null);

  // The column of a task on its own.
  const columnOf = (board, task) => board.columns.findIndex((one) => !one.is_mean && one.tasks[0] === task);

  function Bar({ found, most }) {
    const x = (value) => 60 + (54 * Math.max(-most, Math.min(most, value))) / most;
    const kind = found.low === null || (found.low <= 0 && found.high >= 0) ? "even" : found.value > 0 ? "up" : "down";
    return html`<svg class=${`bar ${kind}`} viewBox="0 0 120 16" aria-hidden="true">
      <line class="zero" x1="60" x2="60" y1="1" y2="15" />
      ${found.low !== null && html`<line class="range" x1=${x(found.low)} x2=${x(found.high)} y1="8" y2="8" />`}
      <circle cx=${x(found.value)} cy="8" r="3.5" />
    </svg>`;
  }

  function worked(model, board, a, b, items, scores, usable) {
    const decoded = new Map(usable.map((task, at) => {
      const n = board.tasks[task].n;
      const [ours, theirs] = [a, b].map((row) => dcsft.scores(scores[at], row, n));
      return [task, { ours, theirs, clusters: dcsft.numbers(items[at].clusters) }];
    }));
    const test = model.tested(board);
    return board.columns.map((column, at) => {
      const known = test(a, b, at);
      const parts = column.tasks.map((task) => decoded.get(task));
      const own = parts.every((part) => part && part.ours && part.theirs) ? paired(parts, model.t) : null;
      return known || own ? { ...own, ...known, own } : null;
    });
  }

  function Table({ board, state, found, a, b, link }) {
    const most = Math.max(0.01, ...found.filter(Boolean).flatMap((one) => [one.low, one.high, one.value].map((x) => Math.abs(x ?? 0))));
    const names = [a, b].map((row) => board.rows[row].name);
    const side = (row, at) => {
      const entry = cell(board, row, at);
      return entry && entry.accuracy ? percent(entry.accuracy.value) : "–";
    };
    const count = (column, changed, value) => {
      if (value === null || value === undefined) return "–";
      if (column.is_mean || !value) return String(value);
      const name = board.tasks[column.tasks[0]].name;
      return html`<a href=${link({ task: name, changed, page: "0" })} aria-label=${`${counted(value, "items")} ${changed} in ${plain(column.label)}`}>${value}</a>`;
    };
    return html`<div class="scroll"><table class="compare" aria-label="Paired differences">
      <thead><tr>
        <th scope="col">Column</th><th scope="col"><${Name} text=${names[0]} most=${40} /></th><th scope="col"><${Name} text=${names[1]} most=${40} /></th>
        <th scope="col">Difference in points, 95 % interval</th><th scope="col" class="wide"><span class="hidden">Drawn</span></th>
        <th scope="col">Items better</th><th scope="col">Items worse</th><th scope="col">p</th><th scope="col">p, Holm</th>
      </tr></thead>
      <tbody>${board.columns.map((column, at) => {
        const one = found[at];
        return html`<tr key=${at} class=${column.is_mean ? "mean" : ""}>
          <th scope="row"><${Name} text=${column.label} /> <small>n = ${(one ? one.n : column.n).toLocaleString("en")}</small></th>
          <td data-label=${plain(names[0], 40)}>${side(a, at)}</td><td data-label=${plain(names[1], 40)}>${side(b, at)}</td>
          ${one
            ? html`<td class="difference" data-label="Difference in points"><strong>${points(one.value, 2)}</strong> ${interval(one.low, one.high, (x) => points(x, 2))}</td>
                <td class="wide"><${Bar} found=${one} most=${most} /></td>
                <td data-label="Items better">${count(column, "better", one.better)}</td><td data-label="Items worse">${count(column, "worse", one.worse)}</td>
                <td data-label="p" title=${one.method || "not tested"}>${chance(one.p)}</td><td data-label="p, Holm">${chance(one.holm)}</td>`
            : html`<td colspan="6" class="none difference">not the same items in both</td>`}
        </tr>`;
      })}</tbody>
    </table></div>
    <p class="note">Paired by item, on the items that both could be scored on; better and worse are the first row's.
      p of one task is McNemar's exact test where items are right or wrong and on their own, else that of sign flips;
      Holm's correction is over the family of comparisons that the board shows. A dash: the board did not test this pair.</p>`;
  }

  function Changed({ board, task, items, scores, answers, a, b, state, go, link }) {
    const n = board.tasks[task].n;
    const [ours, theirs] = [a, b].map((row) => dcsft.scores(scores, row, n));
    const documents = dcsft.numbers(items.documents);
    const list = preactHooks.useMemo(() => {
      const differs = { better: (d) => d > 0, worse: (d) => d < 0, both: (d) => d !== 0 && !Number.isNaN(d) };
      const keep = choice(differs, state.changed, differs.both);
      return [...Array(n).keys()].filter((i) => keep(ours[i] - theirs[i])).sort((i, j) => documents[i] - documents[j]);
    }, [board, task, a, b, state.changed]);
    const at = clamp(state.page, Math.ceil(list.length / SIZE) - 1);
    const gold = dcsft.texts(items.answers);
    const said = answers.map((one) => dcsft.texts(one.extracted));
    const names = [a, b].map((row) => board.rows[row].name);
    return html`<div class="scroll"><table class="changed" aria-label="Items that changed">
        <thead><tr><th scope="col">Item</th><th scope="col">Gold</th>
          ${names.map((name) => html`<th scope="col"><${Name} text=${name} most=${40} /></th>`)}</tr></thead>
        <tbody>${list.slice(at * SIZE, at * SIZE + SIZE).map((i) => html`<tr key=${i}>
          <th scope="row"><a class="item" href=${link({ view: "samples", task: board.tasks[task].name, a: names[0], b: names[1], item: items.ids[i], page: "0", differ: state.changed === "better" ? "a" : state.changed === "worse" ? "b" : "any" })}>
            <${dcsft.pictures.Thumbnail} picture=${items.pictures && items.pictures[i] && items.pictures[i][0]} /> document ${documents[i]}</a></th>
          <td><${Name} text=${gold(i)} most=${60} /></td>
          ${[ours, theirs].map((row, side) => html`<td><${Verdict} score=${row[i]} short /> ${said[side](i) === null ? html`<span class="none">none</span>` : html`<${Name} text=${said[side](i)} most=${60} />`}</td>`)}
        </tr>`)}</tbody>
      </table>${!list.length && html`<p class="none" role="status">No item changed.</p>`}</div>
      <${Pages} at=${at} size=${SIZE} total=${list.length} what="items" go=${(page) => go({ page: String(page) })} />`;
  }

  function Items({ board, a, b, state, go, link }) {
    const usable = board.tasks.map((_, at) => at).filter((at) => both(board, columnOf(board, at), a, b));
    const wanted = usable.find((at) => board.tasks[at].name === state.task) ?? usable[0];
    const known = wanted !== undefined;
    const prefix = `b${state.board}t${wanted}`;
    const data = dcsft.useData(known ? [`${prefix}items`, `${prefix}scores`, `${prefix}r${a}`, `${prefix}r${b}`] : []);
    if (!known) return null;
    return html`<h3>Items that changed</h3>
      <div class="controls">
        <${Pick} label="Task" value=${board.tasks[wanted].name} onPick=${(task) => go({ task, page: "0" })}
          options=${usable.map((at) => [board.tasks[at].name, plain(board.tasks[at].name)])} />
        <${Pick} label="Which" value=${["better", "worse"].includes(state.changed) ? state.changed : "both"} onPick=${(changed) => go({ changed, page: "0" })}
          options=${[["both", "Better or worse"], ["better", `Better in ${plain(board.rows[a].name, 30)}`], ["worse", `Worse in ${plain(board.rows[a].name, 30)}`]]} />
      </div>
      ${data.found
        ? html`<${Changed} board=${board} task=${wanted} items=${data.found[0]} scores=${data.found[1]} answers=${data.found.slice(2)}
            a=${a} b=${b} state=${state} go=${go} link=${link} />`
        : html`<${Waiting} error=${data.error} />`}`;
  }

  function Compare({ model, board, state, go, link }) {
    const [a, b] = chosen(board, state);
    const usable = board.tasks.map((_, at) => at).filter((at) => both(board, columnOf(board, at), a, b));
    const names = usable.flatMap((at) => [`b${state.board}t${at}items`, `b${state.board}t${at}scores`]);
    const data = dcsft.useData(names);
    const found = preactHooks.useMemo(() => {
      if (!data.found) return null;
      const even = data.found.filter((_, at) => at % 2 === 0), odd = data.found.filter((_, at) => at % 2);
      return worked(model, board, a, b, even, odd, usable);
    }, [data.found, board, a, b]);
    const pick = (key) => (name) => go({ a: board.rows[a].name, b: board.rows[b].name, [key]: name, page: "0" });
    return html`<section aria-labelledby="title">
      <h2 id="title">Comparison</h2>
      <div class="controls">
        <${Pick} label="Row" value=${board.rows[a].name} options=${options(board)} onPick=${pick("a")} wide />
        <${Pick} label="Against" value=${board.rows[b].name} options=${options(board)} onPick=${pick("b")} wide />
        <button type="button" onClick=${() => go({ a: board.rows[b].name, b: board.rows[a].name })}>Swap</button>
      </div>
      ${a === b
        ? html`<p class="none" role="status">Both are the same row.</p>`
        : found
          ? html`<${Table} board=${board} state=${state} found=${found} a=${a} b=${b} link=${link} />
              <${Items} key=${`${a} ${b}`} board=${board} a=${a} b=${b} state=${state} go=${go} link=${link} />`
          : html`<${Waiting} error=${data.error} />`}
    </section>`;
  }

  return Object.assign(Compare, { chosen, options, columnOf, both });
})();
