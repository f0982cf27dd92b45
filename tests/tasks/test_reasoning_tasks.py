"""The reasoning tasks end to end with a scripted model; every metric was also computed by hand."""

import math

import pytest

from dcsft_harness import lmms
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import responses
from dcsft_harness.lmms.tasks import listing
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import reasoning as fixtures

TASKS = [row["task"] for row in listing() if row["task"] in {*fixtures.TASKS, "dcsft_mmmu_mc"}]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(prepared.VARIABLE, str(fixtures.prepare(tmp_path_factory.mktemp("reasoning"))))
        yield


@pytest.fixture(scope="module")
def opened(data):
    return lmms.open_tasks(TASKS)


def metrics(opened, name, answers, limit=None):
    """lmms-eval's own results for a task with these answers, by row id."""
    ids = prepared.load(name)["id"][:]
    model = DcsftStub(answers=lambda question: answers[ids[question.doc_id]])
    _, results = lmms.run(model, {name: opened[name]}, limit)
    found = results["results"][name]
    return {key.partition(",")[0]: value for key, value in found.items() if key.endswith((",none", ",all"))}


def counted(found):
    """The metrics of parts with at least one row."""
    return {name: value for name, value in found.items() if name.startswith("acc_") and _counts(name, value)}


def _counts(name, value):
    return "_stderr" not in name and not math.isnan(value)


MMK12 = {
    "m1": "AB is half of it, so \\boxed{B}",
    "m2": "C",
    "p1": "(A)",
    "p2": "",
    "c1": "\\boxed{C}",
    "c2": "The answer is B.",
    "b1": "\\boxed{A}",
    "b2": "C. leaf",
}


def test_mmk12_metrics(opened):
    found = metrics(opened, "dcsft_mmk12", MMK12)
    assert found["acc"] == pytest.approx(5 / 8)
    assert found["answered"] == pytest.approx(7 / 8)
    assert found["ceiling"] == pytest.approx(7 / 8)
    assert counted(found) == {
        "acc_subject_math": 1.0,
        "acc_subject_physics": 0.0,
        "acc_subject_chemistry": 1.0,
        "acc_subject_biology": 0.5,
    }


MMMU = {
    "validation_Accounting_1": "\\boxed{B}",
    "validation_Accounting_2": "The answer is B.",
    "validation_Music_3": "C",
    "validation_Art_4": "(B)",
    "validation_Biology_7": "The answer is I.",
    "validation_Chemistry_30": "The answer is MgS.",
    "validation_Finance_8": "The interest is \\boxed{\\$360.00}.",
    "validation_Physics_21": "\\boxed{B}",
}


def test_mmmu_metrics(opened):
    found = metrics(opened, "dcsft_mmmu", MMMU)
    assert found["acc"] == pytest.approx(6 / 8)
    assert found["answered"] == 1.0
    assert counted(found) == pytest.approx(
        {
            "acc_multiple_choice": 4 / 5,
            "acc_open": 2 / 3,
            "acc_discipline_art_and_design": 1.0,
            "acc_discipline_business": 2 / 3,
            "acc_discipline_science": 2 / 3,
            "acc_subject_accounting": 0.5,
            "acc_subject_art": 1.0,
            "acc_subject_biology": 1.0,
            "acc_subject_chemistry": 1.0,
            "acc_subject_finance": 1.0,
            "acc_subject_music": 1.0,
            "acc_subject_physics": 0.0,
        }
    )


def test_mmmu_metrics_of_multiple_choice_rows(opened):
    found = metrics(opened, "dcsft_mmmu_mc", MMMU)
    assert (found["acc"], found["answered"]) == (pytest.approx(4 / 5), 1.0)
    assert "acc_open" not in found
    assert counted(found)["acc_discipline_business"] == 0.5


def test_mathverse_metrics(opened):
    answers = {}
    for row in prepared.load("dcsft_mathverse"):
        only, lite = row["version"] == "Vision Only", row["version"] == "Text Lite"
        answers[row["id"]] = {
            "1": "A" if only else "\\boxed{D}",
            "2": "C",
            "3": "" if lite else "B",
            "4": "A",
        }[row["cluster"]]
    found = metrics(opened, "dcsft_mathverse", answers)
    assert found["acc"] == pytest.approx(13 / 20)
    assert found["answered"] == pytest.approx(19 / 20)
    assert found["ceiling"] == pytest.approx(15 / 20)
    assert counted(found) == pytest.approx(
        {
            "acc_version_text_dominant": 0.75,
            "acc_version_text_lite": 0.5,
            "acc_version_vision_intensive": 0.75,
            "acc_version_vision_dominant": 0.75,
            "acc_version_vision_only": 0.5,
            "acc_subject_plane_geometry": 0.8,
            "acc_subject_functions": 0.5,
        }
    )
    # Four problems of five rows each, with 4, 5, 4 and 0 right, about a mean of 13/20.
    sums = [right - 5 * 13 / 20 for right in (4, 5, 4, 0)]
    variance = 13 / 20 * 7 / 20
    within = sum(total**2 for total in sums) - 20 * variance
    expected = math.sqrt(variance / 19 + within / 20**2)
    assert found["acc_stderr_clustered"] == pytest.approx(expected)
    assert found["acc_stderr_clustered"] > 1.7 * found["acc_stderr_clt"]


def test_mathvista_metrics(opened):
    answers = {"1": "所以答案是145°", "2": "yes", "3": "D", "4": "\\boxed{B}"}
    found = metrics(opened, "dcsft_mathvista", answers)
    assert (found["acc"], found["answered"]) == (pytest.approx(3 / 4), 1.0)
    assert counted(found) == pytest.approx(
        {
            "acc_task_geometry_problem_solving": 1.0,
            "acc_task_figure_question_answering": 0.5,
            "acc_skill_geometry_reasoning": 1.0,
            "acc_skill_algebraic_reasoning": 1.0,
            "acc_skill_statistical_reasoning": 0.5,
            "acc_category_math_targeted_vqa": 0.75,
            "acc_language_chinese": 1.0,
            "acc_language_english": 2 / 3,
            "acc_grade_high_school": 0.75,
            "acc_context_geometry_diagram": 0.75,
            "acc_source_geoqa": 0.75,
        }
    )


def test_mathvision_metrics(opened):
    answers = {"2": "The answer is A.", "3": "It is 5 wide.", "4": "\\boxed{A}", "5": "C"}
    found = metrics(opened, "dcsft_mathvision", answers)
    assert (found["acc"], found["answered"]) == (pytest.approx(3 / 4), 1.0)
    assert counted(found) == {
        "acc_subject_arithmetic": 1.0,
        "acc_subject_metric_geometry_length": 1.0,
        "acc_subject_graph_theory": 0.0,
        "acc_level_2": 0.5,
        "acc_level_3": 1.0,
        "acc_level_5": 1.0,
    }


WEMATH = {
    "2steps_1": "mastered: 1 2 multi",
    "2steps_2": "not generalised: 1 2",
    "2steps_3": "rote by the strict rule, mastered by the loose one: 1 multi",
    "3steps_1": "rote by both: multi",
    "2steps_4": "not known: 2",
    "3steps_2": "not known:",
}
"""Problem -> the steps that are answered right. 3steps_2 is not answered at all."""


def wemath_answers():
    answers = {}
    for row in prepared.load("dcsft_wemath"):
        right = row["step"] in WEMATH[row["cluster"]].partition(":")[2].split()
        gold = row["answer"].strip('"')
        wrong = "A" if gold != "A" else "B"
        answers[row["id"]] = "" if row["cluster"] == "3steps_2" else f"\\boxed{{{gold if right else wrong}}}"
    return answers


def test_wemath_metrics(opened):
    found = metrics(opened, "dcsft_wemath", wemath_answers())
    assert (found["acc"], found["answered"]) == pytest.approx((9 / 20, 16 / 20))
    assert counted(found) == pytest.approx(
        {"acc_one_step": 6 / 14, "acc_two_steps": 2 / 4, "acc_three_steps": 1 / 2}
    )
    # Six problems: IK 2, IG 1; strict CM 1, RM 2; loose CM 2, RM 1.
    assert {name: found[f"wemath_{name}"] for name in ("ik", "ig")} == pytest.approx(
        {"ik": 2 / 6, "ig": 1 / 6}
    )
    assert found["wemath_strict"] == pytest.approx((6 - 0.5 - 2 - 2) / 6)
    assert found["wemath_loose"] == pytest.approx((6 - 0.5 - 1 - 2) / 6)
    assert (found["wemath_cm_strict"], found["wemath_cm_loose"]) == pytest.approx((1 / 6, 2 / 6))
    assert (found["wemath_rm_strict"], found["wemath_rm_loose"]) == pytest.approx((2 / 3, 1 / 3))


def test_a_limit_keeps_only_complete_problems_of_wemath(opened):
    found = metrics(opened, "dcsft_wemath", wemath_answers(), limit=8)
    assert 0 <= found["wemath_ik"] + found["wemath_ig"] + found["wemath_cm_strict"] <= 1


@pytest.mark.parametrize("limit", [1, 3])
def test_every_metric_is_a_number_at_any_limit(opened, limit):
    tasks = {name: task for name, task in opened.items() if not name.endswith(("_pool", "_cold"))}
    _, results = lmms.run(DcsftStub(default="no idea"), tasks, limit)
    for name, task in tasks.items():
        metrics = set(task.aggregation()) - {"maj_at_k", "pass_at_k"}  # of several responses per document
        found = {metric: results["results"][name][f"{metric},none"] for metric in metrics}
        assert all(isinstance(value, float) for value in found.values()), found
        assert found["acc"] == found["answered"] == 0.0


def test_a_pool_scores_all_responses_of_an_item_by_math(opened):
    ids = prepared.load("dcsft_mmk12_pool")["id"][:]
    gold = {row["id"]: row["answer"].strip("$") for row in fixtures.mmk12_train()}

    def answer(question):
        right = f"so \\boxed{{{gold[ids[question.doc_id]]}}}"
        return [right, "\\boxed{77777}", "no idea", right][question.sample_index % 4]

    answered, results = lmms.run(DcsftStub(answers=answer), {"dcsft_mmk12_pool": opened["dcsft_mmk12_pool"]})
    found = results["results"]["dcsft_mmk12_pool"]
    assert (found["acc,all"], found["answered,all"]) == (0.5, 0.75)
    assert all(len(one.responses) == 8 for one in answered["dcsft_mmk12_pool"])


def test_settings_equal_the_papers_protocol(opened):
    for name, task in opened.items():
        arguments = task.config.generation_kwargs
        assert (arguments["max_new_tokens"], arguments["do_sample"], arguments["until"]) == (4096, False, [])
        training = name.endswith(("_pool", "_cold"))
        assert arguments.get("repetition_penalty") == (None if training else 1.1)
        assert (task.config.score_key, task.config.cluster_key) == ("score", "cluster")


def documents(opened, name):
    task = opened[name]
    return {doc["id"]: (task, doc) for doc in task.eval_docs}


def texts(content):
    return [part["text"] if part["type"] == "text" else part["url"].size[0] - 40 for part in content]


def test_mmmu_images_are_shown_where_the_text_names_them(opened):
    found = documents(opened, "dcsft_mmmu")
    asked = "Reason step by step, then put the letter of the right option in \\boxed{}."

    def turn(id):
        task, doc = found[id]
        (message,) = task.doc_to_messages(doc)
        return texts(message["content"])

    assert turn("validation_Accounting_1") == [
        21,
        f"What is due?\nA. $6\nB. $7\nC. Wells' own\nD. $9\n\n{asked}",
    ]
    assert turn("validation_Music_3") == [
        "Compare",
        22,
        "with",
        23,
        f". Which is <image 1>?\nA. a fugue\nB. a canon\nC. neither\n\n{asked}",
    ]
    assert turn("validation_Art_4") == ["Who drew", 24, "?\nA.", 25, "B.", 26, asked]
    assert turn("validation_Biology_7")[0].startswith("Which label?")  # its image is not named
    assert turn("validation_Finance_8") == [
        "Interest in",
        29,
        "?\n\nReason step by step, then put the final answer in \\boxed{}.",
    ]


def test_simple_models_get_the_same_text_and_images(opened):
    task, doc = documents(opened, "dcsft_mmmu")["validation_Art_4"]
    assert [image.size[0] - 40 for image in task.doc_to_visual(doc)] == [24, 25, 26]
    assert task.doc_to_text(doc).startswith("Who drew <image 1>?\nA. <image 2>\nB. <image 3>\n\nReason")


def test_images_are_rgb_with_white_for_transparent(opened):
    found = documents(opened, "dcsft_mmk12")
    for id in ("m1", "m2", "p1"):
        task, doc = found[id]
        (image,) = task.doc_to_visual(doc)
        assert (image.mode, image.getpixel((0, 0)), image.getpixel((4, 4))) == (
            "RGB",
            (255, 255, 255),
            (0, 0, 0),
        )


def test_users_can_give_their_own_instruction(opened):
    task, doc = documents(opened, "dcsft_mathvision")["2"]
    before = dict(task.lmms_eval_specific_kwargs)
    try:
        task.lmms_eval_specific_kwargs.update(pre_prompt="Look. ", post_prompt=" Letter only.")
        assert (
            task.doc_to_text(doc) == "Look. Which bike is dearest?\nA. A\nB. B\nC. C\nD. D\nE. E Letter only."
        )
    finally:
        task.lmms_eval_specific_kwargs.update(before)


@pytest.mark.parametrize("name", [task for task in TASKS if task != "dcsft_mmmu_mc"])
def test_no_two_rows_are_the_same_item(opened, name):
    items = [lmms.describe(opened[name], number)[0] for number in range(len(opened[name].eval_docs))]
    assert len({item.item_id for item in items}) == len(items)


def test_two_versions_of_a_problem_that_look_alike_are_two_items(opened):
    task = opened["dcsft_mathverse"]
    alike = [
        lmms.describe(task, number)[0]
        for number, doc in enumerate(task.eval_docs)
        if doc["cluster"] == "1" and doc["version"] in ("Text Dominant", "Text Lite")
    ]
    assert alike[0].prompt == alike[1].prompt and alike[0].item_id != alike[1].item_id


def test_the_group_averages_the_six_benchmarks_and_not_their_parts(opened):
    from lmms_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=DcsftStub(default="A"),
        tasks=["dcsft_reasoning"],
        task_manager=lmms.tasks.manager(()),
        bootstrap_iters=0,
        log_samples=False,
    )
    six = [name for name in results["configs"]]
    assert sorted(six) == sorted(set(TASKS) - {"dcsft_mmmu_mc", "dcsft_mmk12_pool", "dcsft_mmk12_cold"})
    found = results["results"]["dcsft_reasoning"]
    assert found["acc,none"] == pytest.approx(sum(results["results"][name]["acc,none"] for name in six) / 6)
    assert {key for key in found if "stderr" not in key} - {"alias", "samples", " "} == {
        "acc,none",
        "answered,none",
    }


@pytest.mark.parametrize("task", ["dcsft_mathvista", "dcsft_mmk12", "dcsft_mmmu", "dcsft_mathvision"])
def test_published_golds_agree_with_their_rows(opened, task, tmp_path):
    """An option's text for its letter, several golds, other spellings; but not another row's gold."""
    ids = prepared.load(task)["id"][:]
    ((_, _, published), *_) = fixtures.SETS[fixtures.TASKS[task]]
    golds = {str(row.get("id", row.get("pid"))): row["answer"] for row in published()}
    judge = responses.judging_of(tmp_path, task, None, None, None).score
    for number, own in enumerate(ids):
        judge(responses.Given(1, {"item": number, "gold": golds[own], "response": "?"}, {}))
    for number, options in enumerate(prepared.load(task)["choices"][:] if task == "dcsft_mmmu" else ()):
        other = next(letter for letter in "AB" if letter != golds[ids[number]])
        if options:
            with pytest.raises(HarnessError, match="a different question or gold"):
                judge(responses.Given(1, {"item": number, "gold": other, "response": "?"}, {}))
