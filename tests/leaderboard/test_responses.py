"""Responses generated elsewhere: scored like any others, from every format, and compared on a board."""

import gzip
import json
import math
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import dcsft_harness as harness
from dcsft_harness import coordinates, records, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import SCORES, responses
from dcsft_harness.leaderboard import load, summarize
from dcsft_harness.leaderboard.logs import Choices
from dcsft_harness.leaderboard.report.plots import curves
from dcsft_harness.scoring import VERSIONS
from tests.fixtures.lmms_eval_logs import line, log_folder

BOX = {"question": "Where is the dog?", "gold": [10, 10, 50, 50], "picture": "dog.png"}
RIGHT, WRONG, NONE = "[10, 10, 50, 48]", "[60, 60, 90, 90]", "I see no dog."


def jsonl(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def of(*answers, **more):
    """Rows of as many items as there are answers."""
    return [{**BOX, "picture": f"{n}.png", "response": text, **more} for n, text in enumerate(answers)]


def scored(file, output, **options):
    return responses.evaluate(file, output, scorer="box_iou", box_space="pixel", **options)


def refusal(file, output, **options):
    with pytest.raises(HarnessError) as caught:
        responses.evaluate(file, output, **options)
    assert not output.exists() and caught.value.remedy
    return str(caught.value)


ANSWERED = {"question": "Which bird?", "response": "goose"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}),  # as `datasets` writes them
        ({"bytes": b"a", "path": "a.png"}, {"bytes": b"a", "path": "b.png"}),
        (b"a", b"b"),
        ("data:image/png;base64,aaaa", "data:image/png;base64,bbbb"),
        ("a.png", "b.png"),
    ],
)
def test_images_of_any_form_are_distinct_and_are_clusters(tmp_path, one, other):
    rows = [{**ANSWERED, "gold": "goose", "picture": picture} for picture in (one, other)]
    rows.append({**ANSWERED, "question": "Where?", "gold": "goose", "picture": one, "response": None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    notes = responses.evaluate(tmp_path / "mine.parquet", tmp_path / "scores", scorer="exact_word")
    assert "mine 100.0 % (n 2, 1 unscored)" in stages.STAGES["evaluate"].summary(notes)
    table = records.read_table(tmp_path / "scores" / "scores.parquet", records.Score).to_pylist()
    assert len({row["item_id"] for row in table}) == 3
    assert sorted(Counter(row["cluster"] for row in table).values()) == [1, 2]
    assert all(len(row["cluster"]) <= 32 for row in table)


def test_class_labels_are_read_as_names(tmp_path):
    """`datasets` writes their numbers."""
    kinds = Features({"gold": ClassLabel(names=["goose", "swan"]), "response": Value("string")})
    rows = Dataset.from_dict({"gold": [1, 0], "response": ["swan", "swan"]}, kinds)
    rows.to_parquet(tmp_path / "mine.parquet")
    assert [row["gold"] for _, row in responses.lines_of(tmp_path / "mine.parquet")] == ["swan", "goose"]


@pytest.mark.parametrize("scorer", ["exact_word", "math", "open_answer"])
def test_missing_and_whole_numbers_are_read_as_pandas_writes_them(tmp_path, scorer):
    """A column with a missing value holds floats: 3 is 3.0, which no response says, and a cell is NaN."""
    rows = [
        {"question": f"q{n}", "gold": 3.0, "response": "3", "cluster": cluster, "n_tokens": tokens}
        for n, (cluster, tokens) in enumerate([(0.0, 4.0), (0.0, math.nan), (math.nan, 2.0), (math.nan, 2.0)])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    notes = responses.evaluate(tmp_path / "mine.parquet", tmp_path / "scores", scorer=scorer)
    assert notes["tasks"]["mine"]["accuracy"] == 1.0
    table = records.read_table(tmp_path / "scores" / SCORES, records.Score).to_pylist()
    assert [row["cluster"] for row in table] == ["0", "0", None, None]
    assert [row["n_tokens"] for row in table] == [4, None, 2, 2]
    rows[1]["gold"] = math.nan
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert "row 2: no gold" in refusal(tmp_path / "b.parquet", tmp_path / "x", scorer=scorer)
    file = jsonl(tmp_path / "c.jsonl", [{**rows[0], "cluster": None, "gold": "nan"}])
    assert "the gold is 'nan', a missing value" in refusal(file, tmp_path / "x", scorer=scorer)


class TestColumnsOfOtherPrograms:
    """A column of another name would silently change the gold, or merge models."""

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"answer": "goose", "ground_truth": "swan"}, "'answer' is read as the gold, and 'ground_truth'"),
            ({"answer": "goose", "gt": "swan"}, "'answer' is read as the gold, and 'gt' beside it differs"),
            (
                {"target": "goose", "Label": "swan"},
                "'target' is read as the gold, and 'Label' beside it differs",
            ),
            (
                {"answer": "goose", "Gold": "swan"},
                "'answer' is read as the gold, and 'Gold' beside it differs",
            ),
            ({"gold": "goose", "Model": "a"}, "'Model' is not read as the model. Rename it to model"),
            ({"gold": "goose", "STEP": 3}, "'STEP' is not read as the step"),
            ({"gold": "goose", " picture": "a.png"}, "' picture' is not read as the picture"),
        ],
    )
    def test_are_refused(self, tmp_path, row, said):
        file = jsonl(tmp_path / "mine.jsonl", [{**ANSWERED, **row}])
        assert said in refusal(file, tmp_path / "scores", scorer="exact_word")

    @pytest.mark.parametrize(
        ("row", "columns"),
        [
            ({"answer": "goose", "ground_truth": "goose"}, {}),
            ({"answer": "swan", "ground_truth": "goose"}, {"gold": "ground_truth"}),
            ({"gold": "goose", "answer": "swan"}, {}),
            ({"gold": "goose", "Model": "a"}, {"model": "Model"}),
        ],
    )
    def test_are_read_if_they_agree_or_are_named(self, tmp_path, row, columns):
        file = jsonl(tmp_path / "mine.jsonl", [{**ANSWERED, **row}])
        notes = responses.evaluate(file, tmp_path / "scores", scorer="exact_word", columns=columns)
        assert notes["tasks"]["mine"]["accuracy"] == 1.0


class TestFile:
    def test_of_one_model_becomes_a_scores_folder(self, tmp_path):
        notes = scored(jsonl(tmp_path / "mine.jsonl", of(RIGHT, WRONG, NONE, None)), tmp_path / "scores")
        task = notes["tasks"]["mine"]
        found = {key: task[key] for key in ("n", "accuracy", "unanswered", "unscored", "scorers")}
        assert found == {
            "n": 3, "accuracy": pytest.approx(1 / 3), "unanswered": 1, "unscored": 1,
            "scorers": {"box_iou": VERSIONS["box_iou"]},
        }  # fmt: skip
        (row,) = load([tmp_path / "scores"]).rows
        assert row.name == "mine" and row.cells["mine"].unscored == 1

    @pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.parquet"])
    def test_formats_give_equal_items(self, tmp_path, name):
        rows = of(RIGHT, WRONG, model="tuned", step=10)
        file = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            jsonl(file, rows)
        scored(file, tmp_path / "scores")
        table = pq.read_table(tmp_path / "scores" / "scores.parquet")
        assert manifest.read(tmp_path / "scores").config["name"] == "tuned @10"
        scored(jsonl(tmp_path / "r.json", rows), tmp_path / "same")
        assert table["item_id"].equals(pq.read_table(tmp_path / "same" / "scores.parquet")["item_id"])

    def test_of_several_models_and_steps_becomes_rows(self, tmp_path):
        rows = [
            *of(RIGHT, WRONG, checkpoint="base", step=None, set="web"),
            *of(RIGHT, RIGHT, checkpoint="step 100", step=100, set="web"),
            *of(WRONG, RIGHT, checkpoint="step 90", step=90, set="web"),
        ]
        notes = scored(jsonl(tmp_path / "run.jsonl", rows), tmp_path / "scores", name="run")
        assert [row["name"] for row in notes["rows"]] == ["base", "step 100", "step 90"]
        assert [manifest.read(one).config.get("run") for one in sorted((tmp_path / "scores").glob("0*"))] == [
            None, "run", "run"
        ]  # fmt: skip
        scored(tmp_path / "run.jsonl", tmp_path / "plain")
        board = load([tmp_path / "plain"], "base")
        assert [row.name for row in board.rows] == ["base", "step 90", "step 100"]
        assert [row.cells["web"].scores.mean() for row in board.rows] == [0.5, 0.5, 1.0]
        assert harness.artifacts.Scores(tmp_path / "plain").table().num_rows == 6
        assert load([tmp_path / "plain"], choices=None).tasks[0].distribution is None

    @pytest.mark.parametrize(
        ("model", "steps", "names"),
        [
            ("Qwen2.5-VL-3B", (1, 2, 3), ["Qwen2.5-VL-3B @1", "Qwen2.5-VL-3B @2", "Qwen2.5-VL-3B @3"]),
            ("SFT @10", (10, 20), ["SFT @10", "SFT @10 @20"]),
            ("checkpoint-10", (10,), ["checkpoint-10"]),
        ],
    )
    def test_a_models_name_gets_its_step_only_where_a_board_would_parse_it(
        self, tmp_path, model, steps, names
    ):
        rows = [row for step in steps for row in of(RIGHT, WRONG, model=model, step=step, task="t")]
        scored(jsonl(tmp_path / "run.jsonl", rows), tmp_path / "scores")
        assert [row.name for row in load([tmp_path / "scores"]).rows] == names

    def test_models_with_the_same_steps_are_separate_runs(self, tmp_path):
        rows = [
            row
            for model in ("grpo", "sft")
            for step in (10, 20)
            for row in of(RIGHT, WRONG, model=model, step=step, task="t")
        ]
        scored(jsonl(tmp_path / "both.jsonl", rows), tmp_path / "scores")
        found = curves(summarize(load([tmp_path / "scores"], choices=Choices({}, {"t": "ood"}))))
        assert [(one.name, [point.step for point in one.points["ood"]]) for one in found] == [
            ("grpo", [10, 20]),
            ("sft", [10, 20]),
        ]

    def test_steps_of_a_seed_are_not_seeds(self, tmp_path):
        """Rows of one seed at several steps are combined with those of other seeds, step by step."""
        for seed in (1, 2):
            rows = [row for step in (10, 30) for row in of(RIGHT, WRONG, step=step, task="t")]
            file = jsonl(tmp_path / f"s{seed}.jsonl", rows)
            scored(file, tmp_path / f"out{seed}", name=f"GRPO (seed {seed})", group="mine")
            scored(file, tmp_path / f"plain{seed}", name=f"GRPO (seed {seed})")
        board = load([tmp_path / "out1", tmp_path / "out2"])
        assert [(row.name, row.group) for row in board.rows] == [
            (f"GRPO at step {step} (seed {seed})", f"mine at step {step}")
            for seed, step in ((1, 10), (1, 30), (2, 10), (2, 30))
        ]
        groups = [row.group for row in load([tmp_path / "plain1", tmp_path / "plain2"]).rows]
        assert groups == ["GRPO at step 10", "GRPO at step 30"] * 2

    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("Qwen2.5-VL-3B.jsonl", "Qwen2.5-VL-3B"),
            ("Qwen2.5-VL-3B.jsonl.gz", "Qwen2.5-VL-3B"),
            ("a.parquet", "a"),
        ],
    )
    def test_only_the_extension_is_removed_from_a_files_name(self, tmp_path, file, name):
        rows = of(RIGHT, WRONG)
        if file.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / file)
        else:
            jsonl(tmp_path / file, rows)
        notes = scored(tmp_path / file, tmp_path / "scores")
        assert list(notes["tasks"]) == [name]
        assert [row.name for row in load([tmp_path / "scores"]).rows] == [name]
        rows = [{**row, "step": 3} for row in rows]
        scored(jsonl(tmp_path / "x-1.5B.jsonl", rows), tmp_path / "at", name=None)
        assert manifest.read(tmp_path / "at").config["name"] == "x-1.5B @3"

    def test_a_task_named_after_the_file_is_reported(self, tmp_path, capsys):
        """Otherwise two models' files make a board without a common task, and nothing says why."""
        for task, said in ((None, True), ("web", False)):
            file = jsonl(tmp_path / "base.jsonl", of(RIGHT, **({} if task is None else {"task": task})))
            words = ["--scorer", "box_iou", "--box-space", "pixel", "--output", str(tmp_path / str(task))]
            assert main(["evaluate", "--responses", str(file), *words]) == 0
            assert ("the task base is named after the file" in capsys.readouterr().err) == said

    @pytest.mark.parametrize("tokens", [2**70, -1, True, 1.5, "9"])
    def test_an_invalid_token_count_is_unknown(self, tmp_path, tokens):
        scored(jsonl(tmp_path / "a.jsonl", of(RIGHT, n_tokens=tokens)), tmp_path / "scores")
        assert pq.read_table(tmp_path / "scores" / "scores.parquet")["n_tokens"].to_pylist() == [None]

    def test_equal_names_in_two_files_are_distinguished_by_file(self, tmp_path):
        for name in ("one", "two"):
            rows = [*of(RIGHT, WRONG, model="base", task="t"), *of(RIGHT, RIGHT, model=name, task="t")]
            scored(jsonl(tmp_path / f"{name}.jsonl", rows), tmp_path / "all" / name)
        found = [row.name for row in load([tmp_path / "all"]).rows]
        assert found == ["base (file=one.jsonl)", "base (file=two.jsonl)", "one", "two"]

    def test_an_item_asked_twice_counts_twice(self, tmp_path):
        rows = [{**BOX, "response": RIGHT}, {**BOX, "response": WRONG}]
        notes = scored(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "scores")
        assert notes["tasks"]["a"]["n"] == 2
        table = pq.read_table(tmp_path / "scores" / "scores.parquet")
        assert len(set(table["item_id"].to_pylist())) == 2 and len(set(table["cluster"].to_pylist())) == 1

    @pytest.mark.parametrize(
        "differing", [{"item": ["a", "b"]}, {"doc_id": [7, 8]}, {"choices": [["3", "5"], ["4", "6"]]}]
    )
    def test_own_ids_and_options_distinguish_items_with_the_same_question(self, tmp_path, differing):
        """Otherwise two files in another order pair other items, and all of them are one cluster."""
        ((column, values),) = differing.items()
        row = {"question": "Which?", "gold": "B", "choices": ["3", "5"]}
        rows = [{**row, column: value, "response": text} for value, text in zip(values, "AB", strict=True)]
        found = []
        for name, some in (("one", rows), ("other", rows[::-1])):
            file = jsonl(tmp_path / f"{name}.jsonl", [{**one, "task": "t"} for one in some])
            responses.evaluate(file, tmp_path / name, scorer="choice")
            table = records.read_table(tmp_path / name / "scores.parquet", records.Score).to_pylist()
            found.append({row["item_id"]: (row["score"], row["cluster"]) for row in table})
        assert found[0] == found[1] and sorted(found[0].values()) == [(0.0, None), (1.0, None)]

    @pytest.mark.parametrize(
        ("more", "score", "reason"),
        [
            ({}, 1.0, None),
            ({"finish_reason": "stop"}, 1.0, "stop"),
            ({"finish_reason": "length"}, 0.0, "length"),
            ({"finish_reason": "MAX_TOKENS"}, 0.0, "length"),  # Gemini's and Anthropic's word
            ({"truncated": True}, 0.0, "length"),
            ({"truncated": False, "finish_reason": None}, 1.0, None),
            ({"finish_reason": "max_output_tokens"}, 0.0, "length"),  # OpenAI's responses
            ({"finish_reason": "FinishReason.MAX_TOKENS"}, 0.0, "length"),
            ({"finish_reason": "model_length"}, 0.0, "length"),
            ({"truncated": 1}, 0.0, "length"),
            ({"truncated": "True"}, 0.0, "length"),
            ({"truncated": 0}, 1.0, None),
        ],
    )
    def test_a_truncated_response_has_no_open_answer(self, tmp_path, more, score, reason):
        row = {"question": "q", "choices": ["x", "y"], "gold": "B", "response": "The answer is B.", **more}
        responses.evaluate(jsonl(tmp_path / "one.jsonl", [row]), tmp_path / "out", scorer="choice")
        (got,) = records.read_table(tmp_path / "out" / SCORES, records.Score).to_pylist()
        assert (got["score"], got["finish_reason"]) == (score, reason)

    @pytest.mark.parametrize(
        "names", [(0, 0, 1, 1), (False, False, True, True), ("", "", "b", "b"), (None,) * 4]
    )
    def test_a_cluster_may_be_named_zero(self, tmp_path, names):
        rows = [{**one, "cluster": name} for one, name in zip(of(*[RIGHT] * 4), names, strict=True)]
        scored(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "s")
        table = records.read_table(tmp_path / "s" / SCORES, records.Score).to_pylist()
        own = [row["cluster"] for row in table]
        wanted = [f"{n}.png" if name in ("", None) else str(name) for n, name in enumerate(names)]
        assert own == wanted

    def test_columns_can_be_named(self, tmp_path):
        rows = [{"q": "1 + 1?", "label": "2", "text": "It is 2."}]
        file = jsonl(tmp_path / "a.jsonl", rows)
        assert "no row has a response" in refusal(file, tmp_path / "x", scorer="math")
        notes = responses.evaluate(
            file,
            tmp_path / "s",
            scorer="math",
            columns={"question": "q", "gold": "label", "response": "text"},
        )
        assert notes["tasks"]["a"]["accuracy"] == 1.0
        assert "unknown field of --column 'golt'" in refusal(
            file, tmp_path / "x", scorer="math", columns={"golt": "label"}
        )

    @pytest.mark.parametrize(
        "row",
        [
            {"question": "Which?", "choices": ["3", "5"]},
            {"question": "Which?", "options": ["3", "5"]},
            {"question": "Which?", "options": {"A": "3", "B": "5"}},
            {"question": "Which?", "choices": '["3", "5"]'},
            {"question": "Which?\nA. 3\nB. 5"},  # like a user's own rows
        ],
    )
    def test_choices_come_from_the_row_or_from_lines_of_the_question(self, tmp_path, row):
        rows = [{**row, "gold": "B", "response": said} for said in ("The answer is (B).", "5", "3")]
        file = jsonl(tmp_path / "a.jsonl", rows)
        notes = responses.evaluate(file, tmp_path / "s", scorer="choice")
        assert notes["tasks"]["a"]["accuracy"] == pytest.approx(2 / 3)

    def test_missing_choices_are_refused(self, tmp_path):
        row = {"question": "Which? A. 3 B. 5", "gold": "B", "response": "B"}
        said = refusal(jsonl(tmp_path / "a.jsonl", [row]), tmp_path / "x", scorer="choice")
        assert "row 1: no options found. Add `choices`, or write them as lines" in said


class TestRefusals:
    def test_all_bad_rows_are_listed(self, tmp_path):
        rows = of(*[RIGHT] * 30)
        for row in rows[5:]:
            row["gold"] = [1, 2]
        del rows[0]["question"]
        said = refusal(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "x", scorer="box_iou", box_space="pixel")
        assert "26 of 30 rows cannot be scored: row 1: no question; rows 6 to 30: " in said

    @pytest.mark.parametrize(
        ("change", "options", "said"),
        [
            ({}, {}, "needs one of --task and --scorer"),
            ({}, {"scorer": "box_iou"}, "needs --box-space"),
            ({}, {"scorer": "box_iou", "box_space": "norm1000"}, "no image size"),
            ({"step": 1.5}, {"scorer": "box_iou", "box_space": "pixel"}, "step is 1.5"),
            ({"response": ["a", "b"]}, {"scorer": "box_iou", "box_space": "pixel"}, "list, not text"),
            ({"truncated": "perhaps"}, {"scorer": "box_iou", "box_space": "pixel"}, "truncated is 'perhaps'"),
            (  # in another space than pixels: every response would be wrong
                {"gold": [0.1, 0.2, 0.3, 0.4], "width": 640, "height": 480},
                {"scorer": "box_iou", "box_space": "norm1000"},
                "in pixels, not in shares of the image",
            ),
            (
                {"gold": [500, 500, 900, 900], "image_size": [640, 480]},
                {"scorer": "box_iou", "box_space": "pixel"},
                "leaves its image of 640 x 480 pixels",
            ),
            ({}, {"scorer": "boxiou", "box_space": "pixel"}, "unknown scorer"),
        ],
    )
    def test_unscorable_rows(self, tmp_path, change, options, said):
        file = jsonl(tmp_path / "a.jsonl", [{**BOX, "response": RIGHT, **change}])
        assert said in refusal(file, tmp_path / "x", **options)

    def test_damaged_files(self, tmp_path):
        options = {"scorer": "box_iou", "box_space": "pixel"}
        assert "does not exist" in refusal(tmp_path / "no.jsonl", tmp_path / "x", **options)
        assert "is a folder" in refusal(tmp_path, tmp_path / "x", **options)
        for name, text in {
            "a.csv": "question,gold,response",
            "a.xlsx": "PK",
            "a.json": '[{"gold": 1}]',
        }.items():
            (tmp_path / name).write_text(text)
            said = refusal(tmp_path / name, tmp_path / "x", **options)
            assert f"{name} is not a JSONL or Parquet file" in said
        (tmp_path / "a.jsonl").write_text("{")
        assert "line 1: not JSON" in refusal(tmp_path / "a.jsonl", tmp_path / "x", **options)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-3])
        assert "truncated or damaged" in refusal(tmp_path / "a.jsonl.gz", tmp_path / "x", **options)
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        assert "a.parquet" in refusal(tmp_path / "a.parquet", tmp_path / "x", **options)
        (tmp_path / "b.jsonl").write_text("\n")
        assert "holds no rows" in refusal(tmp_path / "b.jsonl", tmp_path / "x", **options)

    def test_models_with_other_items_are_left_out_of_a_board(self, tmp_path):
        rows = [*of(RIGHT, WRONG, model="a"), *of(RIGHT, RIGHT, model="b"), *of(RIGHT, model="c")]
        scored(jsonl(tmp_path / "r.jsonl", rows), tmp_path / "scores")
        board = load([tmp_path / "scores"], strict=False)
        assert [row.name for row in board.rows] == ["a", "b"] and len(board.left_out) == 1


class TestTask:
    """Documents of a task, answered elsewhere."""

    @pytest.fixture
    def items(self):
        from dcsft_harness import lmms

        task = lmms.open_tasks(["dcsft_digits"])["dcsft_digits"]
        return [lmms.describe_item(task, number) for number in range(6)]

    def test_gives_the_scores_of_an_evaluation(self, tmp_path, items, capsys):
        def run(*arguments):
            code = main([*map(str, arguments)])
            return code, capsys.readouterr()

        assert run(
            "evaluate", "--model", "dcsft_stub", "--model-args", "default=seven", "--tasks", "dcsft_digits",
            "--limit", 6, "--output", tmp_path / "own",
        )[0] == 0  # fmt: skip
        for number, row in enumerate(
            (
                lambda item: {"item": item.item_id},
                lambda item: {"doc_id": item.doc_id},
                lambda item: {"question": item.prompt, "gold": item.answer},
            )
        ):
            if number == 2 and len({(item.prompt, item.answer) for item in items}) < 6:
                continue  # equal questions and golds: only the image distinguishes them
            rows = [{**row(item), "response": "seven"} for item in items]
            file, output = jsonl(tmp_path / f"r{number}.jsonl", rows), tmp_path / f"s{number}"
            assert run(
                "evaluate", "--responses", file, "--task", "dcsft_digits", "--limit", 6, "--output", output
            )[0] == 0  # fmt: skip
            board = load([tmp_path / "own", output], "own")
            ours, theirs = (one.cells["dcsft_digits"].scores.tolist() for one in board.rows)
            assert ours == theirs
            (remark,) = [one for one in board.remarks if "do not record" in one]
            assert (
                "the generation arguments, pixel limits and checkpoint's generation config, assumed" in remark
            )
        numbers = (0, 0, 0, 1, 2, 3)  # as many rows as items, but two items without one
        jsonl(tmp_path / "gaps.jsonl", [{"doc_id": number, "response": "seven"} for number in numbers])
        code, said = run("evaluate", "--responses", tmp_path / "gaps.jsonl", "--task", "dcsft_digits",
                         "--limit", 6, "--output", tmp_path / "x")  # fmt: skip
        assert code == 1 and "gaps has 6 responses to 4 of its task's 6 items" in said.err
        code, said = run("evaluate", "--responses", tmp_path / "r0.jsonl", "--task", "dcsft_digits",
                         "--limit", 5, "--output", tmp_path / "x")  # fmt: skip
        assert code == 1 and "r0.jsonl, row 6: dcsft_digits has no item" in said.err
        code, said = run("evaluate", "--responses", tmp_path / "r0.jsonl", "--task", "dcsft_digits",
                         "--output", tmp_path / "x")  # fmt: skip
        assert code == 1 and "has 6 responses to 6 of its task's" in said.err and "--limit N" in said.err

    @pytest.mark.parametrize(
        "logged",
        [
            lambda right: {"filtered_resps": right},
            lambda right: {"resps": right, "filtered_resps": "x"},
            lambda right: {"resps": [[right]], "filtered_resps": ["x"]},  # of older versions
            lambda right: {"response": right, "resps": "x"},
        ],
    )
    def test_samples_of_lmms_eval_are_read_as_they_were_generated(self, tmp_path, items, logged):
        rows = [{"doc_id": item.doc_id, "target": item.target, **logged(item.answer)} for item in items]
        notes = responses.evaluate(
            jsonl(tmp_path / "a.jsonl", rows), tmp_path / "s", task="dcsft_digits", limit=6
        )
        assert notes["tasks"]["dcsft_digits"]["accuracy"] == 1.0
        rows[0] |= {"resps": ["x", "y"]}
        rows[0].pop("response", None)
        said = refusal(jsonl(tmp_path / "b.jsonl", rows), tmp_path / "x", task="dcsft_digits", limit=6)
        assert "list, not text" in said

    @pytest.mark.parametrize("named", ["doc_id", "item"])
    def test_rows_in_another_order_than_the_task_are_refused(self, tmp_path, items, named):
        """Otherwise right responses are judged by other items' golds."""
        ids = [getattr(item, "doc_id" if named == "doc_id" else "item_id") for item in items]
        moved = items[1:] + items[:1]
        for given, right in ((items, True), (moved, False)):
            rows = [
                {named: key, "question": item.prompt, "gold": item.answer, "response": item.answer}
                for key, item in zip(ids, given, strict=True)
            ]
            file = jsonl(tmp_path / f"{right}.jsonl", rows)
            options = {"task": "dcsft_digits", "limit": 6}
            if right:
                notes = responses.evaluate(file, tmp_path / "s", **options)
                assert notes["tasks"]["dcsft_digits"]["accuracy"] == 1.0
            else:
                assert "has a different question or gold at doc_id 0" in refusal(
                    file, tmp_path / "x", **options
                )

    def test_boxes_are_not_read_in_the_coordinates_of_an_earlier_model(self, tmp_path, monkeypatch):
        """As in a notebook that has just evaluated one."""
        monkeypatch.delenv(coordinates.VARIABLE, raising=False)
        coordinates.declare(coordinates.BoxConvention("norm1000"))
        row = {"doc_id": 0, "response": "[1, 2, 30, 40]"}
        file, options = jsonl(tmp_path / "a.jsonl", [row]), {"task": "dcsft_digits_ground", "limit": 1}
        assert "unknown box coordinate space for this model" in refusal(file, tmp_path / "x", **options)
        assert responses.evaluate(file, tmp_path / "s", box_space="pixel", **options)["tasks"]

    def test_golds_in_another_spelling_agree(self, tmp_path, items):
        rows = [{"doc_id": item.doc_id, "gold": f"{item.answer.title()}.", "response": "?"} for item in items]
        rows[0]["gold"] = None
        file = jsonl(tmp_path / "a.jsonl", rows)
        assert responses.evaluate(file, tmp_path / "s", task="dcsft_digits", limit=6)["tasks"]
        rows[0]["gold"] = 0  # which is one
        file = jsonl(tmp_path / "b.jsonl", rows)
        assert "a different question or gold" in refusal(file, tmp_path / "x", task="dcsft_digits", limit=6)

    def test_a_partial_log_or_one_of_other_documents_is_not_labeled(self, tmp_path, items, capsys):
        def lines(golds):
            return [
                line(n, 1.0, target=item.target, prompt=item.prompt, resps=[item.target] * 2)
                for n, item in enumerate(golds)
            ]

        for name, some, run, said in (
            ("moved", lines(items[1:] + items[:1]), None, "document 0 has the gold"),
            (
                "cut",
                lines(items),
                {"n-samples": {"dcsft_digits": {"effective": 9}}},
                "it has 6 of 9 documents",
            ),
            ("twice", [*lines(items), lines(items)[2]], None, "lines 3 and 7 are both of document 2"),
        ):
            log = log_folder(tmp_path / name, {"dcsft_digits": some}, run=run)
            assert main(["label", str(log), "--output", str(tmp_path / f"{name}-labels")]) == 1
            assert said in capsys.readouterr().err

    def test_truncated_responses_are_labeled_as_they_were_scored(self, tmp_path):
        """A log does not mark them, but has their verdicts."""
        shown = {
            "resps": ["It is 4.", "It is 4."],
            "extracted": [None, "4"],
            "scorer": {"math": VERSIONS["math"]},
        }
        log = log_folder(tmp_path / "log", {"mine": [line(0, 0.5, target="4", **shown)]})
        for change, k in (({}, 1), ({"math": 1}, 2)):
            path = next(log.rglob("*_samples_*"))
            path.write_text(
                path.read_text().replace(json.dumps(shown["scorer"]), json.dumps(change or shown["scorer"]))
            )
            output = tmp_path / f"labels-{k}"
            assert main(["label", str(log), "--scorer", "math", "--output", str(output)]) == 0
            (row,) = pq.read_table(output / "labels.parquet").to_pylist()
            assert (row["k"], row["n"]) == (k, 2)

    @pytest.mark.parametrize("key", ["resps", "filtered_resps"])
    def test_logs_of_several_responses_are_labeled(self, tmp_path, items, capsys, key):
        """Each response is scored on its own: all right, some right, none. Equal columns are logged once."""
        said = [[item.target] * 4 if n < 2 else [item.target, "?", "?", "?"] if n < 4 else ["?"] * 4
                for n, item in enumerate(items)]  # fmt: skip
        lines = [
            line(n, 1.0, target=item.target, prompt=item.prompt, **{key: texts})
            for n, (item, texts) in enumerate(zip(items, said, strict=True))
        ]
        log = log_folder(tmp_path / "log", {"dcsft_digits": lines})
        kinds = {item.item_id: ("easy", "medium", "hard")[n // 2] for n, item in enumerate(items)}
        assert main(["label", str(log), "--output", str(tmp_path / "labels")]) == 0
        found = pq.read_table(tmp_path / "labels" / "labels.parquet").to_pylist()
        assert {row["item_id"]: row["difficulty"] for row in found} == kinds
        assert {row["n"] for row in found} == {4}
        given = ("--keep", "easy,medium", "--output", str(tmp_path / "set"))
        assert main(["curate", str(tmp_path / "labels"), *given]) == 0
        assert manifest.read(tmp_path / "set").notes["items"] == 4
        assert (tmp_path / "set" / "gallery.md").is_file()
        one = log_folder(tmp_path / "one", {"dcsft_digits": [line(0, 1.0, resps=[["a"]])]})
        assert main(["label", str(one), "--output", str(tmp_path / "x")]) == 1
        assert "these numbers of responses: 1 with 1." in capsys.readouterr().err
        path = next(one.rglob("*_results.json"))
        told = json.loads(path.read_text())
        told["configs"]["dcsft_digits"]["repeats"] = 4
        path.write_text(json.dumps(told))
        assert main(["label", str(one), "--output", str(tmp_path / "x")]) == 1
        assert "--reasoning_tags none" in capsys.readouterr().err

    def test_logs_of_other_tasks_are_labeled_by_a_scorer(self, tmp_path, capsys):
        """Even where documents differ only in their images, which logs do not name."""
        lines = [line(n, 1.0, target="4", resps=[["4", "It is 4.", "5"]]) for n in range(2)]
        log = log_folder(tmp_path / "log", {"mine": lines[:1], "other": lines})
        assert main(["label", str(log), "--scorer", "math", "--output", str(tmp_path / "x")]) == 1
        assert "samples of 2 tasks: mine, other" in capsys.readouterr().err
        for task, count in (("mine", 1), ("other", 2)):
            given = ("--scorer", "math", "--task", task, "--output", str(tmp_path / task))
            assert main(["label", str(log), *given]) == 0
            rows = pq.read_table(tmp_path / task / "labels.parquet").to_pylist()
            assert [(row["k"], row["n"], row["difficulty"]) for row in rows] == [(2, 3, "medium")] * count
            assert manifest.read(tmp_path / task).notes["scorers"] == {"math": VERSIONS["math"]}
        assert "next: " not in capsys.readouterr().err
        assert (
            main(["curate", str(tmp_path / "mine"), "--keep", "medium", "--output", str(tmp_path / "c")]) == 1
        )
        assert "holds responses without their items" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("scorer", "target", "said"),
        [
            ("open_answer", "['0', \"it's zero\"]", None),
            ("open_answer", "('0', 'zero')", None),
            ("exact_word", "['0', 'zero']", "the answer is list, not text or a number"),
            ("exact_word", "0", None),
        ],
    )
    def test_golds_that_are_lists_are_read_as_lmms_eval_logs_them(
        self, tmp_path, capsys, scorer, target, said
    ):
        """As a text, none would ever be given, and every item would be hard."""
        log = log_folder(tmp_path / "log", {"docs": [line(0, 1.0, target=target, resps=["0", "1"])]})
        code = main(["label", str(log), "--scorer", scorer, "--output", str(tmp_path / "labels")])
        if said is None:
            assert code == 0
            (row,) = records.read_table(tmp_path / "labels" / "labels.parquet", records.Label).to_pylist()
            assert row["difficulty"] == "medium"
        else:
            assert code == 1 and said in capsys.readouterr().err

    def test_labels_of_other_responses_of_a_log_are_not_done(self, tmp_path, capsys):
        """The results file beside the samples may stay the same."""
        log = log_folder(tmp_path / "log", {"mine": [line(0, 1.0, target="4", resps=[["4", "5"]])]})
        given = ["label", str(log), "--scorer", "math", "--output", str(tmp_path / "x")]
        assert (main(given), main(given)) == (0, 0)
        assert "already done" in capsys.readouterr().err
        moved = log.rename(tmp_path / "moved").rename(tmp_path / "log")
        assert main(given) == 0
        samples = next(moved.rglob("*_samples_*"))
        samples.write_text(samples.read_text().replace('"5"', '"4"'))
        assert main(given) == 1
        assert f"{log}: its content or its images have changed since" in capsys.readouterr().err

    @pytest.mark.parametrize("bad", [1, 2])
    def test_unscorable_documents_are_reported_once(self, tmp_path, capsys, bad):
        lines = [
            line(n, 1.0, target="4" if n >= bad else "no number", resps=[["4", "5", "6"]]) for n in range(4)
        ]
        log = log_folder(tmp_path / "log", {"mine": lines})
        assert main(["label", str(log), "--scorer", "math", "--output", str(tmp_path / "x")]) == 1
        said, places = (
            capsys.readouterr().err,
            ["row 1: ", "4 rows cannot be scored: rows 1 and 2: "][bad - 1],
        )
        assert said.count("is not mathematics") == 1 and places in said

    def test_incompatible_options_are_refused(self, tmp_path, capsys):
        file = jsonl(tmp_path / "a.jsonl", of(RIGHT))
        for given, said in (
            (["--tasks", "dcsft_digits", "--scorer", "math"], "--scorer math applies only to --data"),
            (["--tasks", "dcsft_digits", "--box-space", "pixel"], "--box-space requires --responses"),
            ([], "--tasks and --data are missing"),
            (["--responses", file, "--model", "digits", "--scorer", "math"], "cannot be combined"),
        ):
            assert main(["evaluate", *map(str, given), "--output", str(tmp_path / "x")]) == 1
            assert said in capsys.readouterr().err
