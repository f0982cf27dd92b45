// The page: its three views, the switch between light and dark, and what stands below the board.
"use strict";

(() => {
  const { html } = dcsft;
  const { plain, Name, Label, Some, counted, percent, Pick, Waiting, clamp } = dcsft.text;
  const VIEWS = [["board", "Board", dcsft.Board], ["compare", "Compare", dcsft.Compare], ["samples", "Samples", dcsft.Samples]];
  const FEW = 10;
  const THEMES = { auto: "System", light: "Light", dark: "Dark" };

  // Pages on disk may be denied a memory of their own; then the choice lasts as long as the page.
  function remembered(value) {
    try {
      if (value !== undefined) localStorage.setItem("dcsft-theme", value);
      return localStorage.getItem("dcsft-theme");
    } catch {
      return null;
    }
  }

  function Theme() {
    const [theme, set] = preactHooks.useState(() => (Object.hasOwn(THEMES, remembered()) ? remembered() : "auto"));
    preactHooks.useLayoutEffect(() => {
      document.documentElement.dataset.theme = theme;
    }, [theme]);
    return html`<${Pick} label="Colors" value=${theme} options=${Object.entries(THEMES)} onPick=${(next) => {
      remembered(next);
      set(next);
    }} />`;
  }

  // Figures of others: one column a task, under the board and apart from it.
  function Quoted({ quoted }) {
    if (!quoted.length) return null;
    const tasks = [...new Set(quoted.flatMap((one) => one.cells.map(([task]) => task)))];
    return html`<section aria-labelledby="quoted"><h3 id="quoted">Quoted, never tested against</h3>
      <div class="scroll"><table class="quoted" aria-label="Quoted figures"><thead><tr><th scope="col">Row</th><th scope="col">Model, setting and source</th>
        ${tasks.map((task) => html`<th scope="col"><${Label} text=${task} /></th>`)}<th scope="col">OOD mean as printed</th></tr></thead>
      <tbody>${quoted.map((one) => html`<tr><th scope="row"><${Name} text=${one.name} /></th><td class="words"><${Name} text=${`${one.model}, ${one.setting}`} /><br /><small><${Name} text=${one.source} /></small></td>
        ${tasks.map((task) => html`<td>${percent((one.cells.find(([name]) => name === task) || [])[1])}</td>`)}
        <td>${percent(one.mean)}${one.follows === false && html` <small>(cells give ${percent(one.recomputed)})</small>`}</td></tr>`)}</tbody></table></div>
      <p class="note">Measured by others on other items; read ${[...new Set(quoted.map((one) => one.read))].join("; ")}.</p>
    </section>`;
  }

  // "12 rows · Qwen2.5-VL-7B and 2 more models · 2026-11-28"
  function summary({ headline, boards }) {
    const [first, ...more] = headline.models.map((one) => plain(one, 60));
    const models = first === undefined ? "" : more.length ? `${first} and ${more.length} more model${more.length > 1 ? "s" : ""}` : first;
    const rows = boards.reduce((total, board) => total + board.rows.length, 0);
    return [counted(rows, "rows"), models, headline.date].filter(Boolean).join(" · ");
  }

  function Downloads({ files }) {
    if (!files.length) return null;
    return html`<p class="downloads">Download ${files.map((name) => html`<a key=${name} href=${`downloads/${name}`} download>${name}</a>`)}</p>`;
  }

  function Below({ model, board }) {
    const remarks = (some) => html`<ul>${some.map((one) => html`<li><${Name} text=${one} most=${2000} /></li>`)}</ul>`;
    const left = (some) => html`<dl>${some.map(([folder, reason]) => html`<dt><${Name} text=${folder} /></dt><dd><${Name} text=${reason} most=${2000} /></dd>`)}</dl>`;
    return html`<div class="below">
      <${Downloads} files=${model.downloads} />
      ${model.left_out.length > 0 && html`<section aria-labelledby="left"><h3 id="left">Left out</h3>
        <${Some} all=${model.left_out} most=${FEW} what="folders" draw=${left} /></section>`}
      ${board.remarks.length > 0 && html`<section aria-labelledby="remarks"><h3 id="remarks">Remarks</h3>
        <${Some} all=${board.remarks} most=${FEW} what="remarks" draw=${remarks} /></section>`}
      <${Quoted} quoted=${model.quoted} />
    </div>`;
  }

  function App() {
    const [state, go, link] = dcsft.route.useRoute();
    const { found, error } = dcsft.useData(["board"]);
    const model = preactHooks.useMemo(() => {
      if (!found) return null;
      const known = new Map(found[0].boards.map((board) => [board, dcsft.figures.tested(board)]));
      return { ...found[0], tested: (board) => known.get(board) };
    }, [found && found[0]]);
    const shown = VIEWS.find(([key]) => key === state.view) || VIEWS[0];
    preactHooks.useEffect(() => {
      document.title = [shown[1], "Leaderboard", model && summary(model)].filter(Boolean).join(" · ");
    }, [shown, model]);
    if (!model) return html`<main><${Waiting} error=${error} /></main>`;
    const at = clamp(state.board, model.boards.length - 1);
    const board = model.boards[at];
    const drawn = shown[0] === "samples" && /^pool:\d+$/.test(state.task) && model.pools[Number(state.task.slice(5))];
    const View = drawn ? dcsft.Pool : shown[2];
    const props = { model, board, state: { ...state, board: String(at) }, go, link };
    return html`
      <a class="skip" href="#main" onClick=${(event) => {
        event.preventDefault();
        document.getElementById("main").focus();
      }}>Skip to the content</a>
      <header>
        <div class="title"><h1>Leaderboard</h1><p>${summary(model)}</p></div>
        <nav aria-label="Views">${VIEWS.map(([key, said]) => html`<a key=${key} href=${link({ view: key, page: "0" })} aria-current=${shown[0] === key ? "page" : undefined}>${said}</a>`)}</nav>
        ${model.boards.length > 1 && html`<${Pick} label="Rows that can be compared" value=${String(at)} onPick=${(next) => go({ board: next, a: "", b: "", task: "", item: "", page: "0" })}
          options=${model.boards.map((one, number) => [String(number), number ? `apart ${number}: ${plain(one.rows[0].name, 30)}` : "the board"])} />`}
        <${Theme} />
      </header>
      <main id="main" tabindex="-1">
        ${board.reason && html`<p class="note"><${Name} text=${board.reason} most=${2000} /></p>`}
        <${View} ...${props} />
        ${shown[0] === "board" && html`<${Below} model=${model} board=${board} />`}
        <${dcsft.tip.Tip} />
      </main>
      <footer><p>Accuracy in percent, means are unweighted, intervals at 95 %. Made by dcsft_harness; all figures unrounded in leaderboard.json.</p></footer>`;
  }

  const place = document.getElementById("app");
  place.replaceChildren();
  preact.render(html`<${App} />`, place);
})();
