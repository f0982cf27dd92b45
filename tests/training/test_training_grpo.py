"""GRPO through TRL: prompts without answers, the task's scorer as reward, kinds of groups, resuming."""

import contextlib
import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcsft_harness import lmms, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.checkpoint import saved_processor
from dcsft_harness.scoring import SCORERS
from dcsft_harness.training import data, grpo, run
from dcsft_harness.training.config import GrpoConfig
from dcsft_harness.training.data import Template
from dcsft_harness.training.grpo import Judge, outcomes
from tests.fixtures.several import Parity
from tests.training.test_training_resume import Stop, log, same_weights, stopping
from tests.training.test_training_sft import base, conversations  # noqa: F401 - a fixture

CONFIG = GrpoConfig(
    max_steps=3, batch_size=8, num_generations=4, max_completion_length=3, learning_rate=1e-3, save_steps=1
)


def prompts_of(count):
    return conversations(count).add_column("item_id", [f"item{number}" for number in range(count)])


@pytest.fixture
def drawn(monkeypatch):
    """Results of every draw of a run in this test, with their rows."""
    made = []
    original = grpo.GrpoTrainer._generate_and_score_completions

    def spy(self, inputs):
        found = original(self, inputs)
        made.append(([example["row"] for example in inputs], [dict(example) for example in inputs], found))
        return found

    monkeypatch.setattr(grpo.GrpoTrainer, "_generate_and_score_completions", spy)
    return made


def test_the_advantage_is_the_reward_normalized_within_its_group(base, tmp_path, drawn):  # noqa: F811
    judge = Parity(6)
    notes = grpo.train_grpo(base, prompts_of(6), judge, tmp_path / "out", CONFIG)
    kinds = set()
    for number, (rows, _, found) in enumerate(drawn):
        rewards = np.array([len(text) % 2 for _, text in judge.seen[8 * number : 8 * number + 8]], float)
        assert [f"item{row}" for row in rows] == [item for item, _ in judge.seen[8 * number : 8 * number + 8]]
        for start in (0, 4):
            group, got = rewards[start : start + 4], found["advantages"][start : start + 4]
            assert len(set(rows[start : start + 4])) == 1
            if group.std() == 0:
                assert got.tolist() == [0, 0, 0, 0]
            else:
                expected = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
                assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
            kinds.add(group.std() == 0)
    assert kinds == {True, False}
    history = log(tmp_path / "out")
    for row, (_, _, found) in zip(history, drawn, strict=True):
        assert row["zero_advantage"] == sum(not any(found["advantages"][s : s + 4]) for s in (0, 4)) / 2
        assert row["all_right"] + row["mixed"] + row["all_wrong"] == 1
    assert notes["ledger"]["generated"] == 24 and notes["ledger"]["prompts"] == 6
    assert notes["ledger"]["completion_tokens"] == sum(
        int(found["completion_mask"].sum()) for *_, found in drawn
    )
    assert notes["ledger"]["flops"] > 0
    assert manifest.read(tmp_path / "out", "adapter").notes["scorers"] == {"parity": 3}
    assert {"kl", "completion_length", "grad_norm", "reward"} <= set(history[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("top_k", [0, 5])
def test_weights_that_diverge_before_sampling_are_reported_in_one_sentence(base, tmp_path, value, top_k):  # noqa: F811
    """Instead of torch's error about a probability tensor, or completions of nonsense."""
    spoilt = []

    def spoil(step, total, figures):
        assert set(figures) == {"reward", "grad_norm"}  # the loss is about 0 at every step
        with torch.no_grad():
            spoilt[0].weight.fill_(value)

    made = grpo.GrpoTrainer.bind

    def bind(self, *given):
        spoilt.append(self.accelerator.unwrap_model(self.model).get_input_embeddings())
        made(self, *given)

    config = CONFIG.model_copy(update={"top_k": top_k, "save_steps": None})
    with pytest.MonkeyPatch.context() as patched, pytest.raises(HarnessError) as told:
        patched.setattr(grpo.GrpoTrainer, "bind", bind)
        grpo.train_grpo(base, prompts_of(6), Parity(6), tmp_path / "out", config, progress=spoil)
    said = r"the logit of a completion of step 2 is (nan|inf): training diverged at the items item\d"
    assert re.match(said, str(told.value)) and "\n" not in str(told.value)


@pytest.mark.slow
def test_the_trainer_gets_the_prompt_of_evaluation_and_no_answer(base, tmp_path, drawn):  # noqa: F811
    rows = prompts_of(4)
    grpo.train_grpo(base, rows, Parity(4), tmp_path / "out", CONFIG)
    turns = data.read(rows)
    template = Template.of(saved_processor(str(base)), None)
    processor = template.processor
    for numbers, inputs, found in drawn:
        for place, (row, example) in enumerate(zip(numbers, inputs, strict=True)):
            assert set(example) == {"prompt", "images", "row"}
            assert [message["role"] for message in example["prompt"]] == ["user"]
            answer = turns.turns[row].answer
            assert answer not in json.dumps([example["prompt"]])
            text = template.render(turns.turns[row], "").prompt
            wanted = processor(text=[text], images=turns.images(row), return_tensors="pt")["input_ids"][0]
            ids, mask = found["prompt_ids"][place], found["prompt_mask"][place]
            assert ids[mask.bool()].tolist() == wanted.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(base, tmp_path, full):  # noqa: F811
    config = GrpoConfig(**{**vars(CONFIG), "full": full, "batch_size": 4, "num_generations": 2})
    grpo.train_grpo(base, prompts_of(5), Parity(5), tmp_path / "whole", config)
    with pytest.raises(Stop):
        grpo.train_grpo(base, prompts_of(5), Parity(5), tmp_path / "cut", config, progress=stopping(3))
    grpo.train_grpo(base, prompts_of(5), Parity(5), tmp_path / "cut", config)
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    assert manifest.read(tmp_path / "cut").kind == ("checkpoint" if full else "adapter")


@pytest.mark.slow
def test_an_adapter_is_continued_and_stays_the_reference(base, tmp_path):  # noqa: F811
    config = GrpoConfig(**{**vars(CONFIG), "lora_dropout": 0.0})
    grpo.train_grpo(base, prompts_of(5), Parity(5), tmp_path / "first", config)
    notes = grpo.train_grpo(
        base, prompts_of(5), Parity(5), tmp_path / "second", config, adapter=tmp_path / "first"
    )
    # If the base were the reference, the first step would diverge from it.
    assert log(tmp_path / "second")[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert notes["adapted"] == {"language": 28, "vision": 20, "aligner": 2}
    assert [path.name for path in (tmp_path / "second").glob("*/")] == []
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert one.keys() == other.keys()
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_groups_are_counted_by_outcome():
    nan = float("nan")
    rewards = torch.tensor([[1, 0.5, 1], [0, 0, 0], [1, 0, 1], [nan, nan, nan], [1, nan, 1], [nan, 0, 1]])
    assert outcomes(rewards) == pytest.approx(
        {"all_right": 2 / 6, "mixed": 2 / 6, "all_wrong": 1 / 6, "unscored": 1 / 6, "zero_advantage": 3 / 6}
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 12}, "--num-generations 8 does not divide --batch-size 12"),
        ({"num_generations": 1}, "--num-generations 1 is out of range"),
        ({"beta": -0.1}, "--beta -0.1 is out of range"),
        ({"temperature": 0}, "--temperature 0 is out of range"),
        ({"top_p": 1.5}, "--top-p 1.5 is out of range"),
        ({"top_k": -1}, "--top-k -1 is out of range"),
        ({"max_completion_length": 0}, "--max-completion-length 0 is out of range"),
        ({"full": "maybe"}, "--full maybe is not true or false"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(wrong, said):
    with pytest.raises(HarnessError) as refused:
        GrpoConfig(**wrong)
    assert said in str(refused.value)


def test_unusable_data_is_refused_before_a_model_is_loaded(base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    for rows, judge, config, said in (
        (conversations(4), Parity(4), CONFIG, "has no column item_id"),
        (prompts_of(5), Parity(4), CONFIG, "has the item item4, which is not in task parity"),
        (prompts_of(1), Parity(4), CONFIG, "1 prompts, fewer than the 2 of a step.*to 4 or less"),
        (
            prompts_of(4),
            Parity(4),
            GrpoConfig(**{**vars(CONFIG), "save_steps": 3, "extra": {"num_iterations": 2}}),
            "save_steps=3: each batch of completions is used for 2 steps.*Use a multiple of 2",
        ),
        (prompts_of(4).add_column("weight", [1.0] * 4), Parity(4), CONFIG, "a column weight, which GRPO"),
        (prompts_of(4), Parity(4), GrpoConfig(**{**vars(CONFIG), "extra": {"betta": 1}}), "betta.*beta"),
    ):
        with pytest.raises(HarnessError, match=said):
            grpo.train_grpo(base, rows, judge, tmp_path / "out", config)
        assert not (tmp_path / "out").exists()


def test_an_unsuitable_vllm_is_refused_before_a_model_is_loaded(base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))

    def refused(said, extra, **more):
        config = GrpoConfig(**{**vars(CONFIG), "extra": {"use_vllm": True, **extra}, **more})
        with pytest.raises(HarnessError, match=said):
            grpo.train_grpo(base, prompts_of(4), Parity(4), tmp_path / "out", config)
        assert not (tmp_path / "out").exists()

    refused("unknown vllm_mode 'serve'.*server", {"vllm_mode": "serve"})
    refused("use_vllm=true needs vLLM, which is not installed", {"vllm_mode": "server"})
    monkeypatch.setattr(grpo, "find_spec", lambda name: True)
    refused("vllm_tensor_parallel_size=2 does not divide the 1 processes", {"vllm_tensor_parallel_size": 2})
    own = saved_processor(str(base)).image_processor.size["longest_edge"]
    refused(f"vLLM resizes images by the base's own limits.*max_pixels={own}", {}, max_pixels=own // 2)


@pytest.mark.parametrize(
    ("vllm", "mode", "images", "given"),
    [
        (True, "colocate", [["one", "two"], None], [[1, 5, 2, 5, 3], [4]]),
        (True, "colocate", None, [[1, 5, 5, 5, 2, 5, 5, 3], [4]]),
        (True, "server", [["one", "two"], None], [[1, 5, 5, 5, 2, 5, 5, 3], [4]]),
        (False, "colocate", [["one", "two"], None], [[1, 5, 5, 5, 2, 5, 5, 3], [4]]),
    ],
)
def test_a_colocated_vllm_inserts_image_tokens_itself(monkeypatch, vllm, mode, images, given):
    """It would insert each run of them again; a server gets the features and their places."""
    monkeypatch.setattr("trl.GRPOTrainer._generate_single_turn", lambda self, *arguments: arguments)
    trainer = object.__new__(grpo.GrpoTrainer)
    trainer.use_vllm, trainer.vllm_mode, trainer._shares = vllm, mode, False
    trainer.processing_class = types.SimpleNamespace(image_token_id=5)
    trainer._refusing_infinite = contextlib.nullcontext
    prompts_given = [[1, 5, 5, 5, 2, 5, 5, 3], [4]]
    assert trainer._generate_single_turn(prompts_given, images, {}, 2) == (given, images, {}, 2)
    assert prompts_given == [[1, 5, 5, 5, 2, 5, 5, 3], [4]]


def test_a_colocated_vllm_refuses_a_tiled_image():
    with pytest.raises(HarnessError, match="1 images are written as 2 runs of image tokens"):
        grpo.one_an_image([1, 5, 5, 7, 5, 2], 5, 1)


@pytest.mark.slow
def test_the_reward_equals_the_score_of_labeling():
    task = lmms.open_tasks(["dcsft_digits_pool"])["dcsft_digits_pool"]
    rows, judge = grpo.open_data("dcsft_digits_pool", None, None)
    assert len(rows) == len(task.eval_docs)
    for item in rows["item_id"][:5]:
        doc = task.eval_docs_no_media[judge.doc_ids[item]]
        for text in (doc["target"], f" {doc['target'].upper()}. ", "goose", ""):
            assert judge.reward(item, text) == lmms.score_of(task, task.process_results(doc, [text]))[0]
    for given in (("exact_word", None), (None, Path("pictures"))):
        with pytest.raises(
            HarnessError, match="applies only to rows of your own. The task dcsft_digits_pool"
        ):
            grpo.open_data("dcsft_digits_pool", *given)
    assert judge.longest == task.config.generation_kwargs["max_new_tokens"]
    with pytest.raises(HarnessError, match="has no item"):
        Judge(task, {}).reward("x", "y")
    assert judge.scorers == {"exact_word": SCORERS["exact_word"].version}


@pytest.mark.parametrize(
    ("images", "refused"), [((1, 2, 1), None), ((0, 0, 0), None), ((1, 0, 0), "2 of 3 rows")]
)
def test_mixing_rows_with_and_without_images_is_refused(images, refused):
    turns = [data.Turns([], "one", count) for count in images]
    ids = [f"item{number}" for number in range(3)]
    rows = data.Conversations("set", turns, None, ids, None, [0, 1, 2], {})
    config = GrpoConfig(batch_size=2, num_generations=2)
    said = f"set: {refused} have no image.*Use rows that all have images or all have none"
    with pytest.raises(HarnessError, match=said) if refused else contextlib.nullcontext():
        grpo.check_prompts(rows, Parity(3), config)


def test_a_run_whose_scorer_has_changed_is_not_resumed(base, tmp_path, monkeypatch):  # noqa: F811
    config = CONFIG.changed(batch_size=4)
    with pytest.raises(Stop):
        grpo.train_grpo(base, prompts_of(2), Parity(2), tmp_path / "out", config, progress=stopping(2))
    monkeypatch.setattr(Parity, "scorers", {"parity": 4})
    with pytest.raises(HarnessError, match="other settings: scorers: .*3.* -> .*4"):
        grpo.train_grpo(base, prompts_of(2), Parity(2), tmp_path / "out", config)


@pytest.mark.parametrize(
    ("given", "response", "scored", "truncated"),
    [
        ({"until": ["\n"]}, "dog\nQuestion: next", "dog", False),
        ({"until": "\n", "stop": ["|"]}, "dog|cat\n", "dog", False),
        ({"stop_sequences": ["."]}, "dog", "dog", True),
        ({"until": ["\n\n"]}, "dog\n\ncat", "dog\n\ncat", True),  # lmms-eval fills it in: none
        (None, "dog\ncat", "dog\ncat", True),
    ],
)
def test_the_reward_covers_a_response_up_to_the_tasks_stop_texts(
    given, response, scored, truncated, monkeypatch
):
    seen = []
    task = types.SimpleNamespace(
        config=types.SimpleNamespace(task="pool", generation_kwargs=given),
        eval_docs_no_media=[{}],
        process_results=lambda doc, results: seen.extend(results) or {},
    )
    monkeypatch.setattr(lmms, "filtered", lambda task, text, doc: text)
    monkeypatch.setattr(lmms, "score_of", lambda task, metrics: (1.0, None))
    assert Judge(task, {"item": 0}).reward("item", response, truncated=True) == 1.0
    assert [(str(one), one.truncated) for one in seen] == [(scored, truncated)]


def test_the_scorer_of_your_own_prompts_is_part_of_the_run(monkeypatch, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"problem": "Two?", "solution": "2"}\n')
    asked = []
    monkeypatch.setattr(grpo, "perform", lambda job, make: asked.append(job.recorded()[0]) or {})
    for scorer in ("math", "exact_word"):
        given = {"model": "digits", "data": str(tmp_path / "mine.jsonl"), "scorer": scorer}
        stages.STAGES["train grpo"](tmp_path / "out", **given)
    assert [settings["scorer"] for settings in asked] == ["math", "exact_word"]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({}, None),
        ({"zero_advantage": 0.4, "all_right": 0.4, "all_wrong": 0.0}, None),
        ({"zero_advantage": 1.0, "all_right": 1.0, "all_wrong": 0.0}, "100.0 % of the groups"),
        ({"zero_advantage": 0.5, "all_right": 0.125, "all_wrong": 0.375}, "12.5 % all right, 37.5 %"),
    ],
)  # fmt: skip
def test_groups_of_equal_rewards_are_reported(groups, said):
    from dcsft_harness.stages import train_grpo

    found = train_grpo.remarks({"groups": groups})
    assert len(found) == (said is not None) and all(said in one for one in found)


@pytest.mark.parametrize(
    ("rows", "zero"),
    [
        ([], None),
        ([{"step": 1, "loss": 0.0}], None),
        # With num_iterations=2, every other step draws none.
        ([{"zero_advantage": 1.0, "all_right": 1.0, "all_wrong": 0.0}, {"loss": 0.1}], 1.0),
        ([{"zero_advantage": share, "all_right": 0.0, "all_wrong": 0.0} for share in (1.0, 0.5)], 0.75),
    ],
)
def test_shares_of_groups_are_averaged_over_the_steps_that_drew_completions(rows, zero):
    from dcsft_harness.stages import train_grpo

    assert train_grpo.shares(rows).get("zero_advantage") == zero
