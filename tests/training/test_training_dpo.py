"""DPO from rollouts: the pairs, TRL's inputs, what is left out and refused, and whole runs."""

import json
import shutil

import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dcsft_harness import cli, recipes, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import chain
from dcsft_harness.stages import train_dpo
from dcsft_harness.stages.train_dpo import Responses, open_pairs
from dcsft_harness.training import trainer
from tests.fixtures.artifacts import item, picture, rollout
from tests.fixtures.tiny_checkpoints import checkpoint
from tests.training.test_training_resume import Stop, log, same_weights, stopping
from tests.training.test_training_sft import WORDS, base  # noqa: F401 - a fixture

DPO = stages.STAGES["train dpo"]
FEW = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup_ratio": 0}


def drawn(folder, answers):
    """Rollouts: for each item the (text, score) or (text, score, finish reason) of its responses."""
    items = [item(number) for number in range(len(answers))]
    rows = []
    for some, responses in zip(items, answers, strict=True):
        for index, (text, score, *reason) in enumerate(responses):
            row = {**vars(rollout(some, index, score)), "response": text}
            rows.append(records.Rollout(**row | ({"finish_reason": reason[0]} if reason else {})))
    with manifest.writing("rollouts", folder, {"task": "pool", "samples": 2}) as draft:
        records.write_table(draft.folder / sampling.ROLLOUTS, records.Rollout, rows)
        images = [[picture(some.doc_id, (56, 56))] for some in items]
        sampling.write_items(draft.folder / sampling.ITEMS, items, images)
    return folder


def digits(folder, count=8):
    """Rollouts in words of the tiny tokenizer: each item has two right and two wrong responses."""
    return drawn(
        folder,
        [[(WORDS[(number + place) % 10], float(place < 2)) for place in range(4)] for number in range(count)],
    )


class TestPairs:
    responses = st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"),
            st.sampled_from([None, 0.0, 1.0]),
            st.sampled_from(["stop", "length"]),
        ),
        max_size=12,
    )

    @settings(deadline=None)
    @given(responses, st.integers(1, 70), st.integers(0, 5), st.randoms())
    def test_are_right_and_wrong_distinct_and_determined_by_the_seed(self, drawn, most, seed, random):
        # Every text has one score, as from a scorer.
        scored = {text: score for text, score, _ in drawn}
        rows = [(text, scored[text], reason) for text, _, reason in drawn]
        one, other = Responses(), Responses()
        for row in rows:
            one.add(*row)
        for row in random.sample(rows, len(rows)):
            other.add(*row)
        pairs = one.pairs("x", most, seed)
        whole = {row for row in rows if row[2] == "stop"}
        right, wrong = ({text for text, score, _ in whole if score == value} for value in (1.0, 0.0))
        assert pairs == other.pairs("x", most, seed)
        assert len(pairs) == len(set(pairs)) == min(most, len(right) * len(wrong))
        assert all(chosen in right and rejected in wrong for chosen, rejected in pairs)
        assert pairs == one.pairs("x", 100, seed)[: len(pairs)]
        alone = min(len(right), len(wrong), most)
        assert all(len({pair[side] for pair in pairs[:alone]}) == alone for side in (0, 1))
        assert one.unscored + one.truncated == len(rows) - sum(
            row in whole and row[1] is not None for row in rows
        )

    def test_depend_on_the_seed(self):
        one = Responses()
        for number in range(20):
            one.add(f"text {number}", float(number % 2), "stop")
        assert len({tuple(one.pairs("x", 1, seed)) for seed in range(9)}) > 5
        assert len({tuple(one.pairs(f"x{number}", 1, 0)) for number in range(9)}) > 5

    def test_are_within_one_item_and_what_is_left_out_is_counted(self, tmp_path):
        folder = drawn(
            tmp_path / "rollouts",
            [
                [("a", 1.0), ("b", 0.0), ("b", 0.0)],
                [("c", 1.0), ("d", 1.0)],
                [("e", 1.0), ("f", 0.0, "length"), ("g", None)],
                [("h", 0.0), ("i", 1.0), ("j", 1.0)],
            ],
        )
        rows, inputs, counts = open_pairs(folder, 5, 0)
        assert counts == {"items": 4, "items_with_pairs": 2, "pairs": 3, "truncated": 1, "unscored": 1}
        assert inputs == {"rollouts": folder}
        found = {(row["item_id"], row["messages"][1]["content"], row["rejected"]) for row in rows}
        first, last = item(0).item_id, item(3).item_id
        assert found == {(first, "a", "b"), (last, "i", "h"), (last, "j", "h")}
        assert rows[0]["messages"][0]["content"] == "<image>" + item(0).prompt
        assert rows[0]["images"][0].getpixel((0, 0)) == picture(0).getpixel((0, 0))

    def test_of_a_curated_set_belong_to_its_items(self, tmp_path):
        folder = digits(tmp_path / "rollouts")
        stages.STAGES["label"](tmp_path / "labels", rollouts=folder)
        stages.STAGES["curate"](tmp_path / "set", labels=tmp_path / "labels", keep=["medium"], size=3)
        rows, inputs, counts = open_pairs(tmp_path / "set", 1, 0)
        assert counts["items"] == counts["pairs"] == len(rows) == 3
        assert inputs == {"data": tmp_path / "set", "rollouts": folder}
        chosen = manifest.read(tmp_path / "set")
        assert chosen.notes["items"] == 3


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([[("a", 1.0)], [("b", 0.0)]], "none of 2 items has both .*1 have right ones, 1 wrong ones"),
        ([[("a", 1.0), ("b", 0.0, "length"), ("c", None)]], "left out: 1 truncated, 1 unscored.*Sample more"),
        ([[("a", 1.0), *[("b", 0.0, "length")] * 2]], "2 truncated, .*again with a higher --max-new-tokens"),
    ],
)
def test_rollouts_without_pairs_are_refused(tmp_path, answers, said):
    with pytest.raises(HarnessError, match=said):
        open_pairs(drawn(tmp_path / "rollouts", answers), 1, 0)


@pytest.mark.slow
def test_unusable_data_is_refused_before_weights_are_read(base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("dcsft_harness.training.run.open_weights", lambda *a: pytest.fail("loaded"))
    rollouts = digits(tmp_path / "rollouts")
    stages.STAGES["label"](tmp_path / "labels", rollouts=rollouts)
    stages.STAGES["curate"](tmp_path / "set", labels=tmp_path / "labels", keep=["medium"], weight="p(1-p)")
    marked = drawn(tmp_path / "marked", [[("one", 1.0), ("<|image_pad|>", 0.0)]])
    cases = [
        (tmp_path / "labels", {}, "holds labels, but pairs are made from responses"),
        (tmp_path / "nothing", {}, "does not exist"),
        (tmp_path / "set", {}, "has a column weight, which DPO does not use"),
        (marked, {}, r"marked, item \w+: the answer has '<\|image_pad\|>' in its text"),
        (rollouts, {"beta": 0}, "beta"),
        (rollouts, {"pairs_per_item": 0}, "pairs_per_item|pairs-per-item"),
        (rollouts, {"box_space": "pixel", "box_rounding": "truncate"}, "DPO has no targets"),
        (rollouts, {"extra": {"loss_type": "sigmoidal"}}, "loss_type"),
        (rollouts, {"extra": {"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0]}}, "loss_weights"),
        (rollouts, {"extra": {"f_divergence_type": "other"}}, "f_divergence_type"),
        (rollouts, {"extra": {"loss_type": "exo_pair"}}, "needs a label_smoothing above 0"),
        (rollouts, {"extra": {"label_smoothing": 0.2}}, "no effect with loss_type=sigmoid.*robust"),
        (rollouts, {"extra": {"loss_type": "robust", "label_smoothing": 0.5}}, "wrong pairs below 0.5"),
        (rollouts, {"extra": {"loss_type": []}}, "loss_type is empty"),
        (
            rollouts,
            {"extra": {"loss_type": "aot", "use_weighting": True}},
            "use_weighting cannot be combined with",
        ),
        (
            rollouts,
            {"extra": {"loss_type": "apo_zero", "f_divergence_type": "forward_kl"}},
            "cannot be combined with",
        ),
        (rollouts, {"extra": {"sync_ref_model": True}}, "sync_ref_model is set by the harness"),
        (rollouts, {"extra": {"beta": 1}}, "beta is set by the harness"),
    ]
    for data, options, said in cases:
        with pytest.raises(HarnessError, match=said):
            DPO(tmp_path / "out", model=str(base), data=str(data), **{**FEW, **options})
        assert not (tmp_path / "out").exists()


def test_losses_are_those_known_to_trl():
    """TRL's own error lists them."""
    from inspect import getsource

    source = getsource(trl.DPOTrainer._compute_loss)
    known = {line.split('"')[1] for line in source.splitlines() if "if loss_type ==" in line}
    assert known == set(train_dpo.LOSSES)
    assert all(f'"{name}"' in source for name in train_dpo.DIVERGENCES)


def test_both_responses_follow_the_prompt_and_the_models_start_equal(base, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    original = trl.DPOTrainer._compute_loss
    monkeypatch.setattr(
        trl.DPOTrainer,
        "_compute_loss",
        lambda self, model, inputs, *rest: (seen.append(inputs), original(self, model, inputs, *rest))[1],
    )
    folder, notes = digits(tmp_path / "rollouts", 4), {}
    for micro in (None, 2):
        out = tmp_path / f"out{micro}"
        options = {**FEW, "max_steps": 1, "micro_batch_size": micro}
        notes[micro] = DPO(out, model=str(base), data=str(folder), **options)
        assert notes[micro]["final_loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
        assert log(out)[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    batch = seen[0]
    from transformers import AutoProcessor

    decode = AutoProcessor.from_pretrained(base).tokenizer.decode
    rows, _, _ = open_pairs(folder, 1, 0)
    wanted = {(row["messages"][1]["content"] + "<|im_end|>", row["rejected"] + "<|im_end|>") for row in rows}
    texts = [
        decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert set(zip(texts[:4], texts[4:], strict=True)) == wanted
    ledgers = [notes[micro]["ledger"] for micro in notes]
    assert ledgers[0]["prompts"] == 4
    assert ledgers[0]["completion_tokens"] == int(batch["completion_mask"].sum())
    tokens = int(batch["attention_mask"].sum())
    assert ledgers[0]["prompt_tokens"] == tokens - ledgers[0]["completion_tokens"]
    for name in ("prompts", "prompt_tokens", "completion_tokens", "flops"):
        assert ledgers[0][name] == pytest.approx(ledgers[1][name])
    assert notes[None]["mean_grad_norm"] == pytest.approx(notes[2]["mean_grad_norm"], rel=1e-3)


SPACED = (  # as SmolVLM's, with Gemma's trim and an empty thought as Qwen3.5's
    "{% for m in messages %}{{ m.role }}: {{ '<think></think>' if m.role == 'assistant' }}"
    "{% for p in m.content %}"
    "{{ p.text | trim if p.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("right", "wrong"), [(" goose", "duck\n"), (" <think>Two.</think> 2", "</think>2"), ("B", "")]
)
def test_responses_are_trained_on_as_the_model_wrote_them(tmp_path, monkeypatch, right, wrong):
    model, seen = tmp_path / "base", []
    shutil.copytree(checkpoint("qwen2_5_vl"), model)
    (model / "chat_template.jinja").write_text(SPACED)
    monkeypatch.setattr(train_dpo, "_check_collator", lambda _, pair: seen.append(pair))
    folder = drawn(tmp_path / "rollouts", [[(right, 1.0), (wrong, 0.0)]])
    DPO(tmp_path / "out", model=str(model), data=str(folder), **{**FEW, "max_steps": 1})
    assert (seen[0]["chosen"], seen[0]["rejected"]) == (right + "<|im_end|>", wrong + "<|im_end|>")
    assert seen[0]["prompt"].endswith("assistant:")


@pytest.mark.slow
def test_each_pair_of_an_epochs_last_batch_has_the_same_weight(base, tmp_path):  # noqa: F811
    """Of seven pairs, four per batch, the second batch has three: passes of two and of one."""
    folder = digits(tmp_path / "rollouts", 7)
    options = {"model": str(base), "data": str(folder), **FEW, "max_steps": 2}
    options |= {"learning_rate": 0.1, "extra": {"optim": "sgd"}}  # AdamW amplifies the smallest gradients
    for micro in (4, 2):
        DPO(tmp_path / str(micro), **options, micro_batch_size=micro)
    same_weights(tmp_path / "4", tmp_path / "2", rtol=1e-3, atol=1e-5)
    for one, other in zip(log(tmp_path / "4"), log(tmp_path / "2"), strict=True):
        assert one | {"entropy": 0} == pytest.approx(other | {"entropy": 0}, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_an_adapter_learns_to_prefer_right_responses_and_records_its_source(base, tmp_path):  # noqa: F811
    folder, out = digits(tmp_path / "rollouts"), tmp_path / "out"
    options = {**FEW, "max_steps": 12, "batch_size": 8, "learning_rate": 5e-3}
    notes = DPO(out, model=str(base), data=str(folder), **options)
    rows = log(out)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["reward_margin"] > 0.1 and rows[-1]["reward_accuracy"] > 0.5
    assert {"reward_chosen", "reward_rejected"} <= rows[-1].keys()
    assert notes["pairs"] == {"items": 8, "items_with_pairs": 8, "pairs": 8, "truncated": 0, "unscored": 0}
    weights = load_file(out / "adapter_model.safetensors")
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    made = manifest.read(out, "adapter")
    assert set(made.inputs) == {"model", "rollouts"}
    assert made.config["method"] == "dpo"
    card = (out / "README.md").read_text()
    assert "Trained on: rollouts" in card and "pairs" in card
    assert DPO(out, model=str(base), data=str(folder), **options)[stages.DONE]
    assert train_dpo.summary(notes).endswith("8 pairs of 8 of 8 items")


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"full": True}, {"micro_batch_size": 2, "lora_dropout": 0.1}])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(base, tmp_path, monkeypatch, more):  # noqa: F811
    made, disabled = trainer.arguments, set()
    monkeypatch.setattr(
        trainer,
        "arguments",
        lambda kind, ours, *rest: disabled.add(ours["disable_dropout"]) or made(kind, ours, *rest),
    )
    given = {"model": str(base), "data": str(digits(tmp_path / "rollouts", 5)), "pairs_per_item": 2}
    given |= {**FEW, "max_steps": 5, "save_steps": 2, **more}
    DPO(tmp_path / "whole", **given)
    stop = stopping(4)
    with pytest.raises(Stop):
        DPO(tmp_path / "cut", lambda step, total, **figures: stop(step, total, figures), **given)
    DPO(tmp_path / "cut", **given)
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    assert disabled == {"lora_dropout" not in more}


@pytest.mark.slow
def test_a_continued_adapter_is_also_the_reference(base, tmp_path):  # noqa: F811
    given = {"model": str(base), "data": str(digits(tmp_path / "rollouts", 4)), **FEW}
    DPO(tmp_path / "first", **given)
    DPO(tmp_path / "second", **given, adapter=tmp_path / "first")
    assert log(tmp_path / "second")[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert {path.name for path in (tmp_path / "second").glob("*/")} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "internvl", "llava_onevision", "gemma3", "glm4v"],
)
def test_families_train_or_are_refused_in_one_sentence(family, tmp_path):
    folder = digits(tmp_path / "rollouts", 4)
    notes = DPO(tmp_path / "out", model=str(checkpoint(family)), data=str(folder), **{**FEW, "max_steps": 1})
    assert notes["final_loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-3)


@pytest.mark.slow
def test_the_command_line_trains_evaluates_and_merges(tmp_path, capsys):
    def dcsft(*words):
        code = cli.main(list(words))
        out, err = capsys.readouterr()
        assert code == 0, err
        return out, err

    model = "pretrained=digits,batch_size=32"
    rollouts, out = str(tmp_path / "rollouts"), str(tmp_path / "out")
    pool = ["--task", "dcsft_digits_pool", "--limit", "24", "--samples", "6"]
    dcsft("sample", "--model-args", model, *pool, "--output", rollouts)
    words = ["--learning-rate", "1e-3", "--max-steps", "4", "--batch-size", "8", "--set", "loss_type=ipo"]
    _, said = dcsft("train", "dpo", "--model", "digits", "--data", rollouts, *words, "--output", out)
    assert "train dpo: 4 steps, loss " in said and " pairs of " in said
    tasks = ["--tasks", "dcsft_digits", "--limit", "8"]
    dcsft("evaluate", "--model-args", f"{model},adapter={out}", *tasks, "--output", str(tmp_path / "scores"))
    dcsft("merge", out, "--output", str(tmp_path / "merged"))
    table, _ = dcsft("compare-cost", out)
    assert "out (DPO): drawing for its labels" in table
    assert json.loads((tmp_path / "merged" / "manifest.json").read_text())["artefact"] == "checkpoint"


@pytest.mark.parametrize("scale", ["digits", "paper"])
def test_the_recipe_compares_dpo_with_sft_and_grpo(scale, tmp_path):
    made = recipes.load("preferences", scale)
    assert "\ndcsft train dpo --model " in chain.described(made, tmp_path)
    verbs = {stage.verb for stage in made.stages}
    assert verbs >= {"train dpo", "train grpo", "train sft", "evaluate", "leaderboard build"}
    dpo = next(stage for stage in made.stages if stage.verb == "train dpo")
    assert DPO.options.from_options({**dpo.options, "model": "m", "data": "d"})
    known = chain.estimates(made)
    assert known[dpo.name].seconds > known[dpo.name.replace("dpo", "em")].seconds
