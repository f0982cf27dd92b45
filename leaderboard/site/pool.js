// Items of a pool with all the responses that were drawn for them.
"use strict";

dcsft.Pool = (() => {
  const { html } = dcsft;
  const { plain, Name, Long, Pick, Find, Pages, Waiting, chosen, clamp } = dcsft.text;
  const { Verdict, RIGHT } = dcsft.figures;
  const { DIFFICULTIES, SIZE, taskOptions } = dcsft.Samples;

  function decoded([items, answers]) {
    const starts = dcsft.numbers(items.starts);
    const n = items.ids.length;
    const scores = dcsft.scores(answers.scores, 0, starts[n]);
    const tokens = dcsft.numbers(answers.tokens);
    const [response, extracted] = [dcsft.texts(answers.responses), dcsft.texts(answers.extracted)];
    const draws = (i) => [...Array(starts[i + 1] - starts[i]).keys()].map((k) => {
      const at = starts[i] + k;
      return { at, score: scores[at], tokens: tokens[at], response: response(at), extracted: extracted(at) };
    });
    const right = (i) => draws(i).filter(({ score }) => score >= RIGHT).length;
    return {
      n, ids: items.ids, documents: dcsft.numbers(items.documents), gold: dcsft.texts(items.answers), prompts: dcsft.texts(items.prompts),
      pictures: items.pictures, difficulties: dcsft.numbers(items.difficulties), draws, right,
    };
  }

  function kept(loaded, state) {
    const level = DIFFICULTIES.indexOf(state.difficulty);
    const wanted = state.find.trim().toLowerCase();
    const matches = (i) => [loaded.gold(i), loaded.prompts(i), ...loaded.draws(i).flatMap((one) => [one.extracted, one.response])].some(
      (text) => text !== null && text.toLowerCase().includes(wanted));
    const verdicts = {
      right: ({ score }) => score >= RIGHT, wrong: ({ score }) => score < RIGHT,
      silent: ({ extracted }) => extracted === null, unscored: ({ score }) => Number.isNaN(score),
    };
    const judged = (i) => loaded.draws(i).some(chosen(verdicts, state.verdict, () => true));
    return [...Array(loaded.n).keys()].filter((i) => judged(i) &&
      (level < 0 || loaded.difficulties[i] === level) && (state.difficulty !== "unlabelled" || loaded.difficulties[i] < 0) && (!wanted || matches(i)));
  }

  function Detail({ loaded, i, list, state, go }) {
    const place = list.indexOf(i);
    const step = (by) => list[place + by] !== undefined && go({ item: loaded.ids[list[place + by]], page: String(Math.floor((place + by) / SIZE)) });
    const draws = loaded.draws(i);
    const [shown, pick] = preactHooks.useState(-1);
    const drawn = draws.filter((_, at) => shown < 0 || at === shown);
    const answers = [{ name: "gold", text: loaded.gold(i) }, ...drawn.map((one) => ({ name: `response ${one.at - draws[0].at + 1}`, text: one.extracted }))];
    return html`<div class="detail">
      <div class="steps"><h3 id="item" tabindex="-1">Document ${loaded.documents[i]}</h3>
        <button type="button" disabled=${place <= 0} onClick=${() => step(-1)}>Previous item</button>
        <button type="button" disabled=${place < 0 || place >= list.length - 1} onClick=${() => step(1)}>Next item</button></div>
      <p class="facts"><span>${loaded.right(i)} of ${draws.length} responses right</span>
        <span>difficulty <strong>${DIFFICULTIES[loaded.difficulties[i]] || "not scored"}</strong></span>
        <span>item <code>${loaded.ids[i].slice(0, 12)}</code></span></p>
      <${dcsft.pictures.Pictures} pictures=${loaded.pictures[i]} answers=${answers} drawn=${state.boxes === "1"} toggle=${() => go({ boxes: state.boxes === "1" ? "0" : "1" }, true)} />
      <dl><dt>Prompt</dt><dd><${Long} text=${loaded.prompts(i)} label="Prompt" /></dd><dt>Gold</dt><dd><${Long} text=${loaded.gold(i)} label="Gold" /></dd></dl>
      <div class="controls"><${Pick} label="Responses" value=${String(shown)} onPick=${(value) => pick(Number(value))}
        options=${[["-1", `All ${draws.length}`], ...draws.map((_, at) => [String(at), `${at + 1}`])]} /></div>
      <div class="responses">${drawn.map((one) => html`<article class="response" key=${one.at}>
        <h4>Response ${one.at - draws[0].at + 1}</h4>
        <p><${Verdict} score=${one.score} silent=${one.extracted === null} /> <small>${one.tokens} tokens</small></p>
        <dl><dt>Extracted answer</dt><dd>${one.extracted === null ? html`<span class="none">none</span>` : html`<${Long} text=${one.extracted} label="Extracted answer" />`}</dd>
          <dt>Response</dt><dd><${Long} text=${one.response} label="Response" /></dd></dl></article>`)}</div>
    </div>`;
  }

  function Browser({ found, state, go, link }) {
    const loaded = preactHooks.useMemo(() => decoded(found), [found]);
    const list = preactHooks.useMemo(() => kept(loaded, state), [loaded, state.verdict, state.difficulty, state.find]);
    const at = clamp(state.page, Math.ceil(list.length / SIZE) - 1);
    const wanted = loaded.ids.indexOf(state.item);
    const i = wanted >= 0 ? wanted : list[at * SIZE];
    return html`<div class="browser">
      <div class="list" aria-label="Items" role="region">
        ${list.length ? html`<ol class="items">${list.slice(at * SIZE, at * SIZE + SIZE).map((one) => html`<li key=${one}>
          <a class="item" href=${link({ item: loaded.ids[one], page: String(at) })} aria-current=${one === i ? "true" : undefined}>
            <${dcsft.pictures.Thumbnail} picture=${loaded.pictures[one][0]} /><span>document ${loaded.documents[one]}</span>
            <span class="answer">${loaded.right(one)} of ${loaded.draws(one).length} <${Name} text=${loaded.gold(one)} most=${24} /></span></a></li>`)}</ol>`
          : html`<p class="none" role="status">No item matches.</p>`}
        <${Pages} at=${at} size=${SIZE} total=${list.length} what="items" go=${(page) => go({ page: String(page), item: "" })} />
      </div>
      ${i !== undefined && html`<${Detail} key=${loaded.ids[i]} loaded=${loaded} i=${i} list=${list} state=${state} go=${go} />`}
    </div>`;
  }

  return function Pool({ model, board, state, go, link }) {
    const number = Number(state.task.slice(5));
    const pool = model.pools[number];
    const data = dcsft.useData([`p${number}items`, `p${number}r0`]);
    const to = (change) => go({ page: "0", item: "", ...change });
    return html`<section aria-labelledby="title">
      <h2 id="title">Samples</h2>
      <form class="controls" onSubmit=${(event) => event.preventDefault()}>
        <${Pick} label="Task" value=${state.task} onPick=${(task) => to({ task })} options=${taskOptions(model, board)} />
        <${Pick} label="Verdict" value=${state.verdict} onPick=${(verdict) => to({ verdict })} options=${[
          ["all", "Any"], ["right", "Some right"], ["wrong", "Some wrong"], ["silent", "Some without an answer"], ["unscored", "Some not scored"]]} />
        <${Pick} label="Difficulty" value=${state.difficulty} onPick=${(difficulty) => to({ difficulty })} options=${[
          ["all", "Any"], ...DIFFICULTIES.map((kind) => [kind, kind]), ["unlabelled", "not scored"]]} />
        <${Find} label="Text contains" value=${state.find} onFind=${(find) => go({ find, page: "0", item: "" }, true)} />
      </form>
      <p class="note">${pool.items.toLocaleString("en")} of ${pool.of.toLocaleString("en")} items of ${html`<${Name} text=${pool.name} />`}, with all of their responses.</p>
      ${data.found ? html`<${Browser} found=${data.found} state=${state} go=${go} link=${link} />` : html`<${Waiting} error=${data.error} />`}
    </section>`;
  };
})();
