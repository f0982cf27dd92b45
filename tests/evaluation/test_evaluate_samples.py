"""`dcsft evaluate --samples`: K keyed responses per item, all kept; resumed, scored, summarized, refused."""

import json

import pytest
from PIL import Image

from dcsft_harness import evaluation, lmms, records, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.sampling import SamplingConfig
from dcsft_harness.scoring import SCORERS, at_k

TASK, SUMS = "dcsft_digits", "dcsft_digits_reason"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def words(question):
    """A different digit for every document and sample; every fifth response has no answer."""
    place = 7 * question.doc_id + 3 * question.sample_index
    return "" if place % 5 == 4 else WORDS[place % 10]


def draw(output, answers=words, tasks=(TASK,), batch_size=2, **config):
    """Evaluates with a scripted model; returns the notes."""
    opened = lmms.open_tasks(list(tasks))
    options = SamplingConfig(**{"samples": 4, "limit": 6, **config})
    model = DcsftStub(answers=answers, batch_size=batch_size)
    return evaluation.evaluate(model, opened, output, "row", {"model": "dcsft_stub"}, options)


def responses(output):
    return records.read_table(output / evaluation.RESPONSES, records.Response).to_pylist()


def scores(output):
    return records.read_table(output / evaluation.SCORES, records.Score).to_pylist()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    output = tmp_path_factory.mktemp("drawn") / "out"
    draw(output, tasks=(TASK, SUMS))
    return output


class TestOutput:
    def test_each_response_is_a_row(self, drawn):
        rows = responses(drawn)
        assert len(rows) == 2 * 6 * 4
        items = {(one["task"], one["item_id"]) for one in rows}
        assert len(items) == 12
        assert sorted(one["sample_index"] for one in rows) == sorted(list(range(4)) * 12)
        named = {one["item_id"]: one for one in scores(drawn) if one["task"] == TASK}
        for one in rows:
            if one["task"] == TASK:
                item = named[one["item_id"]]
                assert one["score"] == float(one["extracted"] == item["answer"])
                assert one["response"] in ("", *WORDS) and one["n_tokens"] == len(one["response"].split()) + 1
                assert one["vote"] == one["extracted"] == (one["response"] or None)
                assert one["finish_reason"] == "stop"

    def test_an_items_row_holds_the_mean_and_the_most_frequent_answer(self, tmp_path):
        said = ["four", "nine", "nine", "", "four", "nine"]
        draw(tmp_path / "out", lambda question: said[question.sample_index], samples=6, limit=1)
        (row,) = scores(tmp_path / "out")
        assert (row["extracted"], row["response"]) == ("nine", "nine")
        rows = responses(tmp_path / "out")
        assert row["score"] == pytest.approx(sum(one["score"] for one in rows) / 6)
        assert row["n_tokens"] == sum(one["n_tokens"] for one in rows)

    def test_the_notes_hold_metrics_at_every_k_and_the_cost(self, drawn):
        notes = manifest.read(drawn, "scores").notes
        entry = notes["tasks"][TASK]
        rows = [one for one in responses(drawn) if one["task"] == TASK]
        assert entry["samples"] == 4 and set(entry["at_k"]) == set(at_k.NAMES)
        assert all(len(values) == 4 for values in entry["at_k"].values())
        mean = sum(one["score"] for one in rows) / len(rows)
        assert entry["accuracy"] == pytest.approx(mean) == pytest.approx(entry["at_k"]["avg"][3])
        assert entry["at_k"]["pass"][3] >= entry["at_k"]["pass"][0] == pytest.approx(mean)
        assert entry["generation"]["temperature"] == 0.9 and entry["generation_in_force"]["top_k"] == 50
        ledger = notes["ledger"]
        assert (ledger["prompts"], ledger["generated"]) == (12, 48)
        assert ledger["completion_tokens"] == sum(one["n_tokens"] for one in responses(drawn))
        config = manifest.read(drawn).config
        assert (config["samples"], config["temperature"], config["seed"]) == (4, 0.9, 0)

    def test_equal_answers_share_a_vote_by_the_scorers_equality(self, tmp_path):
        said = [r"\boxed{1/2}", "so it is 0.5", r"\boxed{\frac12}", r"\boxed{3}", "no idea", r"\boxed{3.0}"]
        draw(tmp_path / "out", lambda question: said[question.sample_index], (SUMS,), samples=6, limit=1)
        votes = [one["vote"] for one in responses(tmp_path / "out")]
        assert votes[0] == votes[1] == votes[2] is not None
        assert votes[3] == votes[5] is not None and votes[4] is None and votes[0] != votes[3]

    def test_a_truncated_response_is_marked(self, tmp_path):
        long = " ".join(["well"] * 400)
        draw(tmp_path / "out", lambda question: long if question.sample_index else "seven", limit=1)
        rows = responses(tmp_path / "out")
        assert [one["finish_reason"] for one in rows] == ["stop", "length", "length", "length"]
        assert scores(tmp_path / "out")[0]["finish_reason"] == "length"

    def test_a_task_that_reports_no_answers_has_no_majority(self, tmp_path):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        lines = [{"q": f"What is {number}?", "a": str(number), "image": "0.png"} for number in range(2)]
        (tmp_path / "rows.json").write_text(json.dumps(lines))
        config = {
            "task": "theirs",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [Image.new("RGB", (28, 28))],
            "doc_to_text": "q",
            "doc_to_target": "a",
            "process_results": lambda doc, results: {"acc": float(results[0] == doc["a"])},
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        task = lmms.make_task(config)
        model = DcsftStub(answers=lambda question: str(question.sample_index))
        options = SamplingConfig(samples=3)
        notes = evaluation.evaluate(model, {"theirs": task}, tmp_path / "out", "row", {}, options)
        assert set(notes["tasks"]["theirs"]["at_k"]) == {"avg", "pass"}
        assert notes["tasks"]["theirs"]["accuracy"] == pytest.approx(1 / 3)


class Interrupted:
    """Answers until it has given a number of responses."""

    def __init__(self, after=10**9):
        self.asked, self.after = [], after

    def __call__(self, question):
        if len(self.asked) == self.after:
            raise KeyboardInterrupt
        self.asked.append((question.task, question.doc_id, question.sample_index))
        return words(question)


class TestDurability:
    def test_an_interrupted_run_resumes_to_the_same_tables(self, tmp_path, drawn):
        first, second = Interrupted(28), Interrupted()
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "out", first, (TASK, SUMS))
        assert [path.name for path in (tmp_path / "out").iterdir()] == [manifest.UNFINISHED]
        draw(tmp_path / "out", second, (TASK, SUMS), batch_size=3)
        assert len(second.asked) == 48 - 24  # whole batches of two items are kept
        assert responses(tmp_path / "out") == responses(drawn)
        assert scores(tmp_path / "out") == scores(drawn)
        assert manifest.read(tmp_path / "out").notes["resumed"] == 24
        assert manifest.is_intact(tmp_path / "out")

    def test_a_greedy_run_resumes_too(self, tmp_path):
        def answer(output, answers):
            model, tasks = DcsftStub(answers=answers, batch_size=2), lmms.open_tasks([TASK, SUMS])
            return evaluation.evaluate(model, tasks, output, "row", {"model": "dcsft_stub"}, limit=6)

        undisturbed = answer(tmp_path / "whole", words)
        with pytest.raises(KeyboardInterrupt):
            answer(tmp_path / "out", Interrupted(9))
        rest = Interrupted()
        notes = answer(tmp_path / "out", rest)
        assert (notes["resumed"], len(rest.asked)) == (8, 12 - 8)  # whole batches of two items are kept
        assert scores(tmp_path / "out") == scores(tmp_path / "whole")
        for name in ("prompts", "generated", "prompt_tokens", "completion_tokens"):
            assert notes["ledger"][name] == undisturbed["ledger"][name]
        assert manifest.is_intact(tmp_path / "out")

    def test_other_settings_are_refused_with_the_difference(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "out", Interrupted(10))
        with pytest.raises(HarnessError, match=r"temperature: 0\.9 -> 0\.5"):
            draw(tmp_path / "out", temperature=0.5)

    def test_rerunning_the_same_command_does_nothing(self, tmp_path, capsys):
        command = ["evaluate", "--model", "dcsft_stub", "--model-args", "default=seven", "--tasks", TASK,
                   "--limit", "4", "--samples", "2", "--output", str(tmp_path / "out")]  # fmt: skip
        assert main(command) == 0 and main(command) == 0
        said = capsys.readouterr()
        assert "avg@2" in said.out + said.err and "pass@2" in said.out + said.err
        assert "already done" in said.out + said.err


@pytest.mark.parametrize(
    ("scorer", "extracted", "classes"),
    [
        ("math", ["1/2", "0.5", None, "x = 0.5", r"\frac{1}{2}", "3"], [0, 0, None, 0, 0, 5]),
        ("math", ["50 mm", "5 cm", "5"], [0, 0, 0]),
        ("math", ["5", "50 mm", "5 cm"], [0, 0, 0]),
        ("math", ["5 m", "5", "5 cm", "5"], [0, 1, 2, 1]),
        ("math", ["50", r"50\%", "0.5", "1/2"], [0, 1, 2, 2]),
        ("math", ["0.5", r"50\%"], [0, 0]),
        ("math", ["y = 2x", "2x", "z = 2x"], [0, 1, 2]),
        ("math", ["2x", "y = 2x"], [0, 0]),
        ("math", ["1, 2", "2, 1", "3:6", "1/2", "1:2"], [0, 0, 2, 2, 2]),
        ("math", ["hello", "world", "hello"], [0, 1, 0]),
        ("open_answer", ["Goose", "goose", "20 Ω", "swan"], [0, 0, 2, 3]),
        ("choice", ["B", "A", "B", None], [0, 1, 0, None]),
        ("exact_word", ["goose", "geese"], [0, 1]),
        (
            "box_iou",
            [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0], None],
            [0, 0, 2, None],
        ),
    ],
)
def test_the_scorer_decides_which_answers_share_a_vote(scorer, extracted, classes):
    votes = SCORERS[scorer].votes(extracted)
    firsts = [None if at is None else votes[at] for at in classes]
    assert votes == firsts
    assert len(set(votes) - {None}) == len(set(classes) - {None})


class TestOptions:
    def test_greedy_is_the_default(self, tmp_path):
        options = {"model": "dcsft_stub", "model_args": "default=seven", "tasks": [TASK], "limit": 3}
        notes = stages.STAGES["evaluate"](tmp_path / "out", **options)
        assert "samples" not in notes["tasks"][TASK]
        assert not (tmp_path / "out" / evaluation.RESPONSES).exists()
        assert "temperature" not in manifest.read(tmp_path / "out").config

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                {"samples": 8, "temperature": 0},
                "--samples 8 at --temperature 0 are 8 times the same response",
            ),
            ({"samples": 0}, "--samples 0 is out of range"),
            ({"samples": 2, "top_p": 0}, "--top-p 0 is out of range"),
            ({"samples": 2, "temperature": -1}, "--temperature -1 is out of range"),
            ({"top_p": 0.5}, "--top-p 0.5 has no effect on a greedy response"),
            ({"seed": 3}, "--seed 3 has no effect on a greedy response"),
            ({"temperature": 0, "top_k": 5}, "--top-k 5 has no effect on a greedy response"),
        ],
    )
    def test_bad_input_is_refused_in_one_sentence(self, tmp_path, options, said):
        with pytest.raises(HarnessError) as refused:
            stages.STAGES["evaluate"](tmp_path / "out", model="dcsft_stub", tasks=[TASK], **options)
        assert said in refused.value.problem
        assert not (tmp_path / "out").exists()

    def test_a_single_response_may_be_sampled(self, tmp_path):
        given = {"model": "dcsft_stub", "model_args": "default=seven", "tasks": [TASK], "limit": 3}
        notes = stages.STAGES["evaluate"](tmp_path / "out", temperature=0.7, seed=5, **given)
        assert notes["tasks"][TASK]["samples"] == 1
        assert notes["tasks"][TASK]["generation"]["temperature"] == 0.7


@pytest.mark.slow
def test_responses_equal_those_of_sampling_at_any_batch_size(tmp_path):
    """The engine that samples pools is used: same seed, item and index, same response."""
    common = {"model": "digits", "tasks": [TASK], "limit": 12, "samples": 3, "temperature": 1.0}
    for name, batch in (("one", 1), ("four", 4)):
        stages.STAGES["evaluate"](tmp_path / name, **common, model_args=f"batch_size={batch}")
    stages.STAGES["sample"](
        tmp_path / "pool", model="digits", task=TASK, limit=12, samples=3, temperature=1.0
    )
    texts = [
        {(one["item_id"], one["sample_index"]): one["response"] for one in responses(tmp_path / name)}
        for name in ("one", "four")
    ]
    pool = records.read_table(tmp_path / "pool" / "rollouts.parquet", records.Rollout).to_pylist()
    assert texts[0] == texts[1] == {(one["item_id"], one["sample_index"]): one["response"] for one in pool}


def test_an_unscorable_response_is_not_counted_as_unanswered():
    def scored(number, score, extracted):
        return records.Score(TASK, str(number), number, score, extracted, "", "one", None, None)

    rows = [scored(0, 1.0, "one"), scored(1, 0.0, None), scored(2, None, None)]
    notes = evaluation.summary_of(None, rows, [(row.item_id, "?") for row in rows], None)
    assert (notes["n"], notes["unanswered"], notes["unscored"], notes["accuracy"]) == (2, 1, 1, 0.5)


class TestTokenLimit:
    @pytest.mark.parametrize("samples", [1, 3])
    def test_is_recorded_and_part_of_the_runs_identity(self, tmp_path, samples):
        given = {"model": "dcsft_stub", "model_args": "default=three four five", "tasks": [TASK], "limit": 4}
        stage = stages.STAGES["evaluate"]
        notes = stage(tmp_path / "out", samples=samples, max_new_tokens=2, **given)
        rows = records.read_table(tmp_path / "out" / evaluation.SCORES, records.Score).to_pylist()
        assert [(one["response"], one["finish_reason"]) for one in rows] == [("three four", "length")] * 4
        assert manifest.read(tmp_path / "out").config["max_new_tokens"] == 2
        assert notes["tasks"][TASK]["generation"]["max_new_tokens"] == 2
        assert stage.remarks(notes) == [
            f"{TASK}: 4 of 4 items have responses that ran out of tokens: an answer is read only in a closed"
            " box or tag. Generate with a higher limit (--max-new-tokens)."
        ]
        with pytest.raises(HarnessError, match="max_new_tokens: 2 -> 4"):
            stage(tmp_path / "out", samples=samples, max_new_tokens=4, **given)
        whole = stage(tmp_path / "whole", samples=samples, max_new_tokens=4, **given)
        assert "truncated" not in whole["tasks"][TASK] and stage.remarks(whole) == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_new_tokens", 5),
            ("samples", 2),
            ("temperature", 0.5),
            ("top_p", 0.5),
            ("top_k", 5),
            ("seed", 1),
            ("engine", "dcsft_vllm"),
            ("num_processes", 2),
            ("on_error", "skip"),
            ("image_root", "."),
            ("held_out", 0.5),
        ],
    )
    def test_is_refused_for_given_responses_like_every_generation_option(self, tmp_path, name, value):
        (tmp_path / "r.jsonl").write_text('{"question": "q", "gold": "a", "response": "a"}\n')
        with pytest.raises(HarnessError, match=f"--{name.replace('_', '-')} has no effect on --responses"):
            stages.STAGES["evaluate"](
                tmp_path / "out", responses=tmp_path / "r.jsonl", scorer="exact_word", **{name: value}
            )
