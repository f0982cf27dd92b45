"""`dcsft label --exact`: pass rates by teacher forcing, checked by brute force and by sampling."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_from_disk

from dcsft_harness import sampling
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import pass_rates
from dcsft_harness.data.digits import resolve
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.exact import PassRates, Target
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import Item
from dcsft_harness.scoring import words
from tests.fixtures.artifacts import item, picture
from tests.models.test_models_sampling import kept_probabilities

POOL = "dcsft_digits_pool"


def sampled(folder, *more, task=POOL):
    """Rollouts of a part of the digits pool, from the embedded checkpoint."""
    arguments = ["--model", "digits", "--model-args", "batch_size=8", "--task", task]
    assert main(["sample", *arguments, *more, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact") / "rollouts"
    return sampled(folder, "--limit", "24", "--samples", "4", "--top-p", "0.95")


@pytest.fixture(scope="module")
def model():
    return DcsftHF(pretrained=resolve("digits"), batch_size=4)


@pytest.fixture(scope="module")
def rows(rollouts):
    wanted = pq.read_table(rollouts / "rollouts.parquet")["item_id"].unique()
    return list(pass_rates._rows(rollouts / "items", pass_rates.pa.chunked_array([wanted])))


def asked(model, row, arguments):
    model.task_dict = {row["task"]: {"items": {row["doc_id"]: row}}}
    return Item(row["task"], "items", row["doc_id"], arguments, row["prompt"], pass_rates.messages)


def target(answer):
    return Target(
        answer,
        lambda text: words.exact_word(text, answer=answer).score == 1.0,
        lambda text: words.can_become_right(text, answer=answer),
    )


def by_brute_force(model, row, arguments, least=1e-6):
    """The pass rate, token string by token string, with one forward pass each."""
    prepared = model._prepare(asked(model, row, arguments))
    ends, tokenizer, gold = model._engine.tokens.eos, model.tokenizer, row["answer"]

    def text_of(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def rate(tokens, mass):
        ids = torch.cat([prepared.features["input_ids"], torch.tensor([tokens], dtype=torch.int64)], dim=1)
        inputs = {**prepared.features, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            kinds = torch.zeros_like(ids)
            kinds[:, : prepared.tokens] = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = kinds
        with torch.no_grad():
            logits = model._model(**inputs).logits[0, -1].double().numpy()
        seen = np.unique(ids[0].numpy())
        penalty = arguments.repetition_penalty
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        if len(tokens) < arguments.min_new_tokens:
            logits[list(ends)] = -np.inf
        kept = kept_probabilities(logits, arguments.temperature, arguments.top_k, arguments.top_p)
        right = words.exact_word(text_of(tokens), answer=gold).score
        found = mass * kept[list(ends)].sum() * right
        for token in np.flatnonzero(kept * mass >= least).tolist():
            longer = [*tokens, token]
            text = text_of(longer)
            stop = next((text.find(one) for one in arguments.stop if one in text), None)
            if token in ends:
                continue
            if stop is not None:
                found += mass * kept[token] * words.exact_word(text[:stop], answer=gold).score
            elif gold.startswith(text.strip(" .\n").lower()) and len(longer) < arguments.max_new_tokens:
                found += rate(longer, mass * kept[token])
        return found

    return rate([], 1.0)


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 50, "temperature": 0.9},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.3},
        {"temperature": 0.9, "top_k": 50, "min_new_tokens": 3},
        {"temperature": 1.2, "top_k": 50, "stop": (".",)},
        {"temperature": 1.0, "top_k": 50, "max_new_tokens": 2},
    ],
    ids=str,
)
def test_the_pass_rate_is_the_sum_over_token_strings(model, rows, given):
    arguments = GenerationArguments(**{"max_new_tokens": 8} | given)
    some = rows[:4]
    found = []
    for row in some:
        found += model.pass_rates([asked(model, row, arguments)], [target(row["answer"])])
    wanted = [by_brute_force(model, row, arguments) for row in some]
    for one, rate in zip(found, wanted, strict=True):
        assert one.rate - 1e-4 <= rate <= one.rate + one.uncounted + 1e-4
        assert one.uncounted < 0.02


def test_batching_does_not_change_pass_rates(model, rows):
    arguments = GenerationArguments(max_new_tokens=8, temperature=0.9, top_k=50)
    model.task_dict = {POOL: {"items": {row["doc_id"]: row for row in rows}}}
    items = [
        Item(POOL, "items", row["doc_id"], arguments, row["prompt"], pass_rates.messages) for row in rows
    ]
    targets = [target(row["answer"]) for row in rows]
    together = model.pass_rates(items, targets)
    singly = [model.pass_rates([item], [one])[0] for item, one in zip(items, targets, strict=True)]
    assert [one.rate for one in together] == pytest.approx([one.rate for one in singly], abs=1e-5)


def test_label_exact_adds_a_column_and_the_noise_of_the_labels(rollouts, tmp_path, capsys):
    assert main(["label", str(rollouts), "--exact", "--output", str(tmp_path / "labels")]) == 0
    said = capsys.readouterr().out
    assert "Exact pass rates: mean" in said and "(from the exact pass rates)" in said
    notes = manifest.read(tmp_path / "labels").notes
    table = pq.read_table(tmp_path / "labels" / "labels.parquet").to_pylist()
    assert len(table) == 24 and all(0 <= row["exact"] <= 1 for row in table)
    assert np.mean([row["exact"] for row in table]) == pytest.approx(notes["exact"]["mean"])
    assert notes["noise"]["source"] == "exact" and notes["exact"]["uncounted"] < 0.01
    # 24 items with 4 samples at top-p 0.95: every item is close to its rate.
    assert all(abs(row["k"] - 4 * row["exact"]) < 3.5 for row in table)
    assert main(["label", str(rollouts), "--output", str(tmp_path / "plain")]) == 0
    plain = pq.read_table(tmp_path / "plain" / "labels.parquet").to_pylist()
    assert [{**row, "exact": None} for row in table] == plain


REFUSED = {
    "another scorer": ({}, {"scorers": {"math": 2}}, "scored by exact_word, but .* by math"),
    "two scorers": ({}, {"scorers": {"choice": 1, "exact_word": 2}}, "was scored by choice, exact_word"),
    "a task's own scorer": ({}, {"scorers": None}, "was scored by a scorer of its task"),
    "another engine": ({"model": "dcsft_stub"}, {}, "is by dcsft_stub"),
    "no settings": ({}, {"generation_in_force": None}, "with their generation settings"),
    "other prompts": ({}, {"prompt_tokens": 1}, "but 1 were sampled"),
}


@pytest.mark.parametrize(("config", "notes", "said"), REFUSED.values(), ids=REFUSED)
def test_rollouts_without_exact_rates_are_refused(rollouts, tmp_path, config, notes, said):
    made = manifest.read(rollouts)
    with manifest.writing("rollouts", tmp_path / "rollouts", dict(made.config) | config) as draft:
        for name in ("rollouts.parquet", "items"):
            (draft.folder / name).symlink_to(rollouts / name)
        draft.notes |= dict(made.notes) | notes
    from dcsft_harness.curation import labels

    with pytest.raises(HarnessError, match=said):
        labels.label(tmp_path / "rollouts", tmp_path / "labels", exactly=True)
    assert not (tmp_path / "labels").exists()


def test_a_model_whose_prompt_sees_the_response_is_refused(model, rows, monkeypatch):
    engine, forced = model._engine, model._engine.forced

    def seeing(items, responses):
        return [one + 5.0 * len(tokens) * torch.randn(one.shape[-1]) for one, tokens in
                zip(forced(items, responses), responses, strict=True)]  # fmt: skip

    monkeypatch.setattr(engine, "forced", seeing)
    arguments = GenerationArguments(max_new_tokens=8, temperature=0.9)
    with pytest.raises(HarnessError, match="logits after the prompt change with the response"):
        PassRates(engine, arguments, 4).of(
            [model._prepare(asked(model, rows[0], arguments))], [target("six")]
        )


def test_non_finite_logits_name_the_item(model, rows, monkeypatch):
    forced = model._engine.forced
    monkeypatch.setattr(model._engine, "forced", lambda *given: [one * torch.nan for one in forced(*given)])
    arguments = GenerationArguments(max_new_tokens=8, temperature=0.9)
    with pytest.raises(HarnessError, match="doc_id 0: the model's logits are not finite"):
        model.pass_rates([asked(model, rows[0], arguments)], [target("six")])


def test_turns_and_images_become_messages():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One <image> two <image>"},
    ]
    item = {"prompt": "Be brief.\nOne <image> two <image>", "target": "x", "turns": json.dumps(turns)}
    found = pass_rates.messages(item | {"images": [{"bytes": b"1"}, {"bytes": b"2"}]})
    assert found == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "One "},
                {"type": "image", "url": b"1"},
                {"type": "text", "text": " two "},
                {"type": "image", "url": b"2"},
            ],
        },
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_turns_are_read_when_stored_and_older_items_fall_back_to_the_prompt(tmp_path, kept):
    turns = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}])
    some = replace(item(0), turns=turns)
    sampling.write_items(tmp_path / "items", [some], [[picture(0)]])
    if not kept:
        data = load_from_disk(str(tmp_path / "items")).remove_columns("turns")
        data.save_to_disk(str(tmp_path / "former"))
    rows = pass_rates._rows(tmp_path / ("items" if kept else "former"), pa.chunked_array([[some.item_id]]))
    (said,) = [[turn["role"] for turn in pass_rates.messages(row)] for row in rows]
    assert said == (["system", "user"] if kept else ["user"])


@pytest.mark.slow
def test_samples_agree_with_the_exact_rates(tmp_path):
    folder = sampled(tmp_path / "rollouts", "--limit", "250", "--samples", "32")
    assert main(["label", str(folder), "--exact", "--output", str(tmp_path / "labels")]) == 0
    found = manifest.read(tmp_path / "labels").notes["exact"]
    assert found["chi_squared_items"] > 150 and abs(found["chi_squared_deviations"]) < 3
