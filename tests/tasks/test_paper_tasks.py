"""Every task file of the suite, through lmms-eval itself, on sources made with the real schemas."""

import io
import json
import os
import shutil
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from dcsft_harness import lmms, records, sampling
from dcsft_harness.cli import main
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms import tasks
from dcsft_harness.lmms.tasks import groups, listing, members
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.pictures import is_plain
from dcsft_harness.tasks import path
from tests.fixtures import forked, published
from tests.fixtures import reasoning as reasoning_fixtures

PAPER = [row for row in listing() if not row["task"].startswith("dcsft_digits")]
NAMES = [row["task"] for row in PAPER]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One data root with every source of the paper, prepared from a few made-up rows each."""
    folder = tmp_path_factory.mktemp("paper")
    reasoning_fixtures.prepare(folder)
    published.prepare_all(folder)
    return folder / "data"


@pytest.fixture(scope="module")
def opened(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(prepared.VARIABLE, str(root))
        yield lmms.open_tasks(NAMES)


def test_every_source_has_a_task_and_every_task_of_the_paper_a_source():
    assert set(NAMES) == {*prepared.SOURCES, *prepared.VIEWS}
    made = {*published.MAKERS, *reasoning_fixtures.TASKS}
    assert made == set(prepared.SOURCES)


def test_every_task_file_loads_with_complete_rows(opened):
    assert set(opened) == set(NAMES)
    for name, task in opened.items():
        docs = task.eval_docs_no_media
        assert len(docs) > 0, name
        assert {"prompt", "answer", "target", "cluster", "images", "source"} <= set(docs.column_names), name
        for doc in docs.select(range(min(len(docs), 8))):
            json.loads(doc["answer"])
            assert doc["target"] and doc["cluster"], name


@pytest.mark.parametrize("name", NAMES)
def test_a_tasks_metadata_describes_its_use(name):
    row = next(row for row in PAPER if row["task"] == name)
    assert row["family"] in ("classification", "grounding", "reasoning")
    assert row["role"] in ("evaluation", "pool", "cold-start")
    assert row["distribution"] in ("id", "ood")


def test_check_reports_the_rows_of_every_prepared_task(root, monkeypatch):
    """Even if the published number of rows is unknown, or the task only uses a part of them."""
    monkeypatch.setenv(prepared.VARIABLE, str(root))
    found = {one.task: one for one in tasks.check_tasks(NAMES)}
    assert {one.state for one in found.values()} == {"present"}
    assert "of 847 published rows" in found["dcsft_mmmu_mc"].said
    assert "of 13,420 published rows" in found["dcsft_ref_l4_val"].said
    assert "a part of what was published" in found["dcsft_refcoco_testa"].said


def test_opening_a_task_and_reading_its_rows_opens_no_image(root, monkeypatch):
    """Start-up must not cost more with more images: lmms-eval reads every row before the first request."""

    def opened(task, index):
        raise AssertionError(f"picture {index} of {task} was opened")

    monkeypatch.setenv(prepared.VARIABLE, str(root))
    monkeypatch.setattr(prepared, "encoded", opened)
    for task in lmms.open_tasks(NAMES).values():
        task.build_all_requests(limit=None, rank=0, world_size=1)
        assert len(task.instances) == len(task.eval_docs)


def test_items_are_identified_without_opening_images(opened, root, monkeypatch):
    """A run over 45,341 expressions would otherwise decode for minutes before the first request."""
    monkeypatch.setenv(prepared.VARIABLE, str(root))
    seen = {}
    for name, task in opened.items():
        for doc_id in range(min(len(task.eval_docs), 4)):
            item, images = lmms.describe(task, doc_id)
            # Not the digest stored in the folder, but what is shown.
            metadata = task.config.metadata or {}
            own = [
                str(task.eval_docs[doc_id][column]).encode()
                for column in [metadata.get("id_column")]
                if column
            ]
            contents = [records.pixel_digest(image) for image in images]
            assert item.item_id == records.item_id(name, item.prompt, item.answer, contents + own), name
            seen[name, doc_id] = item

    def refuse(task, index):
        raise AssertionError(f"picture {index} of {task} was opened")

    monkeypatch.setattr(prepared, "encoded", refuse)
    assert {place: lmms.describe_item(opened[place[0]], place[1]) for place in seen} == seen


def test_rollouts_keep_the_images_that_were_shown(opened):
    unchanged = set()
    for name, task in opened.items():
        item, images = lmms.describe(task, 0)
        (stored,) = lmms.stored_images(task, [item])
        kept = [Image.open(io.BytesIO(file["bytes"])) for file in stored]
        assert [records.pixels(image) for image in kept] == [records.pixels(image) for image in images], name
        doc = task.eval_docs[0]
        files = [prepared.encoded(doc["source"], index) for index in doc["images"]]
        if all(is_plain(Image.open(io.BytesIO(file))) for file in files):  # the file itself, not a larger PNG
            assert [file["bytes"] for file in stored] == files, name
            unchanged.add(name)
    assert {"dcsft_mmk12_pool", "dcsft_mathverse", "dcsft_refcoco_pool"} <= unchanged


def test_an_image_that_changed_after_preparation_is_reported(root, tmp_path, monkeypatch):
    """Its file is not hashed at the start, so the image is checked when it is shown."""
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    shutil.copytree(root / "dcsft_refcoco_pool", tmp_path / "dcsft_refcoco_pool")
    task = lmms.open_tasks(["dcsft_refcoco_pool"])["dcsft_refcoco_pool"]
    whole = prepared.encoded("dcsft_refcoco_pool", 0)
    album = tmp_path / "dcsft_refcoco_pool" / prepared.ALBUM
    other = published.encoded(99)
    assert len(other) <= len(whole)
    album.write_bytes(album.read_bytes().replace(whole, other + whole[len(other) :]))
    items = [lmms.describe_item(task, number) for number in range(len(task.eval_docs))]
    bad = [item.doc_id for item in items if 0 in task.eval_docs[item.doc_id]["images"]]
    assert 0 < len(bad) < len(items)
    told = "images.arrow: image 0, .* is not what was prepared.*Remove .*data prepare dcsft_refcoco_pool"
    with pytest.raises(HarnessError, match=told):
        lmms.describe(task, bad[0])
    stub = DcsftStub(answers=lambda question: str(lmms.describe(task, question.doc_id)[0].doc_id))
    config = sampling.SamplingConfig(samples=1)
    with pytest.raises(HarnessError, match=told):
        sampling.sample(stub, task, tmp_path / "stopped", config, {})
    config = sampling.SamplingConfig(samples=1, on_error="skip")
    notes = sampling.sample(stub, task, tmp_path / "skipped", config, {})
    assert (notes["skipped"], notes["responses"]) == (len(bad), len(items) - len(bad))


def test_a_folder_without_image_digests_is_refused(root, tmp_path, monkeypatch):
    """As earlier versions of the suite prepared them."""
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    shutil.copytree(root / "dcsft_lisa", tmp_path / "dcsft_lisa")
    path = tmp_path / "dcsft_lisa" / "manifest.json"
    told = json.loads(path.read_text())
    del told["config"]["album"]
    path.write_text(json.dumps(told))
    with pytest.raises(
        HarnessError, match="another version of dcsft.*Remove the folder and run .*dcsft_lisa"
    ):
        lmms.open_tasks(["dcsft_lisa"])


def test_images_are_shown_as_published(opened):
    for name, task in opened.items():
        _, images = lmms.describe(task, 0)
        assert len(images) == len(task.eval_docs[0]["images"]), name
        assert all(image.mode == "RGB" for image in images), name


def test_pools_score_all_responses_of_an_item(opened):
    pools = [row["task"] for row in PAPER if row["role"] == "pool"]
    assert len(pools) == 3
    for name in pools:
        assert opened[name].config.repeats == 8, name
        for given in (4, 8, 16):  # as `lmms-eval -n` sets it
            request = SimpleNamespace(resps=["yes"] * given, filtered_resps={})
            opened[name]._filters[0].apply([request], [None])
            assert len(request.filtered_resps["all"]) == given, name


def test_every_task_lets_the_model_end_its_answer(opened):
    """lmms-eval stops at a blank line if `until` is left out; evaluations are greedy."""
    for name, task in opened.items():
        arguments = task.config.generation_kwargs
        family = next(row["family"] for row in PAPER if row["task"] == name)
        assert arguments["until"] == [] and not arguments["do_sample"], name
        if family == "reasoning":
            role = next(row["role"] for row in PAPER if row["task"] == name)
            assert arguments["max_new_tokens"] == 4096, name
            # The paper's penalty is for evaluation only: responses that label a pool are drawn without it.
            assert (arguments.get("repetition_penalty") == 1.1) == (role == "evaluation"), name
        else:
            assert arguments["max_new_tokens"] == 128 and "repetition_penalty" not in arguments, name


@pytest.mark.slow
def test_a_task_that_includes_a_suites_task_is_recorded_with_its_data(root, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_INCLUDED", ContextVar("_INCLUDED", default=()))
    given = f"include: {path() / 'reasoning' / 'mmmu.yaml'}\ntask: my_mmmu\n"
    (tmp_path / "mine.yaml").write_text(given)
    (tmp_path / "group.yaml").write_text("group: mine\ntask: [my_mmmu]\n")
    ways = [["--tasks", str(tmp_path / "mine.yaml")]]
    ways += [["--tasks", "mine", "--include-path", str(tmp_path)]]
    words = ["evaluate", "--model", "dcsft_stub", "--model-args", "default=A", "--limit", "2", "--output"]
    for number, more in enumerate(ways):
        monkeypatch.setenv(prepared.VARIABLE, str(root))
        assert main([*words, str(tmp_path / f"{number}"), *more]) == 0
        told = json.loads((tmp_path / f"{number}" / "manifest.json").read_text())
        assert told["notes"]["tasks"]["my_mmmu"]["data"] == prepared.described("dcsft_mmmu") is not None
        assert f"{prepared.ROLE}dcsft_mmmu" in json.dumps(told["inputs"])
        monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "none"))
        with pytest.raises(HarnessError, match="the data of dcsft_mmmu is not prepared"):
            lmms.open_tasks([more[1]])


def test_groups_have_the_papers_tasks():
    known = groups()
    distributions = {row["task"]: row["distribution"] for row in PAPER}
    assert set(known["dcsft_paper"]) == {*known["dcsft_id"], *known["dcsft_ood"]}
    assert {distributions[name] for name in known["dcsft_id"]} == {"id"}
    assert {distributions[name] for name in known["dcsft_ood"]} == {"ood"}
    families = {
        name for kind in ("classification", "grounding", "reasoning") for name in known[f"dcsft_{kind}"]
    }
    assert families == set(known["dcsft_paper"])
    assert members("dcsft_paper") == known["dcsft_paper"]
    assert members("dcsft_imagenet_[ar]") == ["dcsft_imagenet_a", "dcsft_imagenet_r"]


@pytest.mark.slow
def test_lmms_eval_runs_every_task_with_a_limit(root, opened, tmp_path):
    """The command that users type, over every task of the paper, with the scripted model."""
    command = [
        *("-m", "lmms_eval", "--include_path", str(path()), "--model", "dcsft_stub"),
        *("--model_args", "default=[1 2 3 4]", "--tasks", ",".join(NAMES), "--limit", "8"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    environment = {**os.environ, prepared.VARIABLE: str(root), "HF_HUB_OFFLINE": "1"}
    done = forked.run(command, env=environment, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (path_of_results,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(path_of_results.read_text())["results"]
    assert set(results) == set(NAMES), done.stderr[-3000:]
    several = {"maj_at_k", "pass_at_k"}  # of several responses per document
    wanted = {name: set(task.aggregation()) - several for name, task in opened.items()}
    for name, metrics in results.items():
        # `extracted` is logged with the samples; lmms-eval lists it here as an empty list.
        numbers = {key: value for key, value in metrics.items() if key.split(",")[0] in wanted[name]}
        assert {key.split(",")[0] for key in numbers} == wanted[name]
        assert all(isinstance(value, int | float) for value in numbers.values()), (name, numbers)


@pytest.mark.slow
def test_a_group_runs_through_our_own_command(root, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(prepared.VARIABLE, str(root))
        stub = ["--model", "dcsft_stub", "--model-args", "default=[1 2 3 4]"]
        output = ["--limit", "4", "--output", str(tmp_path / "out")]
        assert main(["evaluate", "--tasks", "dcsft_paper", *stub, *output]) == 0
    notes = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]["tasks"]
    assert set(notes) == set(members("dcsft_paper"))
    for name, summary in notes.items():
        assert (
            summary["data"]["published"] is None or summary["data"]["rows"] < summary["data"]["published"]
        ), name


def test_every_task_of_a_benchmark_names_its_own_rows():
    for folder in ("classification", "grounding", "reasoning"):
        for file in (path() / folder).glob("*.yaml"):
            named = {}
            for line in file.read_text().splitlines():
                if line.startswith(("task: dcsft", "dataset_name: ")):
                    named |= yaml.safe_load(line)
            assert named.get("task") == named.get("dataset_name"), file
            assert "task" not in named or prepared.has_source(named["task"]), file
