// The board: sorted, filtered and paged by TanStack Table, drawn as one HTML table.
"use strict";

dcsft.Board = (() => {
  const { html } = dcsft;
  const { plain, Name, Label, counted, percent, points, interval, chance, Pick, Find, Pages, clamp } = dcsft.text;
  const { cell, group } = dcsft.figures;
  const SIZE = 50;
  const GROUPS = [
    ["standing", "Overall"], ["id", "In distribution"], ["ood", "Out of distribution"], ["other", "Other tasks"],
  ];

  function definitions(board) {
    const numeric = (id, header, value, more) => ({
      id, header, accessorFn: (row) => value(row) ?? undefined, sortUndefined: "last", sortDescFirst: true,
      sortingFn: "basic", meta: more,
    });
    const measured = board.columns.map((column, at) => [
      column.is_mean ? "standing" : group(column),
      numeric(`c${at}`, column.label, (row) => row.shown[at], { column: at, n: column.n, mean: column.is_mean }),
    ]);
    const known = ([, { meta }]) => board.rows.some((row) => row[meta.field === "worst" ? "worst_task" : meta.field]);
    const several = board.columns.filter((column) => !column.is_mean).length > 1; // else it is the only column again
    const rank = ["standing", numeric("rank", "Rank", (row) => row.entry.rank && -row.entry.rank.rank, { field: "rank" })];
    const others = [
      numeric("retention", "OOD retention", (row) => row.entry.retention && row.entry.retention[0], { field: "retention" }),
      numeric("worst", "Worst task", (row) => row.entry.worst_task && row.entry.worst_task.accuracy, { field: "worst" }),
    ].map((one) => ["standing", one]);
    const all = [...[rank].filter(known), ...measured, ...others.filter(known).filter(([, { id }]) => id !== "worst" || several)];
    const of = (key) => all.filter(([kind]) => kind === key).map(([, one]) => one);
    return [
      { id: "name", header: "Row", accessorFn: (row) => row.entry.name, sortingFn: "alphanumeric", meta: {} },
      ...GROUPS.filter(([key]) => of(key).length).map(([key, said]) => ({ id: key, header: said, columns: of(key) })),
    ];
  }

  function made(board, state) {
    const data = board.rows.map((entry, at) => ({
      at, entry,
      shown: board.columns.map((_, column) => {
        const found = cell(board, at, column);
        const estimate = found && (state.value === "difference" ? found.difference : found.accuracy);
        return estimate ? estimate.value : undefined;
      }),
    }));
    const wanted = state.q.trim().toLowerCase();
    return data.filter(({ entry }) => {
      if (wanted && !entry.name.toLowerCase().includes(wanted)) return false;
      if (state.rows === "single") return entry.kind === "row";
      if (state.rows === "seeds") return entry.kind === "seeds" || entry.group === null;
      if (state.rows === "front") return entry.pareto && entry.pareto.on;
      return true;
    });
  }

  // What the board is sorted by: as chosen, else by rank, else as its rows were given.
  function order(state, known) {
    if (known.includes(state.sort)) return { sort: state.sort, dir: state.dir };
    return { sort: state.sort === "given" || !known.includes("rank") ? "" : "rank", dir: "desc" };
  }

  // Rows that may be the best of a column: a seed that another row combines is not tested, and may be lucky.
  const whole = (data) => data.filter(({ entry }) => entry.group === null);

  // A column against the baseline, else against its best row: "better" or "worse" where the test, corrected
  // by Holm, is below 5 %; "best" and, where there is no baseline, "even" with it; "" where nothing was tested.
  function judged(model, board, data) {
    const test = model.tested(board);
    const baseline = board.rows.findIndex((row) => row.is_baseline);
    return board.columns.map((_, column) => {
      const known = data.filter(({ at }) => cell(board, at, column) && cell(board, at, column).accuracy);
      const value = ({ at }) => cell(board, at, column).accuracy.value;
      const best = whole(known).reduce((top, one) => (top === null || value(one) > value(top) ? one : top), null);
      const against = baseline >= 0 ? baseline : best ? best.at : -1;
      const found = new Map();
      for (const { at } of known) {
        const one = at === against || against < 0 ? null : test(at, against, column);
        if (!one || one.holm === null) continue;
        if (one.holm < 0.05) found.set(at, one.value > 0 ? "better" : "worse");
        else if (baseline < 0) found.set(at, "even");
      }
      return found;
    });
  }

  function useTable(board, state, data) {
    const { createTable, getCoreRowModel, getSortedRowModel, getPaginationRowModel } = TableCore;
    const columns = preactHooks.useMemo(() => definitions(board), [board]);
    const known = columns.flatMap((one) => (one.columns ? one.columns.map((inner) => inner.id) : [one.id]));
    const groups = state.groups.split(",");
    const hidden = columns.filter((one) => one.columns && !groups.includes(one.id)).flatMap((one) => one.columns);
    const { sort, dir } = order(state, known);
    const sorting = sort ? [{ id: sort, desc: dir !== "asc" }] : [];
    const options = {
      data, columns, renderFallbackValue: null, onStateChange() {}, enableSortingRemoval: false,
      getCoreRowModel: getCoreRowModel(), getSortedRowModel: getSortedRowModel(),
      getPaginationRowModel: getPaginationRowModel(), autoResetPageIndex: false,
    };
    const table = preactHooks.useMemo(() => createTable({ ...options, state: {} }), [board]);
    const pageIndex = clamp(state.page, Math.ceil(data.length / SIZE) - 1);
    table.setOptions(() => ({
      ...options,
      state: {
        ...table.initialState, sorting, pagination: { pageIndex, pageSize: SIZE },
        columnVisibility: Object.fromEntries(hidden.map(({ id }) => [id, false])),
      },
    }));
    return table;
  }

  function lines(model, board, row, at) {
    const [column, entry] = [board.columns[at], cell(board, row, at)];
    const said = [["", `${plain(board.rows[row].name)}, ${plain(column.label)}`]];
    if (!entry || !entry.accuracy) return [...said, ["", entry ? "nothing could be scored" : "not evaluated"]];
    const { value, low, high } = entry.accuracy;
    said.push(["accuracy", `${percent(value, 2)} %`], ["95 % interval", interval(low, high, (x) => percent(x, 2))]);
    said.push(["n", counted(entry.n, "scored items")]);
    if (entry.unscored) said.push(["not scored", `${entry.unscored}`]);
    if (entry.unanswered) said.push(["no answer found", `${entry.unanswered}, counted as wrong`]);
    if (entry.deviation !== null) said.push(["deviation of seeds", `${percent(entry.deviation, 2)} points`]);
    if (entry.difference) {
      const { value: by, low: from, high: to } = entry.difference;
      said.push([`against ${plain(board.baseline, 40)}`, `${points(by, 2)} ${interval(from, to, (x) => points(x, 2))} points`]);
      const other = board.rows.findIndex((one) => one.is_baseline);
      const test = model.tested(board)(row, other, at);
      if (test) said.push([test.method, `p ${test.p < 0.001 ? "" : "= "}${chance(test.p)}, ${chance(test.holm)} after Holm`]);
    }
    if (column.minimum_detectable) {
      said.push(["smallest difference to be found", `${percent(column.minimum_detectable.difference)} points`]);
    }
    return said;
  }

  function standing(entry, field) {
    if (field === "rank") {
      return entry.rank ? [`${entry.rank.rank}`, `95 % interval ${entry.rank.low}–${entry.rank.high}, of ${counted(entry.rank.of, "rows")}`] : null;
    }
    if (field === "retention") {
      if (!entry.retention) return null;
      const [value, low, high] = entry.retention;
      return [percent(value), `${interval(low, high, percent)} %, OOD over ID accuracy`];
    }
    return entry.worst_task ? [percent(entry.worst_task.accuracy), `on ${plain(entry.worst_task.task)}`] : null;
  }

  const SIGNS = { better: ["▲", "better"], worse: ["▼", "worse"] };

  function Cells({ board, row, columns, state, best, verdicts, pick, chosen }) {
    const { at, entry } = row.original;
    const name = plain(entry.name, 60);
    const mark = ["Baseline", entry.is_baseline], front = ["On the ID and OOD front", entry.pareto && entry.pareto.on];
    return html`<tr class=${entry.kind === "seeds" ? "seeds" : ""} aria-selected=${String(chosen)}>
      <td class="pick">
        <input type="checkbox" tabindex="-1" data-r=${row.index} data-c="0" checked=${chosen}
          aria-label=${`Compare ${name}`} onChange=${() => pick(entry.name)} />
      </td>
      <th scope="row" tabindex="-1" data-r=${row.index} data-c="1" data-row=${at}>
        <${Name} text=${entry.name} />
        ${entry.kind === "seeds" && html` <span class="badge">${entry.members.length} seeds</span>`}
        ${[mark, front].map(([said, on], i) => on && html` <span class="badge" title=${said}>${i ? "front" : "baseline"}</span>`)}
      </th>
      ${columns.map(({ columnDef: { meta } }, i) => {
        const place = { tabindex: "-1", "data-r": row.index, "data-c": i + 2, "data-row": at };
        if (meta.field) {
          const said = standing(entry, meta.field);
          const range = meta.field === "rank" && entry.rank && state.intervals === "1" ? `[${entry.rank.low}, ${entry.rank.high}]` : "";
          return html`<td ...${place} data-field=${meta.field}>${said ? said[0] : "–"}${range && html` <small class="interval">${range}</small>`}</td>`;
        }
        const value = row.original.shown[meta.column];
        const scale = best[meta.column];
        const shown = state.value === "difference" ? points(value) : percent(value);
        const top = entry.group === null && value !== undefined && scale.high > scale.low && shown === scale.shown;
        const verdict = verdicts[meta.column].get(at) || "";
        const found = cell(board, at, meta.column);
        const estimate = found && (state.value === "difference" ? found.difference : found.accuracy);
        const format = state.value === "difference" ? points : percent;
        const range = state.intervals === "1" && estimate && estimate.low !== null ? interval(estimate.low, estimate.high, format) : "";
        return html`<td ...${place} data-column=${meta.column} class=${`${meta.mean ? "mean" : ""} ${verdict}`}>
          ${SIGNS[verdict] && html`<span class="sign"><span aria-hidden="true">${SIGNS[verdict][0]}</span><span class="hidden">${SIGNS[verdict][1]}</span></span>`}
          <span class="value">${top ? html`<strong>${shown}</strong>` : shown}</span>
          ${range && html`<small class="interval">${range}</small>`}
        </td>`;
      })}
    </tr>`;
  }

  // Arrow keys move among cells; one cell at a time is a tab stop.
  function useArrows(table, at) {
    const focused = (r, c) => table.current && table.current.querySelector(`[data-r="${r}"][data-c="${c}"]`);
    preactHooks.useLayoutEffect(() => {
      const cells = table.current ? [...table.current.querySelectorAll("[data-r]")] : [];
      const stop = cells.find((one) => +one.dataset.r === at.current[0] && +one.dataset.c === at.current[1]) || cells[0];
      for (const one of cells) one.tabIndex = one === stop ? 0 : -1;
    });
    return (event) => {
      const here = event.target.closest("[data-r]");
      if (!here || event.ctrlKey || event.metaKey || event.altKey) return;
      const [r, c] = [+here.dataset.r, +here.dataset.c];
      const rows = [...table.current.querySelectorAll('[data-c="1"]')].map((one) => +one.dataset.r);
      const place = rows.indexOf(r);
      const moves = {
        ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowDown: [rows[place + 1], c], ArrowUp: [rows[place - 1], c],
        Home: [r, 0], PageDown: [rows[Math.min(rows.length - 1, place + 10)], c], PageUp: [rows[Math.max(0, place - 10)], c],
      };
      const next = moves[event.key] && focused(...moves[event.key]);
      if (!next) return;
      event.preventDefault();
      here.tabIndex = -1;
      next.tabIndex = 0;
      at.current = [+next.dataset.r, +next.dataset.c];
      next.focus();
    };
  }

  function Header({ table, state: given, go }) {
    const state = { ...given, ...order(given, table.getAllLeafColumns().map(({ id }) => id)) };
    const sorted = (id) => (state.sort === id ? (state.dir === "asc" ? "ascending" : "descending") : "none");
    const sort = (id) => {
      const first = id === "name" ? "asc" : "desc";
      const turned = state.dir === "asc" ? "desc" : "asc";
      go({ sort: id, dir: state.sort === id ? turned : first, page: "0" });
    };
    const [groups, leaves] = table.getHeaderGroups();
    return html`<thead>
      ${leaves && html`<tr>
        <td colspan="2"></td>
        ${groups.headers.filter((one) => !one.isPlaceholder && one.column.id !== "name").map((one) =>
          html`<th key=${one.id} scope="colgroup" class=${`group ${one.column.id}`} colspan=${one.colSpan}><span>${one.column.columnDef.header}</span></th>`)}
      </tr>`}
      <tr>
        <th class="pick" scope="col"><span class="hidden">Compare</span></th>
        ${(leaves || groups).headers.map(({ id, column }) => {
          const { header, meta } = column.columnDef;
          return html`<th key=${id} scope="col" class=${meta.mean ? "mean" : ""} aria-sort=${sorted(column.id)}>
            <button type="button" onClick=${() => sort(column.id)}>
              <span class="label"><${Label} text=${header} />
                <span class="arrow" aria-hidden="true">${{ ascending: "▲", descending: "▼", none: "↕" }[sorted(column.id)]}</span></span>
              ${meta.n !== undefined && html`<small>n = ${meta.n.toLocaleString("en")}</small>`}
            </button>
          </th>`;
        })}
      </tr>
    </thead>`;
  }

  function scales(board, data, state) {
    return board.columns.map((_, at) => {
      const values = whole(data).map((row) => row.shown[at]).filter((value) => value !== undefined);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return { low, high, shown: state.value === "difference" ? points(high) : percent(high) };
    });
  }

  function Controls({ board, state, go }) {
    const on = state.groups.split(",");
    const toggle = (key) => {
      const next = on.includes(key) ? on.filter((one) => one !== key) : [...on, key];
      go({ groups: next.join(",") });
    };
    const there = GROUPS.filter(([key]) => key === "standing" || board.columns.some((one) => group(one) === key));
    return html`<form class="controls" onSubmit=${(event) => event.preventDefault()}>
      <${Find} label="Row name contains" value=${state.q} onFind=${(q) => go({ q, page: "0" }, true)} />
      <${Pick} label="Rows" value=${state.rows} onPick=${(rows) => go({ rows, page: "0" })} options=${[
        ["all", "All"], ["single", "Single runs"], ["seeds", "Seeds combined"], ["front", "On the ID and OOD front"],
      ]} />
      ${board.baseline !== null && html`<${Pick} label="Show" value=${state.value} onPick=${(value) => go({ value })} options=${[
        ["accuracy", "Accuracy in %"], ["difference", `Points against ${plain(board.baseline, 30)}`],
      ]} />`}
      <fieldset><legend>Columns</legend>
        <label><input type="checkbox" checked=${state.intervals === "1"} onChange=${() => go({ intervals: state.intervals === "1" ? "0" : "1" })} /> 95 % intervals</label>
        ${there.map(([key, said]) => html`<label key=${key}><input type="checkbox" checked=${on.includes(key)} onChange=${() => toggle(key)} /> ${said}</label>`)}
      </fieldset>
    </form>`;
  }

  function Legend({ board, verdicts }) {
    const kinds = new Set(verdicts.flatMap((column) => [...column.values()]));
    const against = board.baseline !== null ? plain(board.baseline, 40) : "the column's best row";
    const keys = [["better", "▲ better than"], ["worse", "▼ worse than"]].filter(([kind]) => kinds.has(kind));
    return html`<p class="legend" aria-label="Legend">
      ${keys.map(([kind, said]) => html`<span key=${kind} class=${`swatch ${kind}`}>${said} <bdi>${against}</bdi></span>`)}
      <span>${kinds.size
        ? "Shaded where the paired test, after Holm's correction, has p < 0.05; unshaded: not significant."
        : "No shading: no tested difference has p < 0.05 after Holm's correction."}</span>
      <span><strong>Underlined</strong>: highest of its column${board.rows.some((row) => row.group !== null) && ", single seeds aside"}.</span> <span>[low, high]: 95 % interval.</span>
    </p>`;
  }

  return function Board({ model, board, state, go, link }) {
    const data = preactHooks.useMemo(() => made(board, state), [board, state.q, state.rows, state.value]);
    const table = useTable(board, state, data);
    const body = preactHooks.useRef(null);
    const at = preactHooks.useRef([-1, -1]);
    const arrows = useArrows(body, at);
    const best = preactHooks.useMemo(() => scales(board, data, state), [board, data, state.value]);
    const verdicts = preactHooks.useMemo(() => judged(model, board, data), [model, board, data]);
    const columns = table.getVisibleLeafColumns().filter(({ id }) => id !== "name");
    const pick = (name) => {
      const { a, b } = dcsft.route.read(location.hash);
      if (name === a) return go({ a: b, b: "" }, true);
      if (name === b) return go({ b: "" }, true);
      return go(a === "" ? { a: name } : b === "" ? { b: name } : { a: b, b: name }, true);
    };
    const describe = (event) => {
      const here = event.target.closest("[data-row]");
      if (!here) return;
      const { row, column, field } = here.dataset;
      if (column !== undefined) return dcsft.tip.show(here, lines(model, board, +row, +column));
      if (field) {
        const said = standing(board.rows[+row], field);
        return dcsft.tip.show(here, [["", plain(board.rows[+row].name)], [field, said ? said.join(", ") : "not known"]]);
      }
      const details = board.rows[+row].details.flat().slice(0, 12);
      return dcsft.tip.show(here, [["", plain(board.rows[+row].name, 300)], ...details.map(([key, value]) => [plain(key), plain(value, 120)])]);
    };
    return html`<section aria-labelledby="title">
      <h2 id="title" class="hidden">Board</h2>
      <${Controls} board=${board} state=${state} go=${go} />
      <${Legend} board=${board} verdicts=${verdicts} />
      <div class="scroll board">
        <table role="grid" ref=${body} aria-label="Accuracy by row and task" aria-rowcount=${data.length}
          onKeyDown=${arrows} onMouseOver=${describe} onFocusIn=${describe} onMouseOut=${dcsft.tip.leave} onFocusOut=${dcsft.tip.leave}>
          <${Header} table=${table} state=${state} go=${go} />
          <tbody>
            ${table.getRowModel().rows.map((row) => html`<${Cells} key=${row.original.at} board=${board} row=${row}
              columns=${columns} state=${state} best=${best} verdicts=${verdicts} pick=${pick} chosen=${[state.a, state.b].includes(row.original.entry.name)} />`)}
          </tbody>
        </table>
        ${!data.length && html`<p class="none" role="status">No row matches.</p>`}
      </div>
      <${Pages} at=${clamp(state.page, Math.ceil(data.length / SIZE) - 1)} size=${SIZE} total=${data.length} what="rows" go=${(page) => go({ page: String(page) })} />
      <p class=${state.a === "" ? "picked" : "picked some"} role="status">
        ${state.a !== "" && state.b !== ""
          ? html`<a class="action" href=${link({ view: "compare" })}>Compare <${Name} text=${state.a} most=${40} /> with <${Name} text=${state.b} most=${40} /></a>`
          : "Tick two rows to compare them. Hover over a cell, or move to it with the arrow keys, for its n and interval."}
      </p>
    </section>`;
  };
})();
