"""Rows that cannot be trained on: all found before weights are read, and listed or left out on request."""

import io
import json
import shutil

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from transformers import AutoProcessor

from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import conversations
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import chat_template
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.checkpoint import open_config, saved_processor
from dcsft_harness.training import data, grpo, merging, run, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from tests.fixtures import tiny_checkpoints
from tests.fixtures.several import Parity
from tests.training.test_training_sft import base  # noqa: F401 - a fixture

TEXT = Value("string")
FEATURES = Features(
    {"messages": List({"role": TEXT, "content": TEXT}), "images": List(Image()), "item_id": TEXT}
)
CONFIGS = {
    "cold-start": ColdStartConfig(max_steps=1, epochs=None, batch_size=2),
    "sft": SftConfig(max_steps=2, batch_size=2),
    "grpo": GrpoConfig(max_steps=1, batch_size=4, num_generations=2, max_completion_length=3),
}


def row(content="<image>Which digit is this?", answer="one", size=(56, 56), images=None):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": images or [Pillow.new("RGB", size, "red")]}


def cut_short():
    stored = io.BytesIO()
    Pillow.effect_noise((64, 64), 50).save(stored, "PNG")
    return [{"bytes": stored.getvalue()[:200], "path": None}]


FAULTS = {
    "narrow picture": (lambda: row(size=(1, 300)), "does not accept an image of 1 x 300 pixels: .*ratio"),
    "wide picture": (lambda: row(size=(6500, 32)), "does not accept an image of 6500 x 32 pixels: .*ratio"),
    "image marker": (lambda: row("<image>Which <|image_pad|>?"), r"the prompt has '<\|image_pad\|>' in its"),
    "video marker": (lambda: row("<image>Which <|video_pad|>?"), r"the prompt has '<\|video_pad\|>' in its"),
    "marker in the answer": (
        lambda: row(answer="<|vision_end|>"),
        r"the answer has '<\|vision_end\|>' in its",
    ),
    "too long": (lambda: row("<image>" + "digit " * 40000), r"\d+ tokens.*, but the base has \d+ positions"),
    "damaged picture": (lambda: row(images=cut_short()), "an image cannot be read"),
    "no picture": (lambda: row("<image><image>Which?"), "2 <image> placeholders for 1 images"),
    "no answer": (lambda: row(answer=" \n"), "the assistant's answer is empty"),
}


def rows_of(*rows):
    numbered = [one | {"item_id": f"item{number}"} for number, one in enumerate(rows)]
    return Dataset.from_list(numbered, features=FEATURES)


def train(method, base, rows, output, config=None, **more):  # noqa: F811
    config = config or CONFIGS[method]
    if method == "grpo":
        return grpo.train_grpo(base, rows, Parity(len(rows)), output, config, **more)
    return (sft.train_sft if method == "sft" else sft.train_cold_start)(base, rows, output, config, **more)


@pytest.mark.grid
@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_untrainable_row_is_named_before_weights_are_read(
    base,  # noqa: F811
    tmp_path,
    monkeypatch,
    fault,
    method,
):
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    make, said = FAULTS[fault]
    rows = rows_of(row(), row(), make(), row(), row())
    with pytest.raises(HarnessError, match=f"row 2: .*{said}.*--on-error skip"):
        train(method, base, rows, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.few(1)
@pytest.mark.parametrize("method", CONFIGS)
def test_a_row_that_the_chat_template_refuses_is_named_or_left_out(base, tmp_path, method):  # noqa: F811
    picky = tmp_path / "picky"
    shutil.copytree(base, picky)
    processor = AutoProcessor.from_pretrained(picky)
    test = "{% if 'secret' in messages | string %}{{ raise_exception('no secrets') }}{% endif %}"
    processor.chat_template = test + processor.chat_template
    processor.save_pretrained(picky)
    rows = rows_of(row(), row("<image>Which secret?"), row())
    with pytest.raises(HarnessError, match="row 1: the chat template fails .*no secrets.*--on-error skip"):
        train(method, picky, rows, tmp_path / "out")
    notes = train(method, picky, rows, tmp_path / "out", CONFIGS[method].changed(on_error="skip"))
    assert notes["skipped"] == {"count": 1, "rows": [1]}


@pytest.mark.few(1)
@pytest.mark.parametrize("method", CONFIGS)
def test_rows_with_all_faults_are_left_out_on_request_and_recorded(base, tmp_path, method):  # noqa: F811
    rows = rows_of(row(), row(), *(make() for make, _ in FAULTS.values()), row())
    bad = list(range(2, 2 + len(FAULTS)))
    with pytest.raises(
        HarnessError, match=rf": {len(FAULTS)} of {len(rows)} rows cannot .*: row 2: .*; row 3: "
    ):
        train(method, base, rows, tmp_path / "out")
    config = CONFIGS[method].changed(on_error="skip")
    notes = train(method, base, rows, tmp_path / "out", config)
    assert notes["rows"] == 3 and notes["skipped"] == {"count": len(FAULTS), "rows": bad}
    assert manifest.read(tmp_path / "out").notes["skipped"] == notes["skipped"]


@pytest.mark.parametrize(
    ("sizes", "there", "absent"),
    [
        ([300] * 12, ["rows 1 to 12: the ", "; rows 13 to 25: the assistant's answer is empty."], "more"),
        (range(300, 325), ["row 1: the ", "; row 20: the ", "; and 6 more"], "row 21: "),
    ],
)
def test_equal_problems_are_grouped_and_twenty_listed(base, tmp_path, sizes, there, absent):  # noqa: F811
    bad = [row(size=(1, size)) for size in sizes]
    rows = rows_of(row(), *bad, *[row(answer="")] * (13 if len(bad) == 12 else 1))
    with pytest.raises(HarnessError) as refused:
        train("sft", base, rows, tmp_path / "out")
    said = str(refused.value)
    assert f"{len(rows) - 1} of {len(rows)} rows cannot be trained on: " in said
    assert all(one in said for one in there) and absent not in said


def test_a_set_without_usable_rows_is_refused_even_with_skip(base, tmp_path):  # noqa: F811
    for bad in (row(size=(1, 300)), row(answer="")):
        with pytest.raises(HarnessError, match="2 of 2 rows cannot be trained on"):
            train("sft", base, rows_of(bad, bad), tmp_path / "out", SftConfig(on_error="skip"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_resumes_only_with_its_original_rows(base, tmp_path):  # noqa: F811
    class Stop(Exception):
        pass

    def progress(step, total, figures):
        if step == 2:
            raise Stop

    rows = rows_of(row(), row(size=(1, 300)), row())
    config = SftConfig(max_steps=3, batch_size=1, save_steps=1, on_error="skip")
    with pytest.raises(Stop):
        train("sft", base, rows, tmp_path / "out", config, progress=progress)
    assert train("sft", base, rows, tmp_path / "out", config)["steps"] == 3


@pytest.mark.slow
def test_a_merge_is_compared_on_the_rows_that_were_trained_on(base, tmp_path):  # noqa: F811
    rows_of(row(), row(size=(1, 300)), row()).save_to_disk(str(tmp_path / "set"))
    config = SftConfig(max_steps=1, batch_size=1, on_error="skip")
    train("sft", base, tmp_path / "set", tmp_path / "out", config)
    processor = saved_processor(str(base))
    found = merging.read_probes(manifest.read(tmp_path / "out"), processor, None, count=4)
    assert found.source == "the training set" and len(found.features) == 2


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
def test_size_arithmetic_refuses_what_the_processor_refuses(family):
    """For every size, arithmetic gives the processor's own verdict."""
    processor = saved_processor(tiny_checkpoints.checkpoint(family))
    sizes = data._Sizes(processor)
    for size in [(1, 300), (300, 1), (64, 64), (2, 399), (201, 1), (33, 33), (640, 33), (3, 3), (1, 1)]:
        try:
            processor.image_processor(images=[Pillow.new("RGB", size)], return_tensors="pt")
            taken = True
        except (ValueError, RuntimeError, ZeroDivisionError):
            taken = False
        assert (sizes.refusal([size]) is None) == taken, size


def test_image_markers_of_a_family_come_from_processor_and_configuration():
    for family, marks in {
        "qwen2_5_vl": {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"},
        "idefics3": {"<image>", "<fake_token_around_image>", "<global-img>"},
    }.items():
        folder = tiny_checkpoints.checkpoint(family)
        config = open_config(ModelSettings(pretrained=folder))
        found = chat_template.media_marks(saved_processor(folder), config)
        assert set(found) == marks


def test_token_counts_equal_those_of_the_processor():
    folder = tiny_checkpoints.checkpoint("qwen2_5_vl")
    processor = saved_processor(folder)
    found = data.read(rows_of(row(), row(size=(300, 90)), row("What? " * 50, images=[])).select([0, 1]))
    texts = [
        processor.apply_chat_template(turns.prompt, tokenize=False, add_generation_prompt=True)
        for turns in found.turns
    ]
    made = [
        processor(text=[text], images=found.images(number))["input_ids"] for number, text in enumerate(texts)
    ]
    counted = data._lengths(found.turns, texts, processor, data._Sizes(processor))
    assert counted == [len(ids[0]) for ids in made]


@pytest.mark.parametrize("skip", [False, True])
def test_bad_rows_of_your_own_file_are_listed_by_line(tmp_path, capsys, monkeypatch, skip):
    monkeypatch.setenv("DCSFT_CACHE", str(tmp_path / "cache"))
    for number in range(5):
        Pillow.new("RGB", (56, 56), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in (1, 3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    lines = [{"problem": "Which digit?", "solution": "1", "image": f"{number}.png"} for number in range(5)]
    lines[4]["problem"] = "Which <|image_pad|>?"
    lines.append(lines[0] | {"solution": "2"})
    (tmp_path / "mine.jsonl").write_text("\n\n".join(map(json.dumps, lines)))  # every other line is blank
    words = ["train", "grpo", "--model=digits", f"--data={tmp_path / 'mine.jsonl'}", "--scorer=exact_word"]
    words += ["--batch-size=4", "--num-generations=2", "--max-steps=1", "--max-completion-length=3"]
    words += [f"--output={tmp_path / 'out'}", *(["--on-error=skip"] if skip else [])]
    assert main(words) == (0 if skip else 1)
    said = capsys.readouterr().err
    if skip:
        assert manifest.read(tmp_path / "out").notes["skipped"] == {"count": 3, "rows": [1, 3, 4]}
        assert "3 rows skipped" in said
    else:
        assert "mine.jsonl: 3 of 6 rows cannot be trained on: line 3: image " in said
        assert "; line 7: image " in said and "; line 9: the prompt has '<|image_pad|>' in its text" in said
        with pytest.raises(HarnessError, match="2 of 6 .*line 7: .*\\. Replace the file[.] ") as own:
            data.examined(conversations.from_rows(tmp_path / "mine.jsonl", None, None)).refuse()
        assert str(own.value).count("Replace the file") == 1
        assert "Traceback" not in said and "row" not in said.replace("rows", "").replace("the row", "")
