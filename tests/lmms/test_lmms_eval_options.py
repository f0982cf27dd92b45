"""Options of lmms-eval's own command with our models and tasks: --use_cache, --seed and --baseline."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from lmms_eval.api.instance import GenerationResult, Instance
from PIL import Image
from safetensors.torch import load_file, save_file

from dcsft_harness import lmms, pictures
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.data.benchmarks.prepared import prepare
from dcsft_harness.lmms.documents import data_fingerprint
from dcsft_harness.models import base
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.scoring import Response
from tests.fixtures import forked, published
from tests.fixtures.tiny_checkpoints import checkpoint
from tests.models.test_models_adapter import adapters  # noqa: F401 - a fixture
from tests.models.test_models_evaluator import tasks  # noqa: F401 - a fixture

TASK = "dcsft_digits"
LIMIT = 4


def run(output, *words):
    """Runs lmms-eval's command line in this process; returns each task's logged samples."""
    shutil.rmtree(output, ignore_errors=True)
    given = ["--output_path", str(output), "--log_samples", *map(str, words)]
    assert lmms.command_line(given) == 0
    return samples(output)


def samples(output):
    found = {}
    for path in Path(output).rglob("*_samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.stem.split("_samples_")[1]] = sorted(lines, key=lambda line: line["doc_id"])
    return found


def responses(found):
    texts = [line["filtered_resps"] for line in found]
    return [text[0] if isinstance(text[0], list) else text for text in texts]


def script(path, *texts):
    rows = [{"task": TASK, "doc_id": n, "responses": [text]} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened_cache(folder):
    from lmms_eval.caching.response_cache import ResponseCache

    base.key_by_content()
    return ResponseCache.create(str(folder), model="dcsft_stub", model_args="default=x")


def stub(output, answers, *more):
    words = ("--model", "dcsft_stub", "--model_args", f"answers={answers}", "--tasks", TASK)
    return run(output, *words, "--limit", LIMIT, *more)[TASK]


@pytest.mark.slow
def test_reasoning_before_the_word_is_wrong_as_in_evaluate(tmp_path):
    """`exact_word` scores the whole response; lmms-eval's default would strip the reasoning first."""
    golds = [doc["answer"] for doc in lmms.open_tasks([TASK])[TASK].eval_docs_no_media.select(range(LIMIT))]
    words = [json.loads(gold) for gold in golds]
    said = [*words[:2], *(f"<think>It is round.</think>\n{word}" for word in words[2:])]
    found = stub(tmp_path / "out", script(tmp_path / "answers.jsonl", *said))
    assert [line["acc"]["score"] for line in found] == [1.0, 1.0, 0.0, 0.0]
    task = lmms.open_tasks([TASK])[TASK]
    evaluated, _ = lmms.run(DcsftStub(answers=lambda asked: said[asked.doc_id]), {TASK: task}, LIMIT)
    assert [one.metrics["acc"]["score"] for one in evaluated[TASK]] == [1.0, 1.0, 0.0, 0.0]


def copied(original, place):
    """A copy of the tasks' folder whose data a test may edit."""
    folder = place / "tasks"
    shutil.copytree(original, folder)
    yaml = folder / "tiny_greedy.yaml"
    yaml.write_text(yaml.read_text().replace(str(original), str(folder)))
    return folder


def cached(place):
    """Runs the copied task with a cache; returns how many responses the cache holds after it."""
    answers = place / "answers.jsonl"
    rows = [{"task": "tiny_greedy", "doc_id": n, "responses": ["goose"]} for n in range(5)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--include_path", place / "tasks", "--model", "dcsft_stub", "--model_args", f"answers={answers}"]
    run(place / "out", *words, "--tasks", "tiny_greedy", "--use_cache", place / "cache")
    with contextlib.closing(sqlite3.connect(place / "cache/cache.db")) as cache:
        return cache.execute("select count(*) from responses").fetchone()[0]


class TestCache:
    def test_an_edited_script_is_asked_again(self, tmp_path):
        answers, cache = tmp_path / "answers.jsonl", ["--use_cache", tmp_path / "cache"]
        script(answers, "one", "two", "three", "four")
        first = responses(stub(tmp_path / "out", answers, *cache))
        assert responses(stub(tmp_path / "out", answers, *cache)) == first
        script(answers, "five", "six", "seven", "eight")
        assert responses(stub(tmp_path / "out", answers, *cache)) == ["five", "six", "seven", "eight"]

    def test_a_retrained_adapter_in_the_same_folder_is_asked_again(self, tmp_path, adapters, tasks):  # noqa: F811
        adapter = tmp_path / "adapter"
        shutil.copytree(adapters["qwen2_5_vl"], adapter)
        arguments = f"pretrained={checkpoint('qwen2_5_vl')},adapter={adapter},device=cpu"
        words = ["--include_path", tasks, "--model", "dcsft_hf", "--model_args", arguments]
        words += ["--tasks", "tiny_greedy", "--use_cache", tmp_path / "cache"]

        first = responses(run(tmp_path / "out", *words)["tiny_greedy"])
        assert responses(run(tmp_path / "out", *words)["tiny_greedy"]) == first
        weights = adapter / "adapter_model.safetensors"
        save_file({name: -3 * tensor for name, tensor in load_file(weights).items()}, weights)
        again = responses(run(tmp_path / "out", *words)["tiny_greedy"])
        fresh = responses(run(tmp_path / "out", *words[:-2])["tiny_greedy"])
        assert again == fresh != first

    @pytest.mark.parametrize(
        "change", ["config.json", "model.safetensors", "chat_template.jinja", "generation_config.json"]
    )
    def test_every_file_that_affects_a_response_is_part_of_the_key(self, tmp_path, change):
        folder = tmp_path / "checkpoint"
        shutil.copytree(checkpoint("qwen2_5_vl"), folder)
        arguments = f"pretrained={folder},batch_size=1"
        before = base.fingerprint(arguments)
        (folder / "README.md").write_text("a card")
        assert base.fingerprint(arguments) == before
        path = folder / change
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + b" ")
        assert base.fingerprint(arguments) != before

    def test_another_image_format_makes_another_key(self, monkeypatch):
        before = base.fingerprint("pretrained=owner/name")
        assert base.fingerprint("pretrained=owner/name") == before
        monkeypatch.setattr(pictures, "FORMAT", pictures.FORMAT + 1)
        assert base.fingerprint("pretrained=owner/name") != before

    def test_a_servers_answers_are_never_reused(self):
        arguments = "pretrained=owner/name,base_url=http://localhost:1/v1"
        assert base.fingerprint(arguments) != base.fingerprint(arguments)

    @pytest.mark.parametrize("stored", ["database", "log"])
    def test_a_truncated_response_is_still_marked_when_reused(self, tmp_path, monkeypatch, stored):
        monkeypatch.setenv("LMMS_CACHE_RUN_ID", "mine")
        said = [Response("so B is", truncated=True), Response("B")]
        texts = iter(said)
        model = SimpleNamespace(generate_until=lambda some: [GenerationResult(next(texts)) for _ in some])
        metadata = [{"task": TASK, "doc_id": doc_id, "repeats": 1} for doc_id in range(2)]
        asked = [Instance("generate_until", ("text", {"max_new_tokens": 3}), 0, one) for one in metadata]
        cache = opened_cache(tmp_path)
        cache.execute(model, "generate_until", asked)
        cache.close()
        if stored == "log":
            next(tmp_path.rglob("*.db")).unlink()
        cache = opened_cache(tmp_path)
        again = cache.execute(model, "generate_until", asked)
        cache.close()
        assert again == said and model.alone
        assert [getattr(text, "truncated", False) for text in again] == [True, False]

    def test_an_edited_image_of_your_own_task_is_asked_again(self, tmp_path, tasks):  # noqa: F811
        folder = copied(tasks, tmp_path)
        assert [cached(tmp_path), cached(tmp_path)] == [5, 5]
        edited = datasets.load_from_disk(folder / "data")["test"].to_list()
        edited[0]["image"] = edited[1]["image"]
        shutil.rmtree(folder / "data")
        features = datasets.load_from_disk(tasks / "data")["test"].features
        rows = datasets.Dataset.from_list(edited, features=features)
        datasets.DatasetDict({"test": rows}).save_to_disk(folder / "data")
        assert cached(tmp_path) == 10

    def test_another_picture_at_the_same_path_is_asked_again(self, tmp_path, tasks):  # noqa: F811
        """A row may name its pictures alone; the other rows' responses are used again."""
        folder = copied(tasks, tmp_path)
        rows = datasets.load_from_disk(folder / "data")["test"].to_list()
        for number, row in enumerate(rows):
            Image.new("RGB", (28, 28), (number, 0, 0)).save(tmp_path / f"{number}.png")
            row["image"] = f"{number}.png"
        shutil.rmtree(folder / "data")
        datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "data")
        functions = folder / "functions.py"
        opened = f'__import__("PIL.Image").Image.open("{tmp_path}/" + doc["image"]).convert("RGB")'
        functions.write_text(functions.read_text().replace('doc["image"]', opened))
        assert [cached(tmp_path), cached(tmp_path)] == [5, 5]
        Image.new("RGB", (28, 28), (0, 0, 255)).save(tmp_path / "0.png")
        assert cached(tmp_path) == 6

    def test_rows_that_were_prepared_again_are_asked_again(self, tmp_path, monkeypatch):
        monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "prepared"))
        prepare("dcsft_imagenet_r", published.imagenet_r(tmp_path / "published"), any_count=True)
        fresh = lambda: lmms.open_tasks(["dcsft_imagenet_r"])["dcsft_imagenet_r"]  # noqa: E731
        before = data_fingerprint(fresh())
        assert data_fingerprint(fresh()) == before
        file = prepared.folder_of("dcsft_imagenet_r") / "manifest.json"
        file.write_text(file.read_text().replace('"images.arrow": "', '"images.arrow": "0'))
        assert data_fingerprint(fresh()) != before

    @pytest.mark.parametrize("task", ["dcsft_digits", "dcsft_digits_pool"])
    def test_rereading_the_same_rows_keeps_the_key(self, task):
        assert len({data_fingerprint(lmms.open_tasks([task])[task]) for _ in range(2)}) == 1

    def test_external_models_keep_their_keys(self, tmp_path):
        from lmms_eval.caching.response_cache import ResponseCache

        base.key_by_content()
        base.key_by_content()
        cache = ResponseCache.create(str(tmp_path), model="qwen2_5_vl", model_args="pretrained=x")
        assert cache.model_fingerprint == 'qwen2_5_vl|{"pretrained":"x"}'
        cache.close()


class TestSeed:
    def drawn(self, output, tasks, *more, arguments=""):  # noqa: F811
        given = f"pretrained={checkpoint('qwen2_5_vl')},device=cpu{arguments}"
        words = ["--include_path", tasks, "--model", "dcsft_hf", "--model_args", given]
        return responses(run(output, *words, "--tasks", "tiny_sampled", *more)["tiny_sampled"])

    def test_lmms_evals_seed_applies_unless_the_model_has_its_own(self, tmp_path, tasks):  # noqa: F811
        one, two = (self.drawn(tmp_path / "out", tasks, "--seed", n) for n in (1, 2))
        assert one != two
        assert self.drawn(tmp_path / "out", tasks, "--seed", 1) == one
        own = [self.drawn(tmp_path / "out", tasks, "--seed", n, arguments=",seed=1") for n in (1, 2)]
        assert own == [one, one]


class TestBaseline:
    @pytest.mark.slow
    def test_the_real_command_compares_with_a_log(self, tmp_path):
        from dcsft_harness.tasks import path as task_path

        golds = [
            doc["answer"] for doc in lmms.open_tasks([TASK])[TASK].eval_docs_no_media.select(range(LIMIT))
        ]
        golds = [json.loads(gold) for gold in golds]
        worse = script(tmp_path / "worse.jsonl", golds[0], "wrong", "wrong", "wrong")
        better = script(tmp_path / "better.jsonl", *golds)
        stub(tmp_path / "base", worse)
        (log,) = (tmp_path / "base").rglob("*_samples_*.jsonl")
        words = [
            "-m",
            "lmms_eval",
            "--include_path",
            str(task_path()),
            "--model",
            "dcsft_stub",
        ]
        words += [
            "--model_args",
            f"answers={better}",
            "--tasks",
            TASK,
            "--limit",
            str(LIMIT),
            "--log_samples",
        ]
        words += ["--output_path", str(tmp_path / "out"), "--baseline", str(log)]
        done = forked.run(words, capture_output=True, timeout=300)
        assert f"[Baseline] {TASK}: diff=75.00%" in done.stderr + done.stdout, done.stderr[-2000:]
        (file,) = (tmp_path / "out").rglob("*_results.json")
        entry = json.loads(file.read_text())["results"][TASK]
        assert (entry["acc,none"], entry["paired_baseline_score"]) == (1.0, 25.0)
        assert entry["paired_ci_lower"] + entry["paired_ci_upper"] == pytest.approx(150)

    def test_our_command_prints_the_difference_without_upstreams_wrong_one(self, tmp_path, capfd):
        golds = [
            json.loads(doc["answer"])
            for doc in lmms.open_tasks([TASK])[TASK].eval_docs_no_media.select(range(LIMIT))
        ]
        stub(tmp_path / "base", script(tmp_path / "worse.jsonl", golds[0], "wrong", "wrong", "wrong"))
        (log,) = (tmp_path / "base").rglob("*_samples_*.jsonl")
        capfd.readouterr()
        stub(tmp_path / "out", script(tmp_path / "better.jsonl", *golds), "--baseline", log)
        said = capfd.readouterr()
        assert f"dcsft: {TASK} against" in said.err and "+75.0 points" in said.err
        assert "-24.0%" not in said.out
