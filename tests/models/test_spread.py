"""Sampling on a Ray cluster: the same result as one process, whatever happens to an actor."""

import contextlib
import importlib.util
import json
import os
import secrets
import signal

import psutil
import pytest

from dcsft_harness import records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import ray_engine
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.ray_engine import Answerer
from dcsft_harness.models.requests import Item
from dcsft_harness.stages import opening
from tests.fixtures.tiny_checkpoints import checkpoint

POOL = "dcsft_digits_pool"
DIGITS = "pretrained=digits,device=cpu,dtype=float32,batch_size="
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def two_slots(tmp_path_factory):
    """A separate cluster on this machine, with room for two actors."""
    import ray

    token = tmp_path_factory.mktemp("ray") / "token"  # otherwise Ray writes one into the home folder
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def rows(output):
    return records.read_table(output / sampling.ROLLOUTS, records.Rollout).to_pylist()


def actors():
    """The processes of the cluster's actors, and which of them are busy."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end while it is inspected
            title = " ".join(process.cmdline())
            if title.startswith("ray::Answerer"):
                found[process.pid] = title.startswith("ray::Answerer.answer")
    return found


@pytest.fixture
def script(tmp_path):
    """A model with an answer to every document but two, right at times."""
    from dcsft_harness import lmms

    docs = lmms.open_tasks([POOL])[POOL].eval_docs_no_media
    lines = [
        {"task": POOL, "doc_id": at, "responses": [docs[at]["target"] if at % 2 else "it", "no", "it"]}
        for at in range(12)
        if at not in (4, 9)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return {"model": "dcsft_stub", "model_args": f"answers={path},batch_size=2", "task": POOL, "samples": 8}


@needs_ray
@pytest.mark.slow
class TestRayCluster:
    def test_draws_the_samples_of_one_process_although_an_actor_is_killed(self, tmp_path, two_slots):
        options = {"task": POOL, "samples": 4, "limit": 41, "seed": 3}
        stages.STAGES["sample"](tmp_path / "one", model_args=DIGITS + "4", **options)
        killed, left = [], []

        def progress(done, total):
            at_work = [pid for pid, busy in actors().items() if busy]
            if not killed and done >= 10 and at_work:
                killed.append(at_work[0])
                os.kill(killed[0], signal.SIGKILL)
            if done == total:
                left.extend(actors())

        notes = stages.STAGES["sample"](
            tmp_path / "two", progress, model_args=DIGITS + "1", engine="ray", actors=2, **options
        )
        assert rows(tmp_path / "one") == rows(tmp_path / "two")
        assert len(killed) == 1
        assert len(left) == 2 and killed[0] not in left  # a new one drew its unfinished work
        assert (notes["processes"], notes["resumed"], notes["damaged"]) == (2, 0, 0)
        assert manifest.is_intact(tmp_path / "two")

    def test_stops_and_skips_like_one_process(self, tmp_path, two_slots, script):
        options = {**script, "limit": 12, "on_error": "skip", "stop_when_labelled": True}
        one = stages.STAGES["sample"](tmp_path / "one", **options)
        two = stages.STAGES["sample"](tmp_path / "two", engine="ray", **options)
        assert rows(tmp_path / "one") == rows(tmp_path / "two")
        assert one["skipped"] == two["skipped"] == 2
        assert one["saved"] == two["saved"] > 0

    def test_reports_a_models_errors_and_one_process_resumes_its_run(
        self, tmp_path, two_slots, script, capsys
    ):
        given = ["--model", script["model"], "--model-args", script["model_args"], "--task", POOL]
        given += ["--limit", "12", "--samples", "8", "--output", str(tmp_path / "out")]
        assert main(["sample", *given, "--engine", "ray", "--actors", "1"]) == 1
        said = capsys.readouterr().err
        assert "dcsft: dcsft_stub has no response to task 'dcsft_digits_pool', doc_id 4." in said
        assert "Traceback" not in said
        assert main(["sample", *given, "--on-error", "skip"]) == 0
        assert manifest.read(tmp_path / "out").notes["resumed"] == 32

    def test_a_cluster_that_is_too_small_is_refused(self, tmp_path, two_slots, script):
        with pytest.raises(HarnessError, match="--actors 3 asks for more than the Ray cluster's 2 CPU slots"):
            stages.STAGES["sample"](tmp_path / "out", engine="ray", actors=3, limit=2, **script)
        assert not (tmp_path / "out").exists()


@needs_ray
def test_actors_that_die_on_one_chunk_are_reported_in_one_sentence():
    from ray.exceptions import ActorDiedError

    with pytest.raises(HarnessError, match="the actors of the Ray cluster die: .*A chunk was tried 4 times"):
        with ray_engine.reporting_failures():
            raise ActorDiedError


class TestRefusals:
    @needs_ray
    def test_a_cluster_that_does_not_answer_is_reported_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        with pytest.raises(HarnessError, match="RAY_ADDRESS=127.0.0.1:1 cannot be reached: .*refused"):
            ray_engine.connect()

    def test_missing_ray_is_reported_before_anything_is_loaded(self, tmp_path, monkeypatch, capsys):
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more)
        )
        arguments = ["sample", "--model-args", "pretrained=digits", "--task", POOL, "--engine", "ray"]
        assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
        said = "dcsft: --engine ray needs Ray. Install it with `pip install 'dcsft-harness[ray]'`.\n"
        assert capsys.readouterr().err == said
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"actors": 2}, "--actors 2 requires --engine ray"),
            ({"engine": "slurm"}, "unknown model 'slurm'"),
            ({"engine": "ray", "actors": 0}, "--actors 0 is out of range"),
        ],
    )
    @needs_ray
    def test_incompatible_options(self, tmp_path, options, said):
        with pytest.raises(HarnessError, match=said):
            stages.STAGES["sample"](tmp_path / "out", model="dcsft_stub", task=POOL, **options)

    def test_a_launch_of_several_processes(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(HarnessError, match="Start it without `torchrun`"):
            opening.opener("dcsft_stub", "", True, None)


class TestActor:
    def item(self, doc_id=0):
        arguments = GenerationArguments.parse({}, "pool")
        return Item("pool", "test", doc_id, arguments, "prompt", lambda _: [], [0, 1], [0, 1])

    def test_loads_its_model_on_the_first_request(self):
        actor = Answerer("dcsft_stub", "default=seven,batch_size=3,seed=5")
        number, answered, refused = actor.answer(7, [self.item()], {("pool", 0): "id"}, False)
        assert (number, refused) == (7, {})
        assert [[one.response for one in some] for some in answered] == [["seven", "seven"]]
        loaded = actor.load()
        assert (loaded["batch_size"], loaded["seed"]) == (3, 5)

    def test_returns_the_image_markers_to_search_prompts_for(self):
        given = f"pretrained={checkpoint('qwen2_5_vl')},device=cpu,system_prompt=Be brief."
        actor = Answerer("dcsft_hf", given)
        loaded = actor.load()
        assert "<|image_pad|>" in loaded["media_marks"]
        assert list(loaded["prompt_settings"]) == ["system_prompt_sha256"]

    def test_returns_refused_items_or_raises_the_error(self, tmp_path):
        (tmp_path / "answers").write_text('{"task": "pool", "doc_id": 1, "responses": ["one"]}')
        actor = Answerer("dcsft_stub", f"answers={tmp_path / 'answers'}")
        _, answered, refused = actor.answer(0, [self.item(0), self.item(1)], {}, True)
        assert [len(some) for some in answered] == [0, 2]
        assert list(refused) == [("pool", 0)]
        assert actor.answer(0, [], {}, True) == (0, [], {})
        with pytest.raises(HarnessError, match="no response"):
            actor.answer(0, [self.item(0)], {}, False)
