"""Pre-training: what is drawn, for which architecture, and the second architecture end to end."""

import collections
import hashlib
import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.data import digits
from dcsft_harness.data.digits import curriculum, drawing, pretrain
from dcsft_harness.data.digits.curriculum import PretrainConfig
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.engine import objection
from dcsft_harness.scoring import SCORERS
from dcsft_harness.stages import STAGES


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def drawn(progress, *families):
    return curriculum.batch(drawing.split("pretrain"), rng(), progress, 64, *families)


@pytest.fixture(scope="module")
def tokens():
    return AutoTokenizer.from_pretrained(digits.path())


def test_the_embedded_checkpoints_examples_are_drawn_as_they_were():
    # The shipped weights were trained on this stream: after a change they cannot be rebuilt.
    said = [[one.family, one.prompt, one.answer] for progress in (0.05, 0.2, 0.8) for one in drawn(progress)]
    assert hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16] == "e642e42e324d2760"
    assert PretrainConfig().families == curriculum.FAMILIES
    named = [[one.family, one.prompt, one.answer] for one in drawn(0.8, curriculum.FAMILIES)]
    assert named == said[-64:]


@pytest.mark.slow
def test_the_tokenizers_texts_and_what_is_drawn_after_them_are_as_they_were():
    """A faster drawing has to leave the generator where it was: the first batch comes from the same one."""
    stream = rng()
    texts = curriculum.corpus(drawing.split("pretrain"), stream)
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == "3d9c42167af727b6"
    assert stream.bit_generator.state["state"]["state"] == 248992409276037904466994895505760447409


def test_only_the_chosen_families_are_drawn_even_early():
    counts = collections.Counter(one.family for one in drawn(0.8, ("naming", "ground")))
    assert counts["naming"] + counts["ground"] == 64 and counts["ground"] > counts["naming"] > 8
    assert {one.family for one in drawn(0.0, ("sum",))} == {"sum"}


def test_converting_boxes_to_thousandths_changes_nothing_else():
    for example in curriculum.batch(drawing.split("pretrain"), rng(3), 0.8, 60, ("scene", "ground", "sum")):
        scaled = curriculum.thousandths(example)
        assert scaled._replace(answer="") == example._replace(answer="")
        if example.family == "ground":
            box = json.loads(example.answer)
            verdict = SCORERS["box_iou"](
                scaled.answer, answer=box, image_size=example.image.size, box_space="norm1000"
            )
            assert verdict.score == 1.0 and json.loads(scaled.answer) != box
        elif "[" not in example.answer:
            assert scaled == example
        else:
            assert scaled.answer.count("[") == example.answer.count("[")


@pytest.mark.parametrize("architecture", pretrain.ARCHITECTURES)
def test_the_fast_inputs_equal_the_processors(architecture, tokens):
    processor = pretrain.blank_processor(tokens, architecture)
    for example in curriculum.batch(drawing.split("pretrain"), rng(1), 0.8, 8, ("naming", "scene", "sum")):
        fast = pretrain.collate([example], tokens)
        content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
        turns = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        slow = processor(text=[text], images=[example.image], return_tensors="pt")
        length = slow["input_ids"].shape[1]
        assert fast["input_ids"][:, :length].equal(slow["input_ids"])
        assert fast["mm_token_type_ids"][:, :length].equal(slow["mm_token_type_ids"].long())
        assert fast["image_grid_thw"].equal(slow["image_grid_thw"])
        torch.testing.assert_close(fast["pixel_values"], slow["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", pretrain.ARCHITECTURES)
def test_each_architecture_has_its_size_and_shares_prompts(architecture, tokens):
    torch.manual_seed(0)
    model = pretrain.blank_model(tokens, architecture).eval()
    assert model.config.model_type == architecture
    assert 1_500_000 < sum(weight.numel() for weight in model.parameters()) < 2_000_000
    inputs = pretrain.collate(drawn(0.8, ("naming",))[:1], tokens)
    del inputs["labels"]
    assert objection(model, inputs) is None


def test_every_frequency_of_interleaved_sections_has_an_axis(tokens):
    config = pretrain.blank_model(tokens, "qwen3_vl").config.text_config
    time, rows, columns = config.rope_parameters["mrope_section"]
    assert time + rows + columns == config.head_dim // 2
    taken = {*range(1, 3 * rows, 3), *range(2, 3 * columns, 3)}
    assert len(taken) == rows + columns and max(taken) < config.head_dim // 2


def test_every_parameter_of_the_second_architecture_learns(tokens):
    torch.manual_seed(0)
    model = pretrain.blank_model(tokens, "qwen3_vl")
    pretrain._losses(model, pretrain.collate(drawn(0.8)[:8], tokens)).mean().backward()
    assert [name for name, weight in model.named_parameters() if not weight.grad.any()] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "--steps 0 is out of range"),
        ({"steps": True}, "--steps true is not a whole number"),
        ({"batch_size": 1.5}, "--batch-size 1.5 is not a whole number"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"learning_rate": "fast"}, "--learning-rate fast is not a number"),
        ({"learning_rate": float("nan")}, "--learning-rate nan is not a finite number"),
        ({"architecture": "qwen3vl"}, "unknown --architecture value 'qwen3vl'. Did you mean qwen3_vl"),
        ({"families": ["name"]}, "unknown --families value 'name'. Did you mean naming"),
        ({"families": []}, "--families is empty"),
        ({"families": ["sum", "sum"]}, "--families sum,sum names a family twice"),
        ({"rate": 1}, "unknown option 'rate'"),
    ],
)
def test_invalid_settings_are_refused_before_the_first_step(tmp_path, options, said):
    with pytest.raises(HarnessError, match=said.replace("(", "\\(")):
        STAGES["digits pretrain"](tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_numbers_and_families_are_accepted_as_yaml_reads_them():
    config = PretrainConfig(learning_rate="3e-3", families="naming")
    assert (config.learning_rate, config.families) == (3e-3, ("naming",))
    assert PretrainConfig(families=["sum", "naming"]).families == ("naming", "sum")


CHAIN = """
name: other
stages:
  - {stage: base, verb: digits pretrain, steps: 3, batch_size: 4, learning_rate: 3e-3,
     architecture: qwen3_vl, families: [naming]}
  - {stage: cold, verb: train cold-start, model: "@base", data: dcsft_digits_cold, max_steps: 2}
  - {stage: rollouts, verb: sample, model_args: "pretrained=@cold,batch_size=8", task: dcsft_digits_pool,
     limit: 8}
  - {stage: labels, verb: label, rollouts: "@rollouts"}
  - {stage: curated, verb: curate, labels: "@labels", keep: [easy, medium, hard]}
  - {stage: sft, verb: train sft, model: "@cold", data: "@curated", max_steps: 2, batch_size: 4}
  - {stage: grpo, verb: train grpo, model: "@cold", data: "@curated", max_steps: 2, batch_size: 16}
  - {stage: scores, verb: evaluate, model_args: "pretrained=@cold,adapter=@sft,batch_size=8",
     tasks: [dcsft_digits], limit: 8}
"""


@pytest.mark.slow
def test_a_recipe_runs_the_second_architecture_through_the_whole_chain(tmp_path, capsys):
    (tmp_path / "other.yaml").write_text(CHAIN)
    command = ["run", str(tmp_path / "other.yaml"), "--output", str(tmp_path / "out")]
    assert main(command) == 0, capsys.readouterr().err
    notes = {
        name: manifest.read(tmp_path / "out" / name).notes for name in ("base", "sft", "grpo", "rollouts")
    }
    assert list(notes["base"]["losses"]) == ["naming"]
    # Three mergers of two layers each: one after the tower, two of deepstack.
    for name in ("sft", "grpo"):
        assert notes[name]["adapted"] == {"language": 28, "vision": 16, "aligner": 6}
    assert notes["rollouts"]["responses"] == 64 and notes["grpo"]["ledger"]["generated"] == 32
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().err.count("already done") == 8
