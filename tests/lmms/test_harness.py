"""The interface to lmms-eval: names, tasks that do not load, and runs of the scripted model on real tasks."""

import errno
import inspect
import json
import re
import types
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import typing_extensions
from lmms_eval.api import model as upstream
from lmms_eval.api import task as upstream_task
from lmms_eval.api.task import ConfigurableMessagesTask
from PIL import Image, ImageFile

from dcsft_harness import evaluation, lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.curation import labels
from dcsft_harness.data.digits import suite
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms import protocols
from dcsft_harness.models.base import ObservedModel
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.training import grpo

POOL = "dcsft_digits_pool"
LIMIT, SAMPLES = 6, 4


def answers(folder):
    """A script for the first items of the pool: always right, half right, never right, in turn."""
    docs = lmms.open_tasks([POOL])[POOL].eval_docs_no_media
    lines = []
    for number in range(LIMIT):
        right = docs[number]["target"]
        said = ([right.title() + "."], [right, "heron"], ["heron", ""])[number % 3]
        lines.append(json.dumps({"task": POOL, "doc_id": number, "responses": said}))
    path = folder / "answers.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the rollouts and labels of the scripted model."""
    folder = tmp_path_factory.mktemp("place")
    seen = []
    stages.STAGES["sample"](
        folder / "rollouts",
        lambda done, total: seen.append((done, total)),
        model="dcsft_stub",
        model_args=f"answers={answers(folder)},batch_size=2",
        task=POOL,
        samples=SAMPLES,
        limit=LIMIT,
        seed=11,
    )
    stages.STAGES["label"](folder / "labels", rollouts=folder / "rollouts")
    # All G responses of an item are one unit of progress.
    assert seen[-1] == (LIMIT, LIMIT)
    return folder


class TestNames:
    @pytest.mark.slow
    def test_an_unknown_task_has_near_matches_among_ours_and_lmms_evals(self):
        with pytest.raises(
            HarnessError, match="unknown task 'dcsft_digits_pol'. Did you mean dcsft_digits_pool"
        ):
            lmms.open_tasks(["dcsft_digits_pol"])
        with pytest.raises(HarnessError, match=r"unknown task 'mmmu_vall'. Did you mean .*mmmu_val\b"):
            lmms.open_tasks([POOL, "mmmu_vall"])

    def test_an_unknown_model_has_near_matches(self):
        with pytest.raises(HarnessError, match="unknown model 'dcsft_hg'. Did you mean dcsft_hf"):
            lmms.open_model("dcsft_hg", "")

    def test_invalid_model_arguments_are_refused(self):
        with pytest.raises(HarnessError, match="'nonsense' is not key=value"):
            lmms.open_model("dcsft_stub", "default=x,nonsense")

    def test_our_tasks_do_not_need_lmms_evals_index(self):
        index = lmms.task_index([POOL])
        assert POOL in index and "mmmu_val" not in index

    def test_several_tasks_keep_the_requested_order(self):
        assert list(lmms.open_tasks(["dcsft_digits_r", "dcsft_digits"])) == [
            "dcsft_digits_r",
            "dcsft_digits",
        ]

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (["dcsft_digits_[ra]_x*"], ["dcsft_digits_a_x12", "dcsft_digits_r_x3"]),
            (["dcsft_digits_r", "dcsft_digits_?"], ["dcsft_digits_r", "dcsft_digits_a"]),
        ],
    )
    def test_patterns_select_the_tasks_they_match(self, names, found):
        assert list(lmms.open_tasks(names)) == found

    @pytest.mark.parametrize("name", ["dcsft_nothing*", "dcsft_digits_?_?"])
    def test_a_pattern_without_matches_is_an_unknown_task(self, name):
        with pytest.raises(HarnessError, match="unknown task"):
            lmms.open_tasks([name])

    def test_a_folder_is_not_a_task(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine").mkdir()
        with pytest.raises(HarnessError, match="'mine' is a folder. Pass it to --include-path"):
            lmms.open_tasks(["mine"])

    @pytest.mark.parametrize("name", ["mine", "all", "mi*"])
    def test_a_task_that_two_files_of_a_folder_define_is_refused(self, tmp_path, name):
        """lmms-eval takes the file that it happens to read last."""
        for file in ("a.yaml", "sub/b.yaml"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("task: mine\n")
        (tmp_path / "all.yaml").write_text("group: all\ntask: [mine]\n")
        (tmp_path / "other.yaml").write_text("task: other\n")
        (tmp_path / ".ipynb_checkpoints").mkdir()
        (tmp_path / ".ipynb_checkpoints" / "other-checkpoint.yaml").write_text("task: other\n")
        with lmms.tasks.including():
            lmms.include(tmp_path)
            with pytest.raises(HarnessError, match="task 'mine' is defined in .*a.yaml and .*b.yaml. Rename"):
                lmms.open_tasks([name])
            lmms.tasks.refuse_unknown(["other"])


@pytest.fixture
def at_once(monkeypatch):
    """lmms-eval tries five times to read a dataset, and waits two seconds after each."""
    monkeypatch.setattr(ConfigurableMessagesTask.download.retry, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("at_once")
class TestTasksThatDoNotLoad:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("dataset_path: nowhere_at_all", "does not load"),
            ("process_docs: !function dcsft_harness.nosuch.load", "does not load"),
        ],
    )
    def test_are_named_with_the_reason(self, tmp_path, monkeypatch, more, said):
        text = f"task: broken_task\ntest_split: test\noutput_type: generate_until\n{more}\n"
        (tmp_path / "broken_task.yaml").write_text(text)
        monkeypatch.setattr(lmms.tasks, "task_path", lambda: tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(HarnessError, match=f"'broken_task' {said}"):
            lmms.open_tasks(["broken_task"])


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_a_full_disk_under_the_cache_is_not_mistaken_for_missing_data(monkeypatch):
    def full(name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(suite, "load", full)
    with pytest.raises(HarnessError, match="No space left on device. Free some space, or set DCSFT_CACHE"):
        lmms.open_tasks([POOL])


@pytest.mark.parametrize("opened", [lambda: lmms.open_tasks([POOL]), lambda: lmms.make_task({"task": "own"})])
def test_an_unwritable_home_folder_is_reported_at_once(tmp_path, monkeypatch, opened):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "home"))
    upstream_task._resolve_hf_datasets_cache_dir.cache_clear()
    with pytest.raises(
        HarnessError, match="cache cannot be created: .*file/home.*Set HF_HOME, and DCSFT_CACHE"
    ):
        opened()


def alone(function, **known):
    """A function as if its file held nothing else than what is `known`."""
    return types.FunctionType(
        function.__code__, known | {"print": print, "dict": dict}, closure=function.__closure__
    )


def own_task(folder, images, higher_is_better=True, **more):
    """An external task: its images are opened by path, its metric is called `hit`."""
    rows = [{"path": str(path), "text": "?", "answer": "x"} for path in images]
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(str(folder / "data"))
    return lmms.make_task(
        {
            "task": "theirs",
            "dataset_path": str(folder / "data"),
            "dataset_kwargs": {"load_from_disk": True},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [Image.open(doc["path"])],
            "doc_to_text": "text",
            "doc_to_target": "answer",
            "process_results": lambda doc, results: {"hit": float(results[0] == doc["answer"])},
            "metric_list": [{"metric": "hit", "aggregation": "mean", "higher_is_better": higher_is_better}],
        }
        | more
    )


def test_few_shot_examples_depend_on_the_seed_and_the_question(tmp_path):
    """Independent of earlier requests: from another rank, before an interruption, or to describe items."""
    rows = [{"text": f"{n}?", "answer": f"number {n}"} for n in range(60)]
    splits = {"train": datasets.Dataset.from_list(rows[:50]), "test": datasets.Dataset.from_list(rows[50:])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    shots = {"num_fewshot": 2, "fewshot_config": {"sampler": "default"}, "fewshot_split": "train"}

    def asked(order, seed=None):
        task = lmms.make_task(
            {
                "task": "shots",
                "dataset_path": str(tmp_path / "data"),
                "dataset_kwargs": {"load_from_disk": True},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": "text",
                "doc_to_target": "answer",
                "process_results": lambda doc, results: {"acc": 1.0},
                **shots,
            }
        )
        if seed is not None:
            task.set_fewshot_seed(seed)
        return {doc_id: lmms.describe_item(task, doc_id).prompt for doc_id in order}

    found = asked([0, 1, 2])
    assert asked([2, 0, 0, 1], 1234) == found != asked([0, 1, 2], 1)
    assert len({text.rpartition("\n\n")[0] for text in found.values()}) == 3
    assert all(text.count("number") == 2 for text in found.values())


class TestImages:
    def test_an_unreadable_one_is_named_by_task_and_document(self, tmp_path):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
        task = own_task(tmp_path, [tmp_path / "0.png", tmp_path / "1.png"])
        assert lmms.describe(task, 0)[0].doc_id == 0
        with pytest.raises(HarnessError, match="task theirs, doc_id 1: an image cannot be read"):
            lmms.describe(task, 1)

    @pytest.mark.parametrize("key", ["url", "image"])
    def test_may_be_opened_images_paths_or_bytes(self, tmp_path, key):
        """As the engines read them; a path or bytes used to end in a traceback."""
        path = tmp_path / "0.jpg"
        Image.effect_noise((28, 28), 90).convert("RGB").save(path)
        kinds = {
            "image": (Image.open(path), path.read_bytes()),
            "path": (path, path.read_bytes()),
            "text": (str(path), path.read_bytes()),
            "address": (f"file://{path}", path.read_bytes()),
            "bytes": (path.read_bytes(), None),  # a PNG
            "web": ("https://there.is/no.jpg", "web address; download it first"),
            "missing": (str(tmp_path / "no.jpg"), "no.jpg does not exist"),
            "none": (None, "a NoneType is neither an image nor a path"),
        }
        found = set()
        for image, kept in kinds.values():
            task = own_task(tmp_path, [path])
            part = {"type": "image", key: image}
            said = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
            task.config.doc_to_messages = lambda doc, said=said: said
            if isinstance(kept, str):
                with pytest.raises(HarnessError, match=f"task theirs, doc_id 0: an image .*{kept}"):
                    lmms.describe(task, 0)
                continue
            item, (shown,) = lmms.describe(task, 0)
            (stored,) = lmms.stored_images(task, [item])
            assert stored[0]["bytes"] == kept or kept is None and stored[0]["bytes"][:4] == b"\x89PNG"
            found.add((item.item_id, records.pixels(shown)))
        assert len(found) == 1

    @pytest.mark.parametrize(
        ("turns", "prompt"),
        [
            ([["image", "Q?", " Answer:"]], "Q? Answer:"),
            ([["Q?", " Answer:"]], "Q? Answer:"),
            ([["Q?", "image", " Answer:"]], f"Q?{records.MARK} Answer:"),
            ([["image", "Q", "?"], ["A"]], "Q?\nA"),
            ([["image"], ["Q", "?"]], "Q?"),
        ],
    )
    def test_texts_of_a_turn_are_joined_as_the_model_reads_them(self, tmp_path, turns, prompt):
        """Training and an item's id once had a line break in between."""
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task, image = own_task(tmp_path, [tmp_path / "0.png"]), Image.new("RGB", (28, 28))
        said = [
            {"role": "user", "content": [
                {"type": "image", "url": image} if one == "image" else {"type": "text", "text": one}
                for one in turn
            ]}
            for turn in turns
        ]  # fmt: skip
        task.config.doc_to_messages = lambda doc: said
        item = lmms.describe_item(task, 0)
        assert item.prompt == prompt
        if len(turns) > 1:
            content = [one["content"].replace(records.MARK, "") for one in json.loads(item.turns)]
            assert "\n".join(filter(None, content)) == prompt

    def test_one_with_damaged_pixels_is_named_too(self, tmp_path, monkeypatch):
        # By default lmms-eval makes Pillow accept truncated images in the whole process.
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
        Image.effect_noise((64, 64), 90).save(tmp_path / "1.png")
        whole = (tmp_path / "1.png").read_bytes()
        (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png", tmp_path / "1.png"])
        with pytest.raises(HarnessError, match="task theirs, doc_id 1: an image cannot be read"):
            lmms.describe(task, 1)


class TestScores:
    def test_the_only_number_is_the_score_under_any_name(self, tmp_path):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"])
        assert lmms.score_of(task, {"hit": 1.0, "text": "words"}) == (1.0, None, None)
        assert lmms.score_of(task, {"hit": True}) == (1.0, None, None)
        # Not a number means "could not be scored", which is not 0.
        assert lmms.score_of(task, {"hit": float("nan")}) == (None, None, None)
        assert lmms.score_of(task, {"acc": 0.0, "hit": 1.0}) == (0.0, None, None)
        with pytest.raises(HarnessError, match="task theirs: none of its metrics .*'f1', 'hit'.* score"):
            lmms.score_of(task, {"hit": 1.0, "f1": 0.5})

    @pytest.mark.parametrize("bad", [20.0, 100, 1.5, -0.1, float("inf")])
    def test_a_score_that_is_not_a_fraction_labels_nothing(self, tmp_path, bad):
        """On a scale from 0 to 100, every partial credit above 0.5 would count as a right response."""
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"])
        for metrics in ({"hit": bad}, {"hit": {"score": bad}}, {"acc": bad, "hit": 1.0}):
            with pytest.raises(HarnessError, match=r"task theirs: a response has the (hit|acc) .*fractions"):
                lmms.score_of(task, metrics)
        found = {"scores": [1.0, bad], "extracted": ["x", "y"], "votes": ["x", "y"]}
        with pytest.raises(HarnessError, match="fractions from 0 to 1"):
            lmms.verdicts_of(task, {}, ["x", "y"], found)

    def test_an_error_rate_is_not_a_score(self, tmp_path):
        """Its worst responses would be labeled easy."""
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"], higher_is_better=False)
        with pytest.raises(HarnessError, match="lower values of its metric hit are better"):
            lmms.score_of(task, {"hit": 0.25})
        with pytest.raises(HarnessError, match="lower values of its metric hit are better"):
            lmms.run(DcsftStub(default="x"), {"theirs": task})  # before anything is generated
        assert lmms.score_of(task, {"hit": 0.25, "acc": 1.0})[0] == 1.0

    @pytest.mark.parametrize(
        ("more", "metrics", "score"),
        [
            ({}, {"length": 4}, "a response has the length 4"),
            ({}, {"hit": {"ok": True}, "length": 4}, "a response has the length 4"),
            ({}, {"acc": -1.0, "length": 4}, "a response has the acc -1"),
            ({}, {"hit": {"score": 1.0}, "length": 4}, 1.0),
            ({"score_key": "ok"}, {"hit": {"ok": True}, "length": 4}, 1.0),
            ({"score_key": "hit"}, {"hit": 0.5, "length": 4}, 0.5),
            ({"score_key": "hit"}, {"hit": 0.5, "acc": 80.0}, 0.5),
            ({"score_key": "hit"}, {"hit": {"score": 0.5}, "f1": {"score": 1.0}}, 0.5),
            ({"score_key": "hit"}, {"hit": {"hit": 0.5, "score": 1.0}, "f1": 1.0}, 0.5),
            ({"score_key": "miss"}, {"hit": 0.5, "acc": 1.0}, 1.0),
            ({}, {"hit": np.float32(0.5)}, 0.5),
            ({}, {"hit": np.bool_(True), "said": np.str_("x")}, 1.0),
            ({}, {"hit": {"score": np.array(0.5)}, "length": np.int64(4)}, 0.5),
            ({}, {"hit": np.float64("nan"), "acc": torch.tensor(1)}, 1.0),
            ({}, {"length": np.int64(4)}, "a response has the length 4"),
            ({"score_key": "score"}, {"score": 0.5, "acc": 1.0}, 1.0),
        ],
    )
    def test_a_number_that_is_not_a_fraction_is_not_a_score(self, tmp_path, more, metrics, score):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"], **more)
        if isinstance(score, float):
            assert lmms.score_of(task, metrics)[0] == score
        else:
            with pytest.raises(HarnessError, match=score):
                lmms.score_of(task, metrics)

    @pytest.mark.parametrize(
        "known",
        [
            {"requests": types.ModuleType("requests")},
            {"ask": types.FunctionType((lambda: 1).__code__, {"__name__": "openai.resources"})},
            {
                "get_server": types.FunctionType(
                    (lambda: 1).__code__, {"__name__": "lmms_eval.llm_judge.server"}
                )
            },
            {"API_KEY": "x"},
            {"F": types.ModuleType("torch.nn.functional")},
        ],
    )
    def test_no_judge_is_asked_for_the_names_of_metrics(self, tmp_path, known):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        judged = alone(lambda doc, results: {"hit": 1.0, "length": 4}, **known)
        lmms.refuse_unfit([own_task(tmp_path, [tmp_path / "0.png"], process_results=judged)])

    @pytest.mark.parametrize(
        ("more", "metrics", "refused"),
        [
            ({}, {"hit": 1.0, "length": 4}, True),
            ({"score_key": "miss"}, {"hit": np.float32(1.0), "length": 4}, True),
            ({}, {"hit": {"ok": True}, "other": {"ok": True}}, False),  # real responses may hold the key
            ({"score_key": "hit"}, {"hit": 1.0, "length": 4}, False),
            ({}, {"hit": 1.0, "text": "words"}, False),
            ({}, {"hit": {"score": 1.0}, "length": 4}, False),
            ({}, {"acc": 1.0, "length": 4}, False),
            ({}, {}, False),
            ({}, None, False),  # it raises
        ],
    )
    def test_an_unknown_score_is_refused_before_weights_are_loaded(self, tmp_path, more, metrics, refused):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")

        def scored(doc, results):
            print("scored")
            return dict(metrics.items())

        task = own_task(tmp_path, [tmp_path / "0.png"], process_results=alone(scored), **more)
        if refused:
            with pytest.raises(HarnessError, match=r"task theirs: none of its metrics .*'hit'.*score_key"):
                lmms.refuse_unfit([task])
        else:
            lmms.refuse_unfit([task])


class TestSampling:
    def test_keeps_every_response_of_every_item(self, place):
        rows = records.read_table(place / "rollouts" / sampling.ROLLOUTS, records.Rollout).to_pylist()
        assert len(rows) == LIMIT * SAMPLES
        by_item = {}
        for row in rows:
            by_item.setdefault(row["item_id"], []).append(row)
        assert len(by_item) == LIMIT
        for some in by_item.values():
            assert [row["sample_index"] for row in some] == list(range(SAMPLES))
            assert {(row["seed"], row["task"]) for row in some} == {(11, POOL)}
            assert len({(row["prompt"], row["answer"]) for row in some}) == 1

    def test_verdicts_are_right_and_no_answer_is_not_a_wrong_one(self, place):
        rows = records.read_table(place / "rollouts" / sampling.ROLLOUTS, records.Rollout).to_pylist()
        for row in rows:
            said = row["response"].strip(". ").lower()
            assert row["score"] == float(said == row["answer"])
            assert row["extracted"] == (said or None)
            assert (row["n_tokens"], row["finish_reason"]) == (len(row["response"].split()) + 1, "stop")
        notes = manifest.read(place / "rollouts").notes
        # Two of six items give no answer every second time, and are never right.
        assert (notes["items"], notes["responses"], notes["unanswered"], notes["unscored"]) == (6, 24, 4, 0)
        assert notes["accuracy"] == pytest.approx((2 * 4 + 2 * 2) / 24)
        assert notes["generated_tokens"] == sum(row["n_tokens"] for row in rows)

    def test_items_are_stored_with_their_images(self, place):
        kept = datasets.load_from_disk(str(place / "rollouts" / sampling.ITEMS))
        task = lmms.open_tasks([POOL])[POOL]
        for number, row in enumerate(kept):
            some, images = lmms.describe(task, number)
            assert {name: row[name] for name in vars(some)} == vars(some)
            assert [image.tobytes() for image in row["images"]] == [image.tobytes() for image in images]

    def test_labels_and_a_curated_set_can_be_made(self, place, tmp_path):
        found = records.read_table(place / "labels" / labels.LABELS, records.Label).to_pylist()
        assert sorted((row["k"], row["n"], row["difficulty"]) for row in found) == [
            (0, 4, "hard"),
            (0, 4, "hard"),
            (2, 4, "medium"),
            (2, 4, "medium"),
            (4, 4, "easy"),
            (4, 4, "easy"),
        ]
        notes = stages.STAGES["curate"](tmp_path / "set", labels=place / "labels", keep=["easy", "medium"])
        assert (notes["items"], notes["hard"]) == (4, 0)

    def test_two_equal_documents_are_refused_before_anything_is_generated(self, tmp_path):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"] * 2)
        asked = []
        model = DcsftStub(answers=lambda question: asked.append(question))
        with pytest.raises(HarnessError, match="task theirs: documents 0 and 1 are the same item"):
            sampling.sample(model, task, tmp_path / "out", sampling.SamplingConfig(samples=2), {})
        assert (asked, (tmp_path / "out").exists()) == ([], False)

    def test_a_script_without_an_answer_leaves_no_folder(self, tmp_path):
        with pytest.raises(HarnessError, match=re.escape(f"no response to task '{POOL}', doc_id 0")):
            stages.STAGES["sample"](tmp_path / "out", model="dcsft_stub", task=POOL, limit=2, samples=2)
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_option_is_refused(self, tmp_path):
        with pytest.raises(HarnessError, match="unknown option 'sample'. Did you mean samples"):
            stages.STAGES["sample"](tmp_path / "out", task=POOL, sample=2)


class TestEvaluation:
    def test_duplicate_items_are_scored_separately(self, tmp_path):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"] * 3)
        said = iter(["x", "y", "x"])
        model = DcsftStub(answers=lambda question: next(said))
        notes = evaluation.evaluate(model, {"theirs": task}, tmp_path / "out", "stub", {})
        assert notes["tasks"]["theirs"]["accuracy"] == pytest.approx(2 / 3)
        rows = records.read_table(tmp_path / "out" / evaluation.SCORES, records.Score)
        assert len(set(rows["item_id"].to_pylist())) == 3

    def test_tasks_are_scored_item_by_item(self, tmp_path):
        notes = stages.STAGES["evaluate"](
            tmp_path / "out",
            model="dcsft_stub",
            model_args="default=seven",
            tasks=["dcsft_digits", "dcsft_digits_ground"],
            limit=20,
        )["tasks"]
        rows = records.read_table(tmp_path / "out" / evaluation.SCORES, records.Score).to_pylist()
        named = [row for row in rows if row["task"] == "dcsft_digits"]
        boxes = [row for row in rows if row["task"] == "dcsft_digits_ground"]
        assert (len(named), len(boxes)) == (20, 20)
        assert all(row["score"] == float(row["answer"] == "seven") for row in named)
        assert {(row["score"], row["extracted"]) for row in boxes} == {(0.0, None)}
        # The mean is lmms-eval's own, and a response without a box does not count as a wrong box.
        theirs = json.loads((tmp_path / "out" / "lmms_eval.json").read_text())["results"]
        assert notes["dcsft_digits"]["accuracy"] == theirs["dcsft_digits"]["acc,none"]
        assert (notes["dcsft_digits_ground"]["unanswered"], notes["dcsft_digits"]["unanswered"]) == (20, 0)
        assert [notes[name]["limit"] for name in notes] == [20, 20]
        assert all(row["cluster"] is not None and row["n_tokens"] == 2 for row in rows)

    @pytest.mark.parametrize(
        ("returned", "process", "said"),
        [
            ([], None, "Model.generate_until returned 1 responses to 2 requests"),
            ([None], None, "Model.generate_until returned None as a response"),
            ([""], None, None),
            (ZeroDivisionError("oops"), None, r"test_harness.py, line \d+, raises ZeroDivisionError: oops"),
            (OSError(errno.ENOSPC, "No space left"), None, "No space left"),
            (["x"], lambda doc, results: doc["gone"], r"test_harness.py, line \d+, raises KeyError: 'gone'"),
        ],
    )
    def test_errors_in_external_code_are_reported_in_one_sentence(self, tmp_path, returned, process, said):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        more = {"process_results": process} if process else {}
        task = own_task(tmp_path, [tmp_path / "0.png"] * 2, **more)

        class Model(upstream.lmms):
            is_simple = False

            def generate_until(self, requests):
                if isinstance(returned, Exception):
                    raise returned
                return (["x", *returned] * 2)[: len(requests) - 1 + len(returned)]

            def loglikelihood(self, requests):
                raise NotImplementedError

            generate_until_multi_round = loglikelihood

        if said is None:
            assert lmms.run(Model(), {"theirs": task})[0]["theirs"][1].responses == [""]
        elif isinstance(returned, OSError):
            with pytest.raises(OSError, match=said):  # which the command line reports as such
                lmms.run(Model(), {"theirs": task})
        else:
            with pytest.raises(HarnessError, match=said):
                lmms.run(Model(), {"theirs": task})

    @pytest.mark.parametrize(
        ("given", "family"),
        [
            ([{"version": 0.0}], None),  # as 261 of lmms-eval's own files write it
            ([{"version": 0.0}, {"family": "counting"}], "counting"),
            ({"family": "counting"}, "counting"),
            (["0.0"], None),
            ("0.0", None),
            (None, None),
        ],
    )
    def test_tasks_may_write_their_metadata_in_any_form(self, tmp_path, given, family):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"], metadata=given)
        notes = evaluation.evaluate(DcsftStub(default="x"), {"theirs": task}, tmp_path / "out", "stub", {})
        assert (notes["tasks"]["theirs"]["family"], notes["tasks"]["theirs"]["accuracy"]) == (family, 1.0)
        assert grpo.Judge.reads_boxes.fget(SimpleNamespace(task=task)) is False

    def test_a_failure_leaves_no_folder(self, tmp_path):
        with pytest.raises(HarnessError, match="no response"):
            stages.STAGES["evaluate"](tmp_path / "out", model="dcsft_stub", tasks=["dcsft_digits"], limit=1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("limit", [0, -3])
    def test_a_limit_that_leaves_nothing_is_refused(self, tmp_path, limit):
        with pytest.raises(HarnessError, match=f"--limit {limit} is out of range"):
            stages.STAGES["evaluate"](tmp_path / "out", tasks=["dcsft_digits"], limit=limit)


@pytest.mark.parametrize(
    ("protocol", "theirs", "own"),
    [
        (protocols.Task, ConfigurableMessagesTask, {"_filters"}),
        (protocols.Model, upstream.lmms, set()),
        (
            protocols.ObservedModel,
            ObservedModel,
            {"item_ids", "kept", "on_batch", "on_progress", "settled", "refused"},
        ),
    ],
)
def test_a_protocol_declares_what_its_class_has(protocol, theirs, own):
    """Type checks only see the protocols: lmms-eval is not typed."""
    names = typing_extensions.get_protocol_members(protocol)
    assert {name for name in names if not hasattr(theirs, name)} == own  # set by `__init__`
    for name in names - own:
        ours, real = getattr(protocol, name, None), getattr(theirs, name)
        if inspect.isfunction(ours):
            asked = inspect.signature(ours).parameters
            inspect.signature(real).bind(**dict.fromkeys(asked))


def test_an_opened_task_satisfies_the_protocol():
    (task,) = lmms.open_tasks(["dcsft_digits_pool"]).values()
    names = typing_extensions.get_protocol_members(protocols.Task)
    assert not [name for name in names if not hasattr(task, name)]
    assert not [name for name in protocols.TaskConfig.__annotations__ if not hasattr(task.config, name)]


@pytest.mark.slow
@pytest.mark.parametrize(("others", "columns"), [(True, True), (False, False)])
def test_only_external_scoring_receives_documents_with_images(others, columns):
    task = lmms.open_tasks([POOL])[POOL]
    process, seen = task.config.process_results, []

    def scored(doc, results):
        seen.append("image" in doc)
        return process(doc, results)

    scored.__module__ = "their.tasks" if others else process.__module__
    task.config.process_results = scored
    lmms.run(DcsftStub(default="one"), {POOL: task}, 3)
    assert seen == [columns] * 3


def test_items_of_an_embedded_task_are_described_once_per_configuration(monkeypatch):
    described = []

    def counted(task, doc_id, describe=lmms.describe_item):
        described.append(doc_id)
        return describe(task, doc_id)

    monkeypatch.setattr(lmms, "describe_item", counted)
    monkeypatch.setattr(evaluation, "_DESCRIBED", {})
    first = evaluation._items(lmms.open_tasks([POOL])[POOL], 3)
    assert evaluation._items(lmms.open_tasks([POOL])[POOL], 3) == first and len(described) == 3
    changed = lmms.open_tasks([POOL])[POOL]
    changed.config.doc_to_text = "Another prompt"
    assert [one.item_id for one in evaluation._items(changed, 3)] != [one.item_id for one in first]
