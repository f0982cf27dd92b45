"""The reasoning benchmarks from published to prepared rows, including the oddities of the former."""

import functools
import json

import pytest
import yaml

from dcsft_harness import lmms
from dcsft_harness.data.benchmarks import prepared, reasoning
from dcsft_harness.data.benchmarks import prepared as making
from dcsft_harness.errors import HarnessError
from dcsft_harness.tasks import path as task_path
from dcsft_harness.tasks.reasoning.doc import PARTS
from tests.fixtures import reasoning as fixtures


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(prepared.VARIABLE, str(fixtures.prepare(folder)))
        yield folder / "published"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty data root for this test."""
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "data"))
    return tmp_path


ROWS = {
    "dcsft_mmk12": 8,
    "dcsft_mmmu": 8,
    "dcsft_wemath": 20,
    "dcsft_mathverse": 20,
    "dcsft_mathvista": 4,
    "dcsft_mathvision": 4,
}
"""Rows that the fixtures have for each task."""


def rows(task):
    return {row["id"]: {**row, "answer": json.loads(row["answer"])} for row in prepared.load(task)}


def notes(task):
    return prepared.describe(task).notes


def test_mmk12_parses_options_and_golds_and_reports_the_rest():
    found = rows("dcsft_mmk12")
    assert found["m1"]["choices"] == ["$$10.5$$", "$$12$$", "$$8$$", "$$9$$"]
    assert found["m2"]["choices"] == ["2", "3", "4", "5"]
    assert found["p1"]["choices"] == ["I", "II", "III", "IV"]
    assert found["c2"]["choices"] == ["O2", "H2", "N2", "CO2"]
    assert (found["c1"]["choices"], found["c1"]["answer"]) == ([], "C")
    assert (found["b1"]["answer"], found["b1"]["target"]) == (["A", "C"], "A, C")
    # The options are in the question and are not listed a second time.
    assert found["m1"]["prompt"] == fixtures.mmk12_test()[0]["question"]
    assert [found[id]["parts"] for id in ("m1", "p1", "c1", "b1")] == [
        ["subject_math"],
        ["subject_physics"],
        ["subject_chemistry"],
        ["subject_biology"],
    ]
    assert found["p1"]["cluster"] == found["p2"]["cluster"] != found["m1"]["cluster"]
    told = notes("dcsft_mmk12")
    assert (told["rows"], told["images"]) == (8, 7)
    assert told["questions whose list of options could not be read, judged by letters alone"] == 1
    assert told["golds of several letters, which no response that states one option matches"] == 1


def test_pool_and_cold_start_are_a_recorded_draw_of_verifiable_golds():
    pool, cold = rows("dcsft_mmk12_pool"), rows("dcsft_mmk12_cold")
    assert (len(pool), len(cold)) == (11, 1)
    assert not set(pool) & set(cold)
    assert set(pool) | set(cold) == {f"t{number}" for number in range(12)}
    assert notes("dcsft_mmk12_pool")["draw"] == notes("dcsft_mmk12_cold")["draw"]
    assert notes("dcsft_mmk12_pool")["draw"] == {
        "by": "a hash of the id; our own draw, not the paper's",
        "seed": reasoning.MMK12_SEED,
        "of": 15,
        "drawn": 12,
        "cold start": 1,
        "passed over, as `math` cannot verify their gold or solution": 3,
    }
    both = pool | cold
    assert (both["t0"]["answer"], both["t0"]["target"]) == ("$$6$$", "\\boxed{6}")
    assert both["t5"]["target"] == "\\boxed{2\\sqrt{3}}"


def test_the_draw_does_not_depend_on_row_order(elsewhere):
    found = []
    for name, order in (("published", 1), ("turned", -1)):
        fixtures.save(elsewhere / name, "train", fixtures.MMK12, fixtures.mmk12_train()[::order])
        prepared.use(elsewhere / f"data of {name}")
        making.prepare("dcsft_mmk12_cold", elsewhere / name, any_count=True)
        found.append(set(rows("dcsft_mmk12_cold")))
    assert found[0] == found[1]


def test_solutions_added_by_a_user_become_targets_if_they_are_right(elsewhere):
    given = [{**row, "solution": f"It is {row['answer']}."} for row in fixtures.mmk12_train()[:4]]
    given[1]["solution"] = "It is 31."
    given[2]["solution"] = None
    features = fixtures.Features({**fixtures.MMK12, "solution": fixtures.TEXT})
    fixtures.save(elsewhere / "mine", "train", features, given)
    making.prepare("dcsft_mmk12_pool", elsewhere / "mine", any_count=True)
    assert notes("dcsft_mmk12_pool")["draw"]["drawn"] == 3
    making.prepare("dcsft_mmk12_cold", elsewhere / "mine", any_count=True)
    targets = {id: row["target"] for id, row in (rows("dcsft_mmk12_pool") | rows("dcsft_mmk12_cold")).items()}
    assert targets == {"t0": "It is $$6$$.", "t2": "\\boxed{\\frac{1}{2}}", "t3": "It is 2.5."}


def test_mmmu_parses_options_keeps_images_in_place_and_clusters_shared_images():
    found = rows("dcsft_mmmu")
    assert found["validation_Accounting_1"]["choices"] == ["$6", "$7", "Wells' own", "$9"]
    assert (
        found["validation_Accounting_1"]["prompt"]
        == "<image 1> What is due?\nA. $6\nB. $7\nC. Wells' own\nD. $9"
    )
    assert (
        len(found["validation_Biology_7"]["choices"]) == 9 and found["validation_Biology_7"]["answer"] == "I"
    )
    assert found["validation_Art_4"]["choices"] == ["<image 2>", "<image 3>"]
    assert found["validation_Art_4"]["numbers"] == [1, 2, 3]
    assert found["validation_Biology_7"]["images"] == []  # its image is not named
    assert found["validation_Music_3"]["parts"] == [
        "multiple_choice",
        "discipline_art_and_design",
        "subject_music",
    ]
    one, two = (found[f"validation_Accounting_{number}"]["cluster"] for number in (1, 2))
    assert one == two and len({row["cluster"] for row in found.values()}) == 7


# Question, options, columns that hold an image; what is shown, images by their column.
NAMED = [
    # The second image of Pharmacy_4 and Pharmacy_22 explains the answer.
    ("<image 1> Which drug?", "['one', 'two']", (1, 2), [1, "Which drug?\nA. one\nB. two"]),
    (
        "Is <image 2> or <image 1> a map?",
        "['so', 'no']",
        (1, 2, 3),
        ["Is", 2, "or", 1, "a map?\nA. so\nB. no"],
    ),
    ("Which?", "['<image 3>', '<image 1>']", (1, 2, 3), ["Which?\nA.", 3, "B.", 1]),
    ("<image 1> or <image 1>?", "['<image 2>', 'no']", (1, 2), [1, "or <image 1>?\nA.", 2, "B. no"]),
    ("What?", "['one', 'two']", (1,), ["What?\nA. one\nB. two"]),
]


@pytest.mark.parametrize(
    ("gold", "target"),
    [
        ("$6\\sqrt{3}$.", "\\boxed{6\\sqrt{3}}"),
        ("4$\\sqrt{3}$", "\\boxed{4\\sqrt{3}}"),
        ("$50{}^\\circ $.", "\\boxed{50{}^\\circ}"),
        ("$\\frac{4}{3}.$", "\\boxed{\\frac{4}{3}}"),
        ("9.", "\\boxed{9}"),
        ("$$36$$", "\\boxed{36}"),
        ("$\\sqrt{2}$π+4$\\sqrt{2}$", "\\boxed{\\sqrt{2}π+4\\sqrt{2}}"),
        ("(1)$$0.04$$ (2)$$440$$", "\\boxed{(1)0.04 (2)440}"),
    ],
)
def test_targets_are_boxed_if_math_accepts_the_gold_in_a_box(monkeypatch, gold, target):
    assert reasoning._target({"answer": gold}) == target
    assert reasoning._verifies({"answer": gold})
    monkeypatch.setattr(reasoning, "_is_right", lambda *given: False)
    assert reasoning._target({"answer": gold}) == (target if gold == "$$36$$" else gold)


@pytest.mark.parametrize(("question", "choices", "held", "shown"), NAMED)
def test_mmmu_shows_the_images_named_in_the_text_in_its_order(elsewhere, question, choices, held, shown):
    first, *_ = fixtures.mmmu()
    pictures = {f"image_{number}": fixtures.drawing(number) for number in held}
    row = {**first, "id": "validation_Pharmacy_4", "question": question, "options": choices, "answer": "A"}
    fixtures.save(elsewhere / "mmmu", "validation", fixtures.MMMU, [{**row, "image_1": None, **pictures}])
    making.prepare("dcsft_mmmu", elsewhere / "mmmu", any_count=True)
    (task,) = lmms.open_tasks(["dcsft_mmmu"]).values()
    (message,) = task.doc_to_messages(task.eval_docs[0])
    parts = [
        str(part["url"].width - 40) if part["type"] == "image" else part["text"]
        for part in message["content"]
    ]
    said = [part.split("\n\nReason")[0] for part in parts if not part.startswith("Reason")]
    assert said == list(map(str, shown))
    assert len(prepared.album("dcsft_mmmu")) == len(set(shown) & set(held))  # others are not kept


def test_an_old_folder_with_images_that_the_text_does_not_name_is_refused(elsewhere):
    fixtures.save(elsewhere / "mmmu", "validation", fixtures.MMMU, fixtures.mmmu()[:1])
    making.prepare("dcsft_mmmu", elsewhere / "mmmu", any_count=True)
    path = prepared.folder_of("dcsft_mmmu") / "manifest.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(
        HarnessError, match="version 1, .* version 2, which shows only the pictures that the text"
    ):
        lmms.open_tasks(["dcsft_mmmu"])


def test_mmmus_open_rows_have_golds_and_no_options():
    found = rows("dcsft_mmmu")
    assert found["validation_Chemistry_30"]["answer"] == ["$MgS$", "MgS"]
    assert found["validation_Finance_8"]["answer"] == ["360"]
    assert found["validation_Finance_8"]["choices"] == []
    assert "Other" not in found["validation_Finance_8"]["prompt"]
    assert found["validation_Finance_8"]["parts"] == ["open", "discipline_business", "subject_finance"]


def test_the_multiple_choice_rows_of_mmmu_are_a_view_of_the_same_data():
    assert prepared.folder_of("dcsft_mmmu_mc") == prepared.folder_of("dcsft_mmmu")
    assert {row["question_type"] for row in prepared.load("dcsft_mmmu_mc")} == {"multiple-choice"}
    assert len(prepared.load("dcsft_mmmu_mc")) == 5


def test_images_are_clustered_transitively(elsewhere):
    first, *_ = fixtures.mmmu()
    one, two, three = (fixtures.drawing(number) for number in (91, 92, 93))
    given = [
        {**first, "id": "validation_Math_1", "question": "a?", "image_1": one, "image_2": two},
        {**first, "id": "validation_Math_2", "question": "b?", "image_1": three, "image_2": None},
        {**first, "id": "validation_Math_3", "question": "c?", "image_1": two, "image_2": three},
        {
            **first,
            "id": "validation_Math_4",
            "question": "d?",
            "image_1": fixtures.drawing(94),
            "image_2": None,
        },
    ]
    fixtures.save(elsewhere / "mmmu", "validation", fixtures.MMMU, given)
    making.prepare("dcsft_mmmu", elsewhere / "mmmu", any_count=True)
    clusters = {id[-1]: row["cluster"] for id, row in rows("dcsft_mmmu").items()}
    assert clusters["1"] == clusters["2"] == clusters["3"] != clusters["4"]


def test_problems_that_share_an_image_are_one_cluster(elsewhere):
    """Their rows are not independent, whatever their names; a problem is still one sequence of steps."""
    given = [{**row, "image_path": fixtures.drawing(40)} for row in fixtures.wemath()[:6]]
    given += fixtures.wemath()[6:9]
    fixtures.save(elsewhere / "wemath", "testmini", fixtures.WEMATH, given)
    making.prepare("dcsft_wemath", elsewhere / "wemath", any_count=True)
    found = {(row["problem"], row["cluster"]) for row in prepared.load("dcsft_wemath")}
    assert found == {("2steps_1", "2steps_1"), ("2steps_2", "2steps_1"), ("2steps_3", "2steps_3")}
    given = fixtures.mathverse()
    given[6]["image"] = given[0]["image"]
    fixtures.save(elsewhere / "mathverse", "testmini", fixtures.MATHVERSE, given)
    making.prepare("dcsft_mathverse", elsewhere / "mathverse", any_count=True)
    assert {(row["id"], row["cluster"]) for row in prepared.load("dcsft_mathverse")} >= {
        ("1", "1"),
        ("6", "1"),
        ("7", "1"),
        ("11", "3"),
    }


def test_a_gold_beyond_the_options_in_the_question_is_reported(elsewhere):
    """The list may continue where it could not be parsed, or the gold may be wrong: only letters decide."""
    given = fixtures.mmk12_test()
    given[0]["answer"] = "E"
    fixtures.save(elsewhere / "mmk12", "test", fixtures.MMK12, given)
    said = []
    told = making.prepare("dcsft_mmk12", elsewhere / "mmk12", any_count=True, say=said.append)
    assert told["golds beyond the options that could be read, judged by letters alone"] == 1
    assert said == [
        "row m1: the gold 'E' is none of ['$$10.5$$', '$$12$$', '$$8$$', '$$9$$'], so letters alone decide"
    ]


def test_a_repeated_step_of_a_problem_is_refused(elsewhere):
    """One of the two would decide the four-dimensional scores, and another step is probably missing."""
    given = fixtures.wemath()[:3]
    fixtures.save(elsewhere / "wemath", "testmini", fixtures.WEMATH, [*given, given[1]])
    with pytest.raises(
        HarnessError, match="row 3: problem '2steps_1' has the key '2steps_2' already, in .*row 1"
    ):
        making.prepare("dcsft_wemath", elsewhere / "wemath", any_count=True)
    told = making.prepare("dcsft_wemath", elsewhere / "wemath", any_count=True, on_error="skip")
    assert (told["rows"], told["skipped"]) == (3, 1)


def test_wemath_parses_joined_options_and_keeps_problems_together():
    found = rows("dcsft_wemath")
    assert found["2steps_2/1"]["choices"][0] == "The obtuse angle ∠ABE."
    assert found["2steps_1/1"]["prompt"].endswith("A. 45°\nB. 60°\nC. 120°\nD. No correct answer")
    assert found["2steps_4/1"]["choices"][5:] == ["Cannot be determined", "No correct answer"]
    skipping = found["3steps_1/1"]
    assert skipping["choices"][2:] == ["No.", "(no option D)", "(no option E)", "No correct answer"]
    assert skipping["prompt"].endswith("\nC. No.\nF. No correct answer")
    assert (found["2steps_3/multi"]["steps"], found["2steps_3/multi"]["step"]) == (2, "multi")
    assert found["2steps_3/multi"]["parts"] == ["two_steps"]
    assert found["3steps_1/2"]["parts"] == ["one_step"]
    assert {row["cluster"] for row in found.values()} == {
        "2steps_1",
        "2steps_2",
        "2steps_3",
        "2steps_4",
        "3steps_1",
        "3steps_2",
    }
    order = [row["cluster"] for row in prepared.load("dcsft_wemath")]
    runs = [one for one, before in zip(order, [None, *order], strict=False) if one != before]
    assert len(runs) == 6


def test_mathverse_shows_no_text_where_the_image_holds_the_question():
    found = prepared.load("dcsft_mathverse")
    drawn = [row for row in found if row["version"] == "Vision Only"]
    assert {row["prompt"] for row in drawn} == {"Answer the question that is in the image."}
    assert all(row["choices"] for row in drawn)
    assert all("Choices:" in row["prompt"] or "Choice" in row["prompt"] for row in found if row not in drawn)
    assert sorted({(row["cluster"], row["answer"]) for row in found}) == [
        ("1", '"D"'),
        ("2", '"C"'),
        ("3", '"B"'),
        ("4", '["A", "C"]'),
    ]
    told = notes("dcsft_mathverse")
    assert told["golds given in brackets or as an option's text, read as its letter"] == 10
    assert told["golds of several letters, which no response that states one option matches"] == 5
    assert told["rows that are not multiple choice, which the paper does not ask"] == 1


def test_mathvista_finds_the_letter_of_a_text():
    found = rows("dcsft_mathvista")
    assert {id: row["answer"] for id, row in found.items()} == {"1": "C", "2": "B", "3": "C", "4": "B"}
    assert found["4"]["prompt"] == "Which letter is on top? (Unit: cm)\nA. C\nB. A\nC. B"
    assert "language_chinese" in found["1"]["parts"] and "skill_algebraic_reasoning" in found["1"]["parts"]
    assert notes("dcsft_mathvista")["golds whose text two options have: either is right"] == 1


def test_mathvision_keeps_references_to_parts_of_the_merged_image():
    found = rows("dcsft_mathvision")
    assert found["2"]["prompt"] == "Which bike is dearest?\nA. A\nB. B\nC. C\nD. D\nE. E"
    assert found["4"]["prompt"].startswith("The ant <image1> walks from <image2>. Where to?\nA. <image3>")
    assert (found["5"]["answer"], found["5"]["choices"][1]) == ("C", "C")
    assert found["3"]["parts"] == ["subject_metric_geometry_length", "level_5"]


@pytest.mark.parametrize("task", PARTS)
def test_parts_and_metrics_correspond(task):
    names = {config["task"]: config["metric_list"] for config in configs()}
    metrics = {entry["metric"] for entry in names[task]}
    assert {f"acc_{part}" for part in PARTS[task]} == {name for name in metrics if name.startswith("acc_")}
    assert {"acc", "answered"} <= metrics
    known = set(PARTS[task])
    assert all(set(row["parts"]) <= known and row["parts"] for row in prepared.load(task))


@functools.cache
def configs():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    files = (task_path() / "reasoning").glob("*.yaml")
    found = [yaml.load(file.read_text(encoding="utf-8"), Loader=Loader) for file in files]
    return [config for config in found if "metric_list" in config and "task" in config]


def test_a_value_without_a_metric_is_reported_and_counted(elsewhere):
    given = [{**row, "subject": "astrology"} for row in fixtures.mathvision()[:2]] + fixtures.mathvision()[2:]
    fixtures.save(elsewhere / "set", "test", fixtures.MATHVISION, given)
    said = []
    told = making.prepare("dcsft_mathvision", elsewhere / "set", any_count=True, say=said.append)
    assert said == ["subject 'astrology' has no metric of its own: its rows count only in the overall score"]
    assert told["parts without a metric"] == {"subject_astrology": 2}


def spoilt(number=0, **changes):
    """A change to one row of a set."""
    return lambda rows: rows.__setitem__(number, {**rows[number], **changes})


BAD = [
    ("dcsft_mathvision", spoilt(1, answer="G"), "row 1: the answer 'G' is not one of the options"),
    ("dcsft_mathvision", spoilt(answer=None), "row 0: the column 'answer' holds None"),
    ("dcsft_mathvision", spoilt(decoded_image=None), "row 0: there is no image"),
    ("dcsft_mathvision", spoilt(decoded_image={"bytes": b"GIF89a", "path": "x"}), "row 0: .*cannot be read"),
    ("dcsft_mathvista", spoilt(answer="145"), "row 0: the answer '145' is not one of the options"),
    ("dcsft_mathvista", spoilt(choices=None), "row 0: the answer '145°' is not one of the"),
    ("dcsft_mathverse", spoilt(answer="maybe"), "row 0: the answer 'maybe' is not one of the"),
    ("dcsft_mathverse", spoilt(4, question_for_eval=""), "row 4: the column 'question_for_eval' holds ''"),
    ("dcsft_wemath", spoilt(option="45° or 60°"), "row 0: the options '45° or 60°' are not of the form"),
    ("dcsft_wemath", spoilt(2, key="4steps_1"), "row 2: the key '4steps_1' is none of 2steps_1"),
    ("dcsft_wemath", spoilt(answer="H"), "row 0: the answer 'H' is not one of the options"),
    ("dcsft_mmmu", spoilt(options="['$6', "), "row 0: the column 'options' holds"),
    ("dcsft_mmmu", spoilt(options="__import__('os')"), "row 0: the column 'options' holds"),
    ("dcsft_mmmu", spoilt(question="<image 3> What?"), "row 0: the text names <image 3>, .*no image_3"),
    ("dcsft_mmmu", spoilt(question_type="essay"), "row 0: the question_type is 'essay'"),
    ("dcsft_mmmu", spoilt(answer="E"), "row 0: the answer 'E' is not one of the options"),
    ("dcsft_mmk12", spoilt(answer="none of these"), "row 0: the answer 'none of these' is n"),
    ("dcsft_mmk12", spoilt(3, question=" "), "row 3: the column 'question' holds ' '"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "change", "said"), BAD)
def test_bad_rows_are_named_and_skipped_only_on_request(task, change, said, elsewhere):
    split, features, make = fixtures.SETS[fixtures.TASKS[task]][0]
    given = make()
    change(given)
    fixtures.save(elsewhere / "set", split, features, given)
    with pytest.raises(HarnessError, match=said) as caught:
        making.prepare(task, elsewhere / "set", any_count=True)
    assert f"{split}-00000-of-00001.parquet" in str(caught.value)
    assert not prepared.folder_of(task).exists()
    told = making.prepare(task, elsewhere / "set", any_count=True, on_error="skip")
    assert (told["skipped"], told["rows"]) == (1, ROWS[task] - 1)
    assert said.split(":")[0] in json.loads((prepared.folder_of(task) / making.SKIPPED).read_text())["row"]


@pytest.mark.parametrize("task", fixtures.TASKS)
def test_a_missing_column_of_an_older_revision_is_named(task, elsewhere):
    name, column = (
        fixtures.TASKS[task],
        {"mathverse": "question_for_eval", "wemath": "image_path"}.get(fixtures.TASKS[task], "answer"),
    )
    for split, features, make in fixtures.SETS[name]:
        kept = fixtures.Features({key: kind for key, kind in features.items() if key != column})
        fixtures.save(elsewhere, split, kept, [{key: row[key] for key in kept} for row in make()])
    with pytest.raises(HarnessError, match=f"has no column {column}.*download it again"):
        making.prepare(task, elsewhere, any_count=True)


@pytest.mark.parametrize("task", fixtures.TASKS)
def test_an_unpublished_number_of_rows_is_refused(task, data, elsewhere):
    published = 15_616 if "_pool" in task or "_cold" in task else prepared.SOURCES[task].count
    with pytest.raises(HarnessError, match=f"{published:,}") as caught:
        making.prepare(task, data / fixtures.TASKS[task])
    assert "--any-count" in str(caught.value)
    if task == "dcsft_wemath":
        assert "2steps_1 (4 of 360)" in str(caught.value)


def test_reading_parquet_keeps_only_a_few_rows_in_memory(tmp_path):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dcsft_harness.data.benchmarks import Opened, downloads

    noise = np.random.default_rng(0)
    rows = [{"id": str(number), "image": noise.bytes(100_000)} for number in range(600)]
    (tmp_path / "data").mkdir()
    # Sixty megabytes in one row group, as in some published datasets.
    path = tmp_path / "data" / "train-0.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=600, write_batch_size=8)
    del rows
    before, most = pa.total_allocated_bytes(), 0
    for _ in downloads.rows(Opened(tmp_path, None), reasoning._MMK12_TRAIN, ("id", "image")):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 20_000_000
