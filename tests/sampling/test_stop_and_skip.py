"""`--stop-when-labelled` gives the labels of the full draw for less; `--on-error skip` keeps every item."""

import json
import re

import pytest
from datasets import load_from_disk
from PIL import Image

from dcsft_harness import evaluation, lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import labels
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.sampling import own_data, rollout_store
from tests.fixtures import fake_vllm
from tests.lmms.test_harness import own_task

POOL, ITEMS, SAMPLES = "dcsft_digits_pool", 16, 8


def label_table(folder):
    table = records.read_table(folder / labels.LABELS, records.Label)
    return {row["item_id"]: row for row in table.to_pylist()}


def rollout_rows(folder):
    return records.read_table(folder / sampling.ROLLOUTS, records.Rollout).to_pylist()


def draw(folder, script, *more, batch_size=3):
    options = ["--samples", str(SAMPLES), "--limit", str(ITEMS), "--task", POOL, *more]
    arguments = f"answers={script},batch_size={batch_size}"
    command = ["sample", "--model", "dcsft_stub", "--model-args", arguments, *options]
    assert main([*command, "--output", str(folder / "rollouts")]) == 0
    assert main(["label", str(folder / "rollouts"), "--output", str(folder / "labels")]) == 0
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Item n is right wherever the bits of a scrambled n are 1: all wrong, all right, and mixtures."""
    docs = lmms.open_tasks([POOL])[POOL].eval_docs_no_media
    lines = []
    for at in range(ITEMS):
        bits = {0: 0, 1: 255}.get(at, at * 73 % 256)
        said = [docs[at]["target"] if bits >> index & 1 else "heron" for index in range(SAMPLES)]
        lines.append(json.dumps({"task": POOL, "doc_id": at, "responses": said}))
    path = tmp_path_factory.mktemp("script") / "answers.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory, script):
    return draw(tmp_path_factory.mktemp("full"), script)


@pytest.fixture(scope="module")
def short(tmp_path_factory, script):
    return draw(tmp_path_factory.mktemp("short"), script, "--stop-when-labelled")


def test_a_truncated_response_settles_what_it_is_scored_as(tmp_path):
    """The same text, complete and truncated, has two verdicts; neither replaces the other."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "Which?\nA. cat\nB. dog", "answer": "A"}) + "\n")
    task = own_data.open_file(file, "choice", tmp_path)
    pool = rollout_store.Pool(task, sampling.read_items(task, 1), 2, 0, {})
    (item,) = pool.items

    def settled(*ends):
        return pool.settled(
            item,
            [
                Generation(item.task, 0, index, "The answer is A.", 1, 1, end, 0)
                for index, end in enumerate(ends)
            ],
        )

    assert not settled("stop", "stop")
    assert settled("stop", "length")
    assert not settled("length", "length")


class TestStopWhenLabeled:
    def test_every_item_has_the_label_of_the_full_draw(self, full, short):
        expected, found = label_table(full / "labels"), label_table(short / "labels")
        assert {key: row["difficulty"] for key, row in found.items()} == {
            key: row["difficulty"] for key, row in expected.items()
        }
        assert {row["difficulty"] for row in found.values()} == {"easy", "medium", "hard"}

    def test_responses_equal_the_full_draw_up_to_the_stop(self, full, short):
        everything = {(row["item_id"], row["sample_index"]): row for row in rollout_rows(full / "rollouts")}
        drawn = rollout_rows(short / "rollouts")
        assert len(drawn) < 0.8 * len(everything)
        for row in drawn:
            expected = everything[row["item_id"], row["sample_index"]]
            assert {**row, "censored": False} == expected

    def test_no_item_draws_more_than_twice_what_it_needs(self, full, short):
        counts = {}
        for row in rollout_rows(short / "rollouts"):
            counts[row["item_id"]] = counts.get(row["item_id"], 0) + 1
        scores = {}
        for row in rollout_rows(full / "rollouts"):
            scores.setdefault(row["item_id"], []).append(row["score"])
        for key, some in scores.items():
            needed = next((at + 1 for at in range(SAMPLES) if len(set(some[: at + 1])) == 2), SAMPLES)
            assert needed <= counts[key] < max(2 * needed, 3)

    def test_censored_pass_rates_are_marked_and_cannot_be_read(self, full, short, capsys):
        expected, found = label_table(full / "labels"), label_table(short / "labels")
        censored = {key for key, row in found.items() if row["censored"]}
        for key, row in found.items():
            assert (row["n"] < SAMPLES) == (key in censored)
            if key in censored:
                assert [row[name] for name in ("pass_rate", "low", "high")] == [None] * 3
                assert row["difficulty"] == "medium" and 0 < row["k"] < row["n"]
            else:
                assert row == expected[key]
        drawn = rollout_rows(short / "rollouts")
        assert {row["item_id"] for row in drawn if row["censored"]} == censored
        notes = manifest.read(short / "rollouts").notes
        assert (notes["responses"], notes["saved"]) == (len(drawn), ITEMS * SAMPLES - len(drawn))
        assert (notes["censored"], notes["accuracy"]) == (len(censored), None)
        assert manifest.read(short / "rollouts").config["stop_when_labelled"] is True
        assert manifest.read(short / "labels").notes["censored"] == len(censored)
        assert manifest.read(full / "labels").notes["censored"] == 0

    def test_a_curated_set_keeps_pass_rates_censored(self, short, tmp_path):
        stages.STAGES["curate"](tmp_path / "set", labels=short / "labels", keep=["easy", "medium"])
        found = label_table(short / "labels")
        for row in load_from_disk(str(tmp_path / "set" / "data")):
            assert row["pass_rate"] == found[row["item_id"]]["pass_rate"]

    def test_the_batch_size_does_not_change_the_draws(self, short, script, tmp_path):
        again = draw(tmp_path, script, "--stop-when-labelled", batch_size=7)
        assert rollout_rows(again / "rollouts") == rollout_rows(short / "rollouts")

    @pytest.mark.parametrize("after", [5, 40, 60])
    def test_interruptions_do_not_change_the_draws(self, short, script, tmp_path, monkeypatch, after):
        answer, asked = DcsftStub._generation, []

        def interrupted(model, item, index):
            if len(asked) == after:
                asked.append(None)
                raise MemoryError
            asked.append((item.doc_id, index))
            return answer(model, item, index)

        monkeypatch.setattr(DcsftStub, "_generation", interrupted)
        with pytest.raises(MemoryError):
            draw(tmp_path, script, "--stop-when-labelled")
        draw(tmp_path, script, "--stop-when-labelled")
        assert rollout_rows(tmp_path / "rollouts") == rollout_rows(short / "rollouts")

    def test_reasoning_stripped_by_lmms_eval_does_not_count_for_settling(self, tmp_path):
        Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
        task = own_task(tmp_path, [tmp_path / "0.png"])
        task.set_config(key="reasoning_tags", value=[["<think>", "</think>"]])
        model = DcsftStub(answers=lambda question: f"<think>{question.sample_index}</think>x")
        config = sampling.SamplingConfig(samples=4, stop_when_labelled=True)
        notes = sampling.sample(model, task, tmp_path / "out", config, {"model": "dcsft_stub"})
        assert (notes["responses"], notes["accuracy"]) == (4, 1.0)

    def test_a_row_marked_as_censored_without_being_settled_is_refused(self, short, tmp_path):
        table = records.read_table(short / "rollouts" / sampling.ROLLOUTS, records.Rollout)
        rows = [{**row, "score": 1.0 if row["censored"] else row["score"]} for row in table.to_pylist()]
        with manifest.writing("rollouts", tmp_path / "out", {}) as draft:
            records.write_table(
                draft.folder / sampling.ROLLOUTS, records.Rollout, [records.Rollout(**row) for row in rows]
            )
        with pytest.raises(HarnessError, match="is marked as censored, but"):
            labels.label(tmp_path / "out", tmp_path / "labels")


@pytest.fixture
def mine(tmp_path):
    """Five of a user's own rows: the first one's image is missing, the fourth one's is damaged."""
    for number in range(5):
        Image.effect_noise((64, 64), 10 + number).save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").unlink()
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    rows = [{"problem": "Which?", "solution": "goose", "image": f"{number}.png"} for number in range(5)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def sample_mine(mine, *more):
    options = ["--model", "dcsft_stub", "--model-args", "default=Goose.,batch_size=2", "--samples", "2"]
    data = ["--data", str(mine / "mine.jsonl"), "--scorer", "exact_word", *more]
    return main(["sample", *options, *data, "--output", str(mine / "rollouts")])


class TestSkipping:
    def test_an_unreadable_image_stops_the_run_by_default(self, mine, capsys):
        assert sample_mine(mine) == 1
        assert "line 1: image" in capsys.readouterr().err
        assert not (mine / "rollouts").exists()

    def test_an_unreadable_image_is_recorded_as_unscored_with_its_reason(self, mine, capsys):
        assert sample_mine(mine, "--on-error", "skip") == 0
        said = capsys.readouterr().err
        assert "5 items, 6 responses, 100.0 % right, 2 items skipped" in said
        rows = rollout_rows(mine / "rollouts")
        bad = [row for row in rows if row["error"] is not None]
        assert len(rows) == 10 and len(bad) == 4
        assert {row["error"].split(":")[0].split()[-1] for row in bad} == {"1", "4"}
        for row in bad:
            assert (row["score"], row["extracted"], row["response"], row["n_tokens"]) == (None, None, "", 0)
            assert (row["finish_reason"], row["censored"]) == ("error", False)
        notes = manifest.read(mine / "rollouts").notes
        assert [notes[name] for name in ("items", "responses", "skipped", "saved", "unscored")] == [
            5,
            6,
            2,
            0,
            0,
        ]
        assert main(["label", str(mine / "rollouts"), "--output", str(mine / "labels")]) == 0
        assert "5 items: 3 easy, 0 medium, 0 hard, 2 unlabeled" in capsys.readouterr().err
        assert manifest.read(mine / "labels").notes["unlabelled"] == 2
        command = ["curate", str(mine / "labels"), "--keep", "easy", "--output", str(mine / "set")]
        assert main(command) == 0
        assert "3 items: 3 easy, 0 medium, 0 hard (2 of the pool unlabeled)" in capsys.readouterr().err

    def test_works_with_stopping_too(self, mine):
        assert sample_mine(mine, "--on-error", "skip", "--stop-when-labelled") == 0
        assert manifest.read(mine / "rollouts").notes["censored"] == 0

    def test_an_item_that_the_model_refuses_is_skipped_even_after_an_interruption(self, tmp_path):
        def answer(question):
            if question.doc_id == 5 and not finishing:
                raise KeyboardInterrupt
            return None if question.doc_id == 1 else "seven"

        config = sampling.SamplingConfig(samples=2, limit=6, on_error="skip")
        for finishing in (False, True):
            try:
                task = lmms.open_tasks([POOL])[POOL]
                model = DcsftStub(answers=answer, batch_size=2)
                notes = sampling.sample(model, task, tmp_path / "out", config, {"model": "dcsft_stub"})
            except KeyboardInterrupt:
                assert not finishing
        assert (notes["skipped"], notes["responses"], notes["resumed"]) == (1, 10, 6)

    def test_a_run_that_stopped_at_a_refusal_can_resume_with_skipping(self, tmp_path):
        def draw(on_error):
            config = sampling.SamplingConfig(samples=2, limit=4, on_error=on_error)
            model = DcsftStub(answers=lambda question: None if question.doc_id == 2 else "seven")
            task = lmms.open_tasks([POOL])[POOL]
            return sampling.sample(model, task, tmp_path / "out", config, {"model": "dcsft_stub"})

        with pytest.raises(HarnessError, match="doc_id 2"):
            draw("stop")
        notes = draw("skip")
        assert (notes["skipped"], notes["resumed"], notes["responses"]) == (1, 4, 6)

    def test_a_run_that_skips_every_item_is_an_error(self, tmp_path):
        with pytest.raises(HarnessError, match="none of 2 items could be answered: .*doc_id 0"):
            stages.STAGES["sample"](
                tmp_path / "out", model="dcsft_stub", task=POOL, limit=2, samples=2, on_error="skip"
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_decompression_bomb_is_an_unreadable_image(self, tmp_path, monkeypatch):
        for number in range(2):
            Image.new("RGB", (28 + 200 * number, 28)).save(tmp_path / f"{number}.png")
        task = own_task(tmp_path, [tmp_path / "0.png", tmp_path / "1.png"])
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        model, config = DcsftStub(default="x"), sampling.SamplingConfig(samples=2)
        with pytest.raises(HarnessError, match="doc_id 1: an image cannot be read .*bomb"):
            sampling.sample(model, task, tmp_path / "out", config, {})
        config = sampling.SamplingConfig(samples=2, on_error="skip")
        assert sampling.sample(model, task, tmp_path / "out", config, {})["skipped"] == 1

    def test_all_unreadable_images_of_a_task_are_listed(self, tmp_path):
        for number in range(24):
            Image.new("RGB", (28, 28), (number, 0, 0)).save(tmp_path / f"{number}.png")
            if number > 1:
                (tmp_path / f"{number}.png").write_bytes(b"no picture")
        task = own_task(tmp_path, [tmp_path / f"{number}.png" for number in range(24)])
        with pytest.raises(HarnessError) as refused:
            sampling.sample(
                DcsftStub(default="x"), task, tmp_path / "out", sampling.SamplingConfig(samples=2), {}
            )
        said = str(refused.value)
        assert (
            ": 22 of 24 documents cannot be used: doc_id 2: an image cannot be read (not an image that"
            in said
        )
        assert (
            said.count("doc_id") == 20 and "; and 2 more. Replace" in said and not (tmp_path / "out").exists()
        )

    def test_a_model_that_can_do_neither_is_refused_before_it_starts(self, tmp_path):
        task = lmms.open_tasks([POOL])[POOL]
        for option in ({"on_error": "skip"}, {"stop_when_labelled": True}):
            config = sampling.SamplingConfig(samples=2, limit=2, **option)
            with pytest.raises(HarnessError, match="object answers all items at once"):
                sampling.sample(object(), task, tmp_path / "out", config, {})

    def test_an_unknown_value_is_refused(self):
        with pytest.raises(HarnessError, match="unknown --on-error value 'ignore'. Known: skip, stop"):
            sampling.SamplingConfig(on_error="ignore")


class TestImageMarkersInTexts:
    """A prompt whose text has the model's own image marker would shift or lose its images."""

    BAD = 22

    @pytest.fixture
    def file(self, tmp_path):
        rows = [
            {"problem": f"Which digit ({number})?", "solution": "one", "image": "a.png"}
            for number in range(3)
        ]
        for number in range(self.BAD):
            mark = ("<|image_pad|>", "<|vision_start|>")[number % 2]
            rows.append({"problem": f"{number} {mark}?", "solution": "one", "image": "a.png"})
        Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
        (tmp_path / "mine.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
        return tmp_path / "mine.jsonl"

    def draw(self, file, engine, **more):
        arguments = f"pretrained=digits{',device=cpu' if engine == 'dcsft_hf' else ''}"
        given = {"data": file, "scorer": "exact_word", "samples": 2, "max_new_tokens": 2} | more
        return stages.STAGES["sample"](file.parent / "out", model=engine, model_args=arguments, **given)

    @pytest.mark.parametrize("engine", ["dcsft_hf", "dcsft_vllm"])
    def test_are_listed_before_anything_is_sampled(self, file, engine, monkeypatch):
        fake_vllm.install(monkeypatch)
        with pytest.raises(HarnessError) as refused:
            self.draw(file, engine)
        said = str(refused.value)
        assert "task mine: 22 prompts have a text that the model reads as its own image token: " in said
        assert (
            "line 7: the prompt has '<|image_pad|>' in its text; line 9: the prompt has '<|vision_st" in said
        )
        assert said.count("the prompt has") == 20 and "; and 2 more. " in said
        assert not (file.parent / "out").exists()

    def test_are_skipped_on_request(self, file):
        made = self.draw(file, "dcsft_hf", on_error="skip")
        assert (made["items"], made["skipped"], made["responses"]) == (25, 22, 6)
        reasons = {row["error"] for row in rollout_rows(file.parent / "out")} - {None}
        assert "task mine, line 7: the prompt has '<|image_pad|>' in its text, which the model reads" in str(
            reasons
        )

    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("engine", ["dcsft_hf", "dcsft_vllm"])
    def test_every_engine_names_an_image_that_the_processor_refuses(
        self, tmp_path, engine, skip, monkeypatch
    ):
        fake_vllm.install(monkeypatch)
        for name, size in (("a.png", (56, 56)), ("b.png", (1, 300))):
            Image.new("RGB", size, "red").save(tmp_path / name)
        rows = [{"problem": "Which?", "solution": "one", "image": name} for name in ("a.png", "b.png")]
        (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
        said = "task 'mine', doc_id 1: the processor refuses the prompt (absolute aspect ratio must"
        if skip:
            assert self.draw(tmp_path / "mine.jsonl", engine, on_error="skip")["skipped"] == 1
            assert any((row["error"] or "").startswith(said) for row in rollout_rows(tmp_path / "out"))
            return
        with pytest.raises(HarnessError, match=f"{re.escape(said)}.*Crop or pad the image"):
            self.draw(tmp_path / "mine.jsonl", engine)

    def test_are_refused_by_evaluation(self, file, tmp_path):
        task = own_data.open_file(file, "exact_word", None)
        model = DcsftStub(default="one")
        model.media_marks = ["<|image_pad|>", "<image>"]
        with pytest.raises(HarnessError, match="task mine: 11 prompts have a text that"):
            evaluation.evaluate(model, {"mine": task}, tmp_path / "out", "name", {})
        assert not (tmp_path / "out").exists()
