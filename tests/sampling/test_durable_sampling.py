"""`dcsft sample` interrupted, killed or run twice at once: no kept response is lost or drawn again."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from dcsft_harness import lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest, resuming
from dcsft_harness.artifacts.manifest import UNFINISHED
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import forked

POOL = "dcsft_digits_pool"


def words(question):
    """A different answer for every document and sample, right at times."""
    some = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return some[(7 * question.doc_id + 3 * question.sample_index) % 10] + " " * (question.doc_id % 2)


def draw(output, answers=words, batch_size=2, limit=6, settings=None, **config):
    """Samples with its own model; returns the model."""
    model = DcsftStub(answers=answers, batch_size=batch_size)
    task = lmms.open_tasks([POOL])[POOL]
    options = sampling.SamplingConfig(**{"samples": 4, "limit": limit, **config})
    sampling.sample(model, task, output, options, settings or {"model": "dcsft_stub"})
    return model


def rows(output):
    return records.read_table(output / sampling.ROLLOUTS, records.Rollout).to_pylist()


class Interrupted:
    """Answers until it has given a number of responses."""

    def __init__(self, after=10**9, error=KeyboardInterrupt):
        self.asked, self.after, self.error = [], after, error

    def __call__(self, question):
        if len(self.asked) == self.after:
            raise self.error
        self.asked.append((question.doc_id, question.sample_index))
        return words(question)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    draw(output)
    return output


class TestResuming:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, HarnessError("the model diverged")])
    def test_keeps_finished_batches_and_does_not_draw_them_again(self, tmp_path, undisturbed, error):
        first, second = Interrupted(10, error), Interrupted()
        with pytest.raises(error if isinstance(error, type) else HarnessError):
            draw(tmp_path / "out", first)
        # Two items of four samples each are one batch; the responses of the second batch are lost.
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [UNFINISHED]
        draw(tmp_path / "out", second, batch_size=3)
        assert second.asked == [(doc_id, index) for doc_id in range(2, 6) for index in range(4)]
        assert rows(tmp_path / "out") == rows(undisturbed)
        notes = manifest.read(tmp_path / "out", "rollouts").notes
        assert (notes["resumed"], notes["damaged"]) == (8, 0)
        same = ("items", "responses", "accuracy", "prompt_tokens", "generated_tokens")
        before = manifest.read(undisturbed).notes
        assert {name: notes[name] for name in same} == {name: before[name] for name in same}
        assert manifest.is_intact(tmp_path / "out")

    def test_progress_starts_with_the_kept_items(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "out", Interrupted(8))
        seen = []
        task = lmms.open_tasks([POOL])[POOL]
        config = sampling.SamplingConfig(samples=4, limit=6)
        model = DcsftStub(answers=words, batch_size=2)
        sampling.sample(
            model, task, tmp_path / "out", config, {"model": "dcsft_stub"}, lambda *at: seen.append(at)
        )
        assert seen == [(2, 6), (4, 6), (6, 6)]

    def test_damaged_records_are_drawn_again(self, tmp_path, undisturbed):
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "out", Interrupted(16))
        shard = tmp_path / "out" / UNFINISHED / "shard-0.jsonl"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(bytes(content[:-20]))
        second = Interrupted()
        draw(tmp_path / "out", second)
        assert len(second.asked) == 8 + 2
        assert rows(tmp_path / "out") == rows(undisturbed)
        assert manifest.read(tmp_path / "out").notes["damaged"] == 1

    def test_a_run_with_all_responses_only_finishes(self, tmp_path, undisturbed, monkeypatch):
        def dies(*_):
            raise SystemExit

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(sampling, "write_items", dies)
            draw(tmp_path / "out")
        second = Interrupted()
        draw(tmp_path / "out", second)
        assert (second.asked, rows(tmp_path / "out")) == ([], rows(undisturbed))

    def test_the_model_is_opened_after_everything_else_was_checked(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "out", Interrupted(8))
        task, opened = lmms.open_tasks([POOL])[POOL], []
        config = sampling.SamplingConfig(samples=4, limit=6, temperature=0.5)
        with pytest.raises(HarnessError, match=r"other settings: temperature: 0\.9 -> 0\.5\. "):
            sampling.sample(lambda: opened.append(1), task, tmp_path / "out", config, {"model": "dcsft_stub"})
        assert opened == []

    def test_warns_that_a_model_without_batch_reports_keeps_nothing(self, tmp_path, caplog, undisturbed):
        class Theirs(DcsftStub):
            def __init__(self):
                super().__init__(answers=words)
                del self.kept, self.item_ids

            def generate_until(self, requests):
                return DcsftStub(answers=words).generate_until(requests)

        task = lmms.open_tasks([POOL])[POOL]
        config = sampling.SamplingConfig(samples=4, limit=6)
        sampling.sample(Theirs(), task, tmp_path / "out", config, {"model": "theirs"})
        assert "responses are saved only at the end" in caplog.text
        kept = [(row["item_id"], row["response"]) for row in rows(tmp_path / "out")]
        assert kept == [(row["item_id"], row["response"]) for row in rows(undisturbed)]


class TestOtherSettings:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"seed": 1}, "seed: 0 -> 1"),
            ({"samples": 5}, "samples: 4 -> 5"),
            ({"limit": 5}, r"items: 6 \(\w+\) -> 5 \(\w+\); limit: 6 -> 5"),
            ({"settings": {"model": "dcsft_hf"}}, "model: dcsft_stub -> dcsft_hf"),
            (
                {"settings": {"model": "dcsft_stub", "model_args": "max_pixels=9,batch_size=4"}},
                r"model argument max_pixels: none -> 9\.",
            ),
        ],
    )
    def test_are_refused_and_shown(self, tmp_path, change, said):
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path / "out", Interrupted(8))
        with pytest.raises(HarnessError, match=f"other settings: (prompts: .*; )?{said}"):
            draw(tmp_path / "out", **change)
        draw(tmp_path / "out")

    def test_weights_are_identified_by_content_not_by_path(self, tmp_path):
        task = lmms.open_tasks([POOL])[POOL]
        items = sampling.read_items(task, 2)

        def identity(folder):
            settings = {"model": "dcsft_hf", "model_args": f"pretrained={folder}"}
            config = sampling.SamplingConfig()
            return sampling.identify([task], items, config.as_dict(), settings, {"model": folder})

        for name, weights in (("one", "w"), ("moved", "w"), ("trained", "v")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_text(weights)
        assert identity(tmp_path / "one") == identity(tmp_path / "moved")
        before, after = identity(tmp_path / "one"), identity(tmp_path / "trained")
        assert [name for name in before if before[name] != after[name]] == ["content of model"]
        # A run that an older version began can be resumed only if this stays.
        assert before["content of model"] == manifest.fingerprint(tmp_path / "one")[:16]

    @pytest.mark.parametrize(
        ("arguments", "precision"),
        [
            ("device=cpu", "float32"),
            ("device=cuda:1", "the checkpoint's own"),
            ("device=cuda,dtype=None", "the checkpoint's own"),
            ("device=cuda,dtype=float32", None),  # which is compared as a model argument
        ],
    )
    def test_the_device_decides_the_default_precision(self, arguments, precision):
        task = lmms.open_tasks([POOL])[POOL]
        settings = {"model": "dcsft_hf", "model_args": f"pretrained=digits,{arguments}"}
        found = sampling.identify([task], [], sampling.SamplingConfig().as_dict(), settings, {})
        assert found.get(resuming.PRECISION) == precision

    def test_another_precision_is_refused_unless_none_was_recorded(self, tmp_path):
        def opened(identity):
            with resuming.resumed(tmp_path / "out", "rollouts", identity, lambda folder: True):
                pass

        opened({"seed": 0})
        opened({"seed": 0, resuming.PRECISION: "float32"})
        (tmp_path / "out/unfinished/run.json").write_text(json.dumps({resuming.PRECISION: "float32"}))
        with pytest.raises(HarnessError, match="precision of the weights: float32 -> the checkpoint's own"):
            opened({resuming.PRECISION: "the checkpoint's own"})


def command(output, folder, delay, limit=40):
    """A run of the scripted model with a script shared by all runs."""
    script = folder / "answers.jsonl"
    if not script.exists():
        docs = lmms.open_tasks([POOL])[POOL].eval_docs_no_media
        lines = [
            {"task": POOL, "doc_id": at, "responses": [docs[at]["target"], f"it is {at}", "", f"no {at}"]}
            for at in range(limit)
        ]
        script.write_text("\n".join(map(json.dumps, lines)))
    arguments = f"answers={script},batch_size=2,delay={delay}"
    options = ["--task", POOL, "--samples", "4", "--limit", str(limit), "--output", str(output)]
    return ["sample", "--model", "dcsft_stub", "--model-args", arguments, *options]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of the script, and the rows of an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("reference")
    assert main(command(folder / "out", folder, 0)) == 0
    return folder, rows(folder / "out")


def start(arguments):
    words = [*forked.DCSFT, *arguments]
    return forked.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path, running, size=1):
    while not (path.is_file() and path.stat().st_size >= size):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_two_commands_cannot_share_a_folder_at_once(tmp_path, reference, capsys):
    folder, expected = reference
    arguments = command(tmp_path / "out", folder, 0.3)
    first = start(arguments)
    try:
        wait_for(tmp_path / "out" / UNFINISHED / "shard-0.jsonl", first)
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert f"--output {tmp_path / 'out'} is being written by process {first.pid}." in said
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert main(["label", str(tmp_path / "out"), "--output", str(tmp_path / "labels")]) == 1
        assert "Rerun the interrupted command" in capsys.readouterr().err
        assert main(command(tmp_path / "out", folder, 0)) == 0
        assert re.search(
            r"160 responses, .* right, [1-9]\d* from the interrupted run", capsys.readouterr().err
        )
    finally:
        first.kill()
        first.communicate()
    assert rows(tmp_path / "out") == expected


def test_responses_of_every_kind_survive_the_shard(tmp_path):
    said = ["", " ", "naïve \u2028 line\nbreaks\r\n\0", '{"sum":"', "word " * 10_000, "\U0001f984"]

    def kinds(question):
        if question.doc_id == 5:
            raise KeyboardInterrupt
        return said[question.doc_id]

    for answers in (kinds, lambda question: said[question.doc_id]):
        try:
            draw(tmp_path / "kinds", answers, max_new_tokens=20_000)
        except KeyboardInterrupt:
            assert answers is kinds
    assert [row["response"] for row in rows(tmp_path / "kinds")] == [text for text in said for _ in range(4)]
    assert manifest.read(tmp_path / "kinds").notes["resumed"] == 16


@pytest.mark.slow
def test_an_interrupted_real_model_draws_the_same_responses(tmp_path, monkeypatch):
    from dcsft_harness.models.engine import RunningItems

    def sample(name, batch_size, **more):
        arguments = f"pretrained=digits,device=cpu,dtype=float32,batch_size={batch_size}"
        options = {"model_args": arguments, "task": POOL, "samples": 4, "limit": 10, "seed": 3, **more}
        return stages.STAGES["sample"](tmp_path / name, **options)

    sample("undisturbed", 4)
    run, calls = RunningItems.run, []

    def interrupted(flight):
        calls.append(flight.rows)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(flight)

    monkeypatch.setattr(RunningItems, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample("out", 2)
    notes = sample("out", 8)
    assert max(calls[:4]) == 8 and 0 < notes["resumed"] < 40
    assert rows(tmp_path / "out") == rows(tmp_path / "undisturbed")
    # The same weights with fewer requests: an item that stops early has the first of the same responses.
    short = sample("short", 3, stop_when_labelled=True)
    everything = {(row["item_id"], row["sample_index"]): row for row in rows(tmp_path / "undisturbed")}
    for row in rows(tmp_path / "short"):
        assert {**row, "censored": False} == everything[row["item_id"], row["sample_index"]]
    assert short["saved"] + short["responses"] == 40
