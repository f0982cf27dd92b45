"""Pixel limits are applied whatever form a configuration states its own in, and are recorded."""

import functools
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, Qwen2VLImageProcessor

from dcsft_harness import evaluation
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import checkpoint as models
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.base import UnavailableError
from dcsft_harness.models.checkpoint import saved_processor
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.pixel_limits import PixelLimits, limits_in_force, set_limits
from dcsft_harness.models.vllm import DcsftVLLM
from dcsft_harness.training import grpo, merging, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from dcsft_harness.training.merging import _pixels
from tests.fixtures.tiny_checkpoints import OWN_LIMITS, PIXEL_FORMS, PROCESSOR_FILES, checkpoint, restated
from tests.models.test_models_hf import GREEDY
from tests.models.test_models_vllm import drawn, fake  # noqa: F401 - a fixture
from tests.training.test_training_families import FEATURES
from tests.training.test_training_grpo import Parity

OWN = PixelLimits(*OWN_LIMITS)
ASKED = {"min_pixels": 784, "max_pixels": 112 * 112}
SIZE = (392, 308)
"""For the test image: 14 x 11 image tokens by the checkpoint's own limits, 4 x 3 by the requested ones."""
FREE, LIMITED = 154, 12


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(form, file) -> a checkpoint with that configuration."""
    made = {}

    def base(form, file=PROCESSOR_FILES[1]):
        if (form, file) not in made:
            folder = tmp_path_factory.mktemp("base") / "base"
            made[form, file] = restated(checkpoint("qwen2_5_vl"), folder, form, file)
        return made[form, file]

    return base


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def documents():
    return [{"image": picture(), "text": "Say B."}]


@functools.cache
def rows():
    messages = [{"role": "user", "content": "<image>Say B."}, {"role": "assistant", "content": "B"}]
    return Dataset.from_list(
        [{"messages": messages, "images": [picture(number)]} for number in range(2)], features=FEATURES
    )


def placed_hf(base, asked, **_):
    model = DcsftHF(pretrained=base, device="cpu", **asked)
    tokens = drawn(model, documents(), {**GREEDY, "max_new_tokens": 1})[0].n_prompt_tokens
    told = evaluation.pixels(model)
    width, height = model.box_convention.resized_size(SIZE)
    assert width * height // 28**2 == tokens - bare()
    return tokens - bare(), (told["min_pixels"], told["max_pixels"])


def placed_vllm(base, asked, **_):
    model = DcsftVLLM(pretrained=base, **asked)
    tokens = drawn(model, documents(), {**GREEDY, "max_new_tokens": 1})[0].n_prompt_tokens
    told = evaluation.pixels(model)
    return tokens - bare(), (told["min_pixels"], told["max_pixels"])


@functools.cache
def bare():
    """Tokens of the prompt without those of its image."""
    processor = AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl"))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Say B."}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return len(processor.tokenizer(text)["input_ids"]) - 1


def recorded(notes):
    """Image tokens per prompt by a run's ledger, and the limits in its notes."""
    limits = notes["pixel_limits"]
    prompts = notes["ledger"]["generated"] or notes["ledger"]["prompts"]
    return notes["ledger"]["prompt_tokens"] // prompts, (limits["low"], limits["high"])


@functools.cache
def trained(base, **asked):
    """An SFT adapter of a base and limits, and the run's notes: training and merging look at the same one."""
    place = Path(base).parent / f"trained{len(asked)}"
    rows().save_to_disk(str(place / "set" / "data"))
    config = SftConfig(max_steps=1, batch_size=2, **asked)
    return place / "adapter", sft.train_sft(base, place / "set", place / "adapter", config)


def placed_sft(base, asked, **_):
    tokens, limits = recorded(trained(base, **asked)[1])
    return tokens - bare(), limits


def placed_cold(base, asked, output):
    notes = sft.train_cold_start(base, rows(), output, ColdStartConfig(batch_size=2, **asked))
    tokens, limits = recorded(notes)
    return tokens - bare(), limits


def placed_grpo(base, asked, output):
    config = GrpoConfig(max_steps=1, batch_size=2, num_generations=2, max_completion_length=2, **asked)
    items = rows().add_column("item_id", ["item0", "item1"])
    tokens, limits = recorded(grpo.train_grpo(base, items, Parity(2), output, config))
    return tokens - bare(), limits


def placed_merge(base, asked, **_):
    """The prompts on which a merge is compared, under the limits in its adapter's manifest."""
    adapter, _ = trained(base, **asked)
    made = manifest.read(adapter, "adapter")
    settings = ModelSettings(pretrained=base, adapter=str(adapter), device="cpu", **_pixels(made))
    processor = models.open_processor(settings)
    generation = GenerationConfig(eos_token_id=[processor.tokenizer.eos_token_id])
    features = merging.read_probes(made, processor, generation, 1).features[0]
    return features["input_ids"].shape[1] - bare(), tuple(limits_in_force(processor))


PLACES = {
    "dcsft_hf": placed_hf,
    "dcsft_vllm": placed_vllm,
    "sft": placed_sft,
    "cold start": placed_cold,
    "grpo": placed_grpo,
    "merge": placed_merge,
}


@pytest.mark.grid
@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("form", list(PIXEL_FORMS))
def test_requested_limits_are_applied_and_recorded(form, place, bases, fake, tmp_path):  # noqa: F811
    found, limits = PLACES[place](bases(form), ASKED, output=tmp_path / "out")
    assert (found, limits) == (LIMITED, (784, 112 * 112))


@pytest.mark.grid
@pytest.mark.parametrize("place", ["dcsft_hf", "dcsft_vllm", "sft"])
@pytest.mark.parametrize("form", ["edges", "top level", "pixels in size", "one at the top level"])
def test_a_checkpoints_own_limits_are_applied_and_recorded(form, place, bases, fake, tmp_path):  # noqa: F811
    found, limits = PLACES[place](bases(form), {}, output=tmp_path / "out")
    assert (found, limits) == (FREE, tuple(OWN))


@pytest.mark.grid
@pytest.mark.parametrize("file", PROCESSOR_FILES)
@pytest.mark.parametrize("form", list(PIXEL_FORMS))
def test_every_form_is_read_from_either_file(form, file, bases):
    processor = saved_processor(bases(form, file))
    assert set_limits(processor, bases(form, file), None, None) == OWN
    assert set_limits(processor, bases(form, file), None, 112 * 112) == PixelLimits(OWN.low, 112 * 112)
    assert limits_in_force(processor) == PixelLimits(OWN.low, 112 * 112)


def test_limits_without_effect_are_an_error(bases, monkeypatch, tmp_path):
    """A processor that keeps its own limits whatever it is given."""
    original = Qwen2VLImageProcessor.__init__

    def stubborn(self, **given):
        original(self, **{**given, "min_pixels": OWN.low, "max_pixels": OWN.high})

    monkeypatch.setattr(Qwen2VLImageProcessor, "__init__", stubborn)
    message = r"min_pixels=784, max_pixels=12544: the Qwen2VLImageProcessor .* by min_pixels=3136 and max"
    with pytest.raises(HarnessError, match=message):
        DcsftHF(pretrained=bases("edges"), device="cpu", **ASKED)
    with pytest.raises(HarnessError, match=message):
        sft.train_sft(bases("edges"), rows(), tmp_path / "out", SftConfig(max_steps=1, batch_size=2, **ASKED))
    assert not (tmp_path / "out").exists()


def test_a_processor_that_does_not_resize_has_no_limits(bases):
    processor = saved_processor(bases("edges"))
    processor.image_processor.do_resize = False
    assert limits_in_force(processor) is None


def test_a_vllm_that_keeps_its_own_limits_is_an_error(bases, fake, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fake, "keeps_own_limits", True)
    model = DcsftVLLM(pretrained=bases("top level"), **ASKED)
    model.refused = {}  # not an item's fault, so none is skipped for it
    with pytest.raises(UnavailableError, match="make a prompt of .* tokens, but vLLM made .* no effect"):
        drawn(model, documents(), GREEDY)
    assert model.refused == {}
