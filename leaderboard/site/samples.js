// Items one by one: prompt, gold, and each row's response and verdict.
"use strict";

dcsft.Samples = (() => {
  const { html } = dcsft;
  const { plain, Name, Long, counted, percent, Pick, Find, Pages, Waiting, chosen, clamp } = dcsft.text;
  const { cell, verdict, Verdict, RIGHT } = dcsft.figures;
  const SIZE = 40;
  const DIFFICULTIES = ["easy", "medium", "hard"];

  // One task's items with the responses of up to two rows, decoded once.
  function decoded(board, task, rows, found) {
    const [items, scores, ...answers] = found;
    const drawn = answers.slice(rows.length).map(draws);
    const n = board.tasks[task].n;
    const column = dcsft.Compare.columnOf(board, task);
    return {
      n, ids: items.ids, gold: dcsft.texts(items.answers), documents: dcsft.numbers(items.documents),
      prompts: dcsft.texts(items.prompts), pictures: items.pictures, difficulties: dcsft.numbers(items.difficulties),
      scores, rows: rows.map((row, at) => ({
        row, name: board.rows[row].name, scores: dcsft.scores(scores, row, n),
        response: dcsft.texts(answers[at].responses), extracted: dcsft.texts(answers[at].extracted),
        tokens: dcsft.numbers(answers[at].tokens), draws: drawn[at], reports: (cell(board, row, column) || {}).unanswered !== null,
      })),
    };
  }

  // A function from an item's place to its K responses.
  function draws(packed) {
    const [response, extracted, vote] = ["response", "extracted", "vote"].map((name) => dcsft.texts(packed[name]));
    const tokens = dcsft.numbers(packed.tokens);
    const scores = dcsft.scores(packed.scores, 0, tokens.length);
    return (i) => [...Array(packed.samples).keys()].map((k) => {
      const at = i * packed.samples + k;
      return { response: response(at), extracted: extracted(at), vote: vote(at), tokens: tokens[at], score: scores[at] };
    });
  }

  // Answers with their votes, most votes first.
  function votes(drawn) {
    const counts = new Map();
    for (const { vote, score } of drawn) if (vote !== null) counts.set(vote, { count: ((counts.get(vote) || {}).count || 0) + 1, score });
    return [...counts].sort(([, one], [, other]) => other.count - one.count);
  }

  function Draws({ drawn }) {
    const silent = drawn.filter(({ vote }) => vote === null).length;
    return html`<h5>Votes of ${drawn.length} responses</h5>
      <ul class="votes">${votes(drawn).map(([vote, { count, score }]) => html`<li key=${vote}>${count} × <${Name} text=${vote} most=${60} /> <${Verdict} score=${score} silent=${false} short /></li>`)}
        ${silent > 0 && html`<li>${silent} without an answer</li>`}</ul>
      ${drawn.map((one, k) => html`<details key=${k}><summary>Response ${k + 1}: <${Verdict} score=${one.score} silent=${one.extracted === null} short /> <${Name} text=${one.extracted ?? "no answer"} most=${40} />${one.tokens >= 0 && html` <small>${one.tokens.toLocaleString("en")} tokens</small>`}</summary>
        <${Long} text=${one.response} label=${`Response ${k + 1}`} /></details>`)}`;
  }

  const silent = (row, i) => row.reports && row.extracted(i) === null;
  const right = (score) => score >= RIGHT;

  function kept(loaded, state) {
    const [one, two] = loaded.rows;
    const wanted = state.find.trim().toLowerCase();
    const differs = {
      all: () => true,
      any: (i) => one.scores[i] !== two.scores[i] && !(Number.isNaN(one.scores[i]) || Number.isNaN(two.scores[i])),
      a: (i) => one.scores[i] > two.scores[i],
      b: (i) => one.scores[i] < two.scores[i],
      neither: (i) => one.scores[i] < RIGHT && two.scores[i] < RIGHT,
    };
    const differ = two ? chosen(differs, state.differ, differs.all) : differs.all;
    const verdicts = {
      right: (i) => right(one.scores[i]), wrong: (i) => one.scores[i] < RIGHT,
      silent: (i) => verdict(one.scores[i], silent(one, i)) === "silent", unscored: (i) => Number.isNaN(one.scores[i]),
      partial: (i) => one.scores[i] > 0 && one.scores[i] < 1,
    };
    const judged = chosen(verdicts, state.verdict, () => true);
    const level = DIFFICULTIES.indexOf(state.difficulty);
    const matches = (i) =>
      [loaded.gold(i), loaded.prompts(i), ...loaded.rows.flatMap((row) => [row.extracted(i), row.response(i)])].some(
        (text) => text !== null && text.toLowerCase().includes(wanted));
    const found = [];
    for (let i = 0; i < loaded.n; i++) {
      if (!judged(i) || !differ(i) || (level >= 0 && (!loaded.difficulties || loaded.difficulties[i] !== level))) continue;
      if (state.difficulty === "unlabelled" && loaded.difficulties && loaded.difficulties[i] >= 0) continue;
      if (!wanted || matches(i)) found.push(i);
    }
    // Items lie in the order of their ids, which says nothing to a reader.
    return found.sort((i, j) => loaded.documents[i] - loaded.documents[j]);
  }

  function Controls({ model, board, task, rows, state, go }) {
    const options = dcsft.Compare.options(board).filter((_, at) => board.rows[at].kind === "row");
    const column = dcsft.Compare.columnOf(board, task);
    const here = options.filter(([name]) => cell(board, board.rows.findIndex((row) => row.name === name), column) !== null);
    const [a, b] = rows.map((row) => board.rows[row].name);
    const to = (change) => go({ page: "0", item: "", ...change });
    const by = (text) => plain(text, 30);
    return html`<form class="controls" onSubmit=${(event) => event.preventDefault()}>
      <${Pick} label="Task" value=${board.tasks[task].name} onPick=${(name) => to({ task: name })} options=${taskOptions(model, board)} />
      <${Pick} label="Row" value=${a} onPick=${(name) => go({ a: name, page: "0" })} options=${here} />
      <${Pick} label="Beside it" value=${b || ""} onPick=${(name) => go({ a, b: name, page: "0", ...(name ? {} : { differ: "all" }) })} options=${[["", "no other row"], ...here.filter(([name]) => name !== a)]} />
      <${Pick} label="Verdict" value=${state.verdict} onPick=${(verdict) => to({ verdict })} options=${[
        ["all", "Any"], ["right", "Right"], ["wrong", "Wrong"], ["partial", "Partial credit"], ["silent", "No answer found"], ["unscored", "Not scored"]]} />
      ${b && html`<${Pick} label="The two rows" value=${state.differ} onPick=${(differ) => to({ differ })} options=${[
        ["all", "Agree or not"], ["any", "Differ"], ["a", `${by(a)} is better`], ["b", `${by(b)} is better`], ["neither", "Both wrong"]]} />`}
      ${model.labelled && html`<${Pick} label="Difficulty" value=${state.difficulty} onPick=${(difficulty) => to({ difficulty })} options=${[
        ["all", "Any"], ...DIFFICULTIES.map((kind) => [kind, kind]), ["unlabelled", "without a label"]]} />`}
      <${Find} label="Text contains" value=${state.find} onFind=${(find) => go({ find, page: "0", item: "" }, true)} />
    </form>`;
  }

  function List({ loaded, list, at, state, link }) {
    return html`<ol class="items" start=${at * SIZE + 1}>
      ${list.slice(at * SIZE, at * SIZE + SIZE).map((i) => html`<li key=${i}>
        <a class="item" href=${link({ item: loaded.ids[i], page: String(at) })} aria-current=${loaded.ids[i] === state.item ? "true" : undefined}>
          <${dcsft.pictures.Thumbnail} picture=${loaded.pictures && loaded.pictures[i] && loaded.pictures[i][0]} />
          <span>document ${loaded.documents[i]}</span>
          <span class="answer">${loaded.rows.map((row) => html`<${Verdict} score=${row.scores[i]} silent=${silent(row, i)} short />`)} <${Name} text=${loaded.rows[0].extracted(i) ?? "–"} most=${24} /></span>
        </a></li>`)}
    </ol>`;
  }

  function Answer({ row, i }) {
    return html`<article class="response">
      <h4><${Name} text=${row.name} /></h4>
      <p><${Verdict} score=${row.scores[i]} silent=${silent(row, i)} />
        ${row.tokens[i] >= 0 && html` <small>${row.tokens[i].toLocaleString("en")} tokens</small>`}</p>
      <dl><dt>Extracted answer</dt><dd>${row.extracted(i) === null ? html`<span class="none">none</span>` : html`<${Long} text=${row.extracted(i)} label="Extracted answer" />`}</dd>
        ${!row.draws && html`<dt>Response</dt><dd><${Long} text=${row.response(i)} label="Response" /></dd>`}</dl>
      ${row.draws && html`<${Draws} drawn=${row.draws(i)} />`}
    </article>`;
  }

  function Detail({ model, board, task, loaded, i, list, state, go, link }) {
    const place = list.indexOf(i);
    const step = (by) => {
      const next = list[place + by];
      if (next !== undefined) go({ item: loaded.ids[next], page: String(Math.floor((place + by) / SIZE)) });
    };
    const rows = board.rows.map((one, at) => (one.kind === "row" ? dcsft.scores(loaded.scores, at, loaded.n) : null)).filter(Boolean);
    const solved = rows.filter((scores) => right(scores[i])).length;
    const pictures = loaded.pictures && loaded.pictures[i];
    const [, , reason] = model.pictures.find(([name]) => name === board.tasks[task].name) || [];
    const answers = [{ name: "gold", text: loaded.gold(i) }, ...loaded.rows.map((row) => ({ name: row.name, text: row.extracted(i) }))];
    return html`<div class="detail" aria-labelledby="item">
      <div class="steps">
        <h3 id="item" tabindex="-1">Document ${loaded.documents[i]}</h3>
        <button type="button" disabled=${place <= 0} onClick=${() => step(-1)}>Previous item</button>
        <button type="button" disabled=${place < 0 || place >= list.length - 1} onClick=${() => step(1)}>Next item</button>
      </div>
      <p class="facts"><span>solved by ${solved} of ${counted(rows.length, "rows")}</span>
        ${loaded.difficulties && loaded.difficulties[i] >= 0 && html`<span>difficulty <strong>${DIFFICULTIES[loaded.difficulties[i]]}</strong></span>`}
        <span>item <code>${loaded.ids[i].slice(0, 12)}</code></span></p>
      ${pictures
        ? html`<${dcsft.pictures.Pictures} pictures=${pictures} answers=${answers} drawn=${state.boxes === "1"} toggle=${() => go({ boxes: state.boxes === "1" ? "0" : "1" }, true)} />`
        : html`<p class="note">This page has no image of this item. ${reason || "Build with a larger --samples for more."}</p>`}
      <dl><dt>Prompt</dt><dd>${loaded.prompts(i) === null ? html`<p class="none">not recorded</p>` : html`<${Long} text=${loaded.prompts(i)} label="Prompt" />`}</dd>
        <dt>Gold</dt><dd><${Long} text=${loaded.gold(i)} label="Gold" /></dd></dl>
      <div class="responses">${loaded.rows.map((row) => html`<${Answer} key=${row.row} row=${row} i=${i} />`)}</div>
    </div>`;
  }

  function Browser({ model, board, task, rows, found, state, go, link }) {
    const loaded = preactHooks.useMemo(() => decoded(board, task, rows, found), [board, task, rows.join(), found]);
    const list = preactHooks.useMemo(() => kept(loaded, state), [loaded, state.verdict, state.differ, state.difficulty, state.find]);
    const wanted = loaded.ids.indexOf(state.item);
    const i = wanted >= 0 ? wanted : list[0];
    const own = wanted >= 0 && list.includes(wanted) ? Math.floor(list.indexOf(wanted) / SIZE) : null;
    const at = clamp(state.page !== "0" || own === null ? state.page : String(own), Math.ceil(list.length / SIZE) - 1);
    return html`<div class="browser">
      <div class="list" aria-label="Items" role="region">
        ${list.length ? html`<${List} loaded=${loaded} list=${list} at=${at} state=${{ ...state, item: i === undefined ? "" : loaded.ids[i] }} link=${link} />` : html`<p class="none" role="status">No item matches.</p>`}
        <${Pages} at=${at} size=${SIZE} total=${list.length} what="items" go=${(page) => go({ page: String(page), item: "" })} />
      </div>
      ${i !== undefined && html`<${Detail} key=${loaded.ids[i]} model=${model} board=${board} task=${task} loaded=${loaded} i=${i} list=${list} state=${state} go=${go} link=${link} />`}
    </div>`;
  }

  // The tasks of the board, then the rollouts that are shown beside it.
  function taskOptions(model, board) {
    const pools = model.pools.map((pool, at) => [`pool:${at}`, `rollouts ${plain(pool.name, 40)}${pool.task ? ` of ${plain(pool.task, 40)}` : ""}`]);
    return [...board.tasks.map((task) => [task.name, plain(task.name)]), ...pools];
  }

  // The rows of the address, or those that Compare shows; of several seeds the first one. -1 for none.
  function pair(board, state) {
    const find = (name) => board.rows.findIndex((row) => row.name === name);
    const [a, b] = state.a || state.b ? [find(state.a), find(state.b)] : dcsft.Compare.chosen(board, state);
    return [a, b].map((at) => (at >= 0 && board.rows[at].kind === "seeds" ? find(board.rows[at].members[0]) : at));
  }

  function Samples({ model, board, state, go, link }) {
    const evaluated = (row, task) => row >= 0 && board.rows[row].kind === "row" && cell(board, row, dcsft.Compare.columnOf(board, task)) !== null;
    const tasks = board.tasks.map((_, at) => at);
    const [one, two] = pair(board, state);
    const task = tasks.find((at) => board.tasks[at].name === state.task) ?? tasks.find((at) => evaluated(one, at) && evaluated(two, at)) ?? 0;
    const a = evaluated(one, task) ? one : board.rows.findIndex((_, at) => evaluated(at, task));
    const b = two !== a && evaluated(two, task) ? two : -1;
    const rows = b >= 0 ? [a, b] : [a];
    const prefix = `b${state.board}t${task}`;
    const draws = board.tasks[task].draws;
    const drawn = draws === null ? [] : rows.map((row) => `b${state.board}t${draws}d${row}`);
    const data = dcsft.useData([`${prefix}items`, `${prefix}scores`, ...rows.map((row) => `${prefix}r${row}`), ...drawn]);
    return html`<section aria-labelledby="title">
      <h2 id="title">Samples</h2>
      <${Controls} model=${model} board=${board} task=${task} rows=${rows} state=${state} go=${go} />
      ${data.found
        ? html`<${Browser} model=${model} board=${board} task=${task} rows=${rows} found=${data.found} state=${state} go=${go} link=${link} />`
        : html`<${Waiting} error=${data.error} />`}
    </section>`;
  }

  return Object.assign(Samples, { kept, taskOptions, DIFFICULTIES, SIZE });
})();
