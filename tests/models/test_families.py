"""What works for each family of models, and what is refused: checks the table in docs/families.md."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoProcessor

from dcsft_harness import coordinates, stages
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import checkpoint as models
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.batching import Batcher, process, process_one
from dcsft_harness.models.chat_template import render
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.resources import Arithmetic, patches_per_token
from dcsft_harness.training import grpo, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from tests.fixtures.tiny_checkpoints import (
    FAMILIES,
    OTHERS,
    checkpoint,
    documents,
    labels_seen,
    requests_for,
    without_num2words,
)
from tests.training.test_training_families import conversations
from tests.training.test_training_grpo import Parity, drawn  # noqa: F401 - a fixture

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@dataclass(frozen=True)
class Works:
    """What works of a family.

    Attributes:
        name: as published.
        shared: whether the samples of an item share one prefill.
        forked: whether they get copies of the states after one prefill otherwise.
        whole: whether batches are made by the processor as a whole.
        sft: what TRL's SFT does not take of it; None where it takes all.
        grpo: what TRL's GRPO does not take of it; None where it takes all.
        limits: whether it has pixel limits.
        boxes: the coordinates that it writes; None where `box_space` has to say.
    """

    name: str
    shared: bool = False
    forked: bool = False
    whole: bool = False
    sft: str | None = None
    grpo: str | None = None
    limits: bool = False
    boxes: str | None = None


TABLE = {
    "qwen2_vl": Works("Qwen2-VL", shared=True, limits=True, boxes="norm1000"),
    "qwen2_5_vl": Works("Qwen2.5-VL", shared=True, limits=True, boxes="resized"),
    "qwen3_vl": Works("Qwen3-VL", shared=True, limits=True, boxes="norm1000"),
    "qwen3_5": Works("Qwen3.5", forked=True, limits=True, boxes="norm1000"),
    "internvl": Works("InternVL3", shared=True, boxes="norm1000"),
    "llava_onevision": Works("LLaVA-OneVision", shared=True, grpo="batch_num_images"),
    "idefics3": Works("Idefics3", shared=True),
    "smolvlm": Works("SmolVLM", shared=True),
    "glm4v": Works("GLM-4.1V, GLM-4.5V", shared=True, limits=True),
    "gemma3": Works("Gemma 3", forked=True),
    "gemma4": Works("Gemma 4", forked=True),
    "minicpmv4_6": Works("MiniCPM-V 4.6", forked=True, whole=True, grpo="target_sizes"),
    "molmo2": Works(
        "Molmo2",
        shared=True,
        whole=True,
        sft="makes 2 tokens .* of an answer of 1",
        grpo="image_token_pooling",
    ),
    "kimi_k25": Works("Kimi K2.5", forked=True, grpo="rows for an image that are not tiles"),
    "paligemma": Works("PaliGemma", sft="text without an image", grpo="unequal lengths"),
}
QUICK = ("qwen2_vl", "molmo2")
"""Families whose samples are compared in the fast tests, too."""
SAMPLED = {"max_new_tokens": 8, "temperature": 1.0}
GREEDY = {"max_new_tokens": 8}


def table() -> str:
    """The table of docs/families.md."""
    lines = [
        "| family | `model_type` | prompt is prefilled | its states | a batch is made from | SFT | "
        "GRPO | pixel limits | boxes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, works in TABLE.items():
        cells = [
            works.name,
            f"`{kind}`",
            "once per item" if works.shared or works.forked else "once per sample",
            "are shared" if works.shared else "are copied" if works.forked else "are recomputed",
            "the processor's batch" if works.whole else "single prompts",
            "yes" if works.sft is None else "refused",
            "yes" if works.grpo is None else "refused",
            "yes" if works.limits else "refused",
            f"`{works.boxes}`" if works.boxes else "set by `box_space`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def num2words():
    """Lets SmolVLM's processor open, whether or not the package is installed that it needs for videos."""
    with without_num2words():
        yield


@pytest.fixture
def weightless(monkeypatch):
    """Fails if weights are read."""
    monkeypatch.setattr("dcsft_harness.models.checkpoint.open_weights", lambda *a, **k: pytest.fail("loaded"))


def families(slow_but=()):
    return [
        pytest.param(family, marks=() if family in slow_but else pytest.mark.slow) if slow_but else family
        for family in TABLE
    ]


def items():
    rows = conversations()
    return rows.add_column("item_id", [f"item{number}" for number in range(len(rows))])


def test_every_family_of_the_fixtures_is_in_the_table():
    assert TABLE.keys() == FAMILIES.keys() | OTHERS.keys()


def test_the_page_shows_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), f"put this into {PAGE.name}:\n{table()}"


def responses(model, docs, given, repeats=1):
    seen = []
    model.on_batch = seen.extend
    model.generate_until(requests_for(model, docs, given, repeats))
    return {(one.doc_id, one.sample_index): one.response for one in seen}


def by_transformers(model, doc):
    """The greedy response of `generate` to a single prompt as the processor prepares it."""
    content = [{"type": "image"}, {"type": "text", "text": doc["text"]}]
    chat = [{"role": "user", "content": content}]
    text = model.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = process(model.processor, [text], [[doc["image"]]])
    with torch.inference_mode():
        output = model._model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return model.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", families(slow_but=QUICK))
def test_a_batch_gives_the_responses_of_single_prompts_and_of_generate(family):
    docs = documents()[:6]
    one, four = (DcsftHF(pretrained=checkpoint(family), device="cpu", batch_size=size) for size in (1, 4))
    assert responses(four, docs, SAMPLED, 2) == responses(one, docs, SAMPLED, 2)
    greedy = responses(four, docs, GREEDY)
    assert greedy == responses(one, docs, GREEDY)
    assert greedy == {(number, 0): by_transformers(one, doc) for number, doc in enumerate(docs)}
    turned = [{**doc, "image": docs[number - 1]["image"]} for number, doc in enumerate(docs)]
    assert responses(one, turned, GREEDY) != greedy, "the pictures make no difference"
    assert four._engine.shares_prompts == TABLE[family].shared
    assert four._engine._batcher.way == ("processed" if TABLE[family].whole else "joined")


@pytest.mark.few(2)
@pytest.mark.parametrize("family", [family for family, works in TABLE.items() if not works.shared])
def test_an_image_is_encoded_once_where_states_are_copied_and_draws_stay_the_same(family):
    docs = documents()[:3]
    model = DcsftHF(pretrained=checkpoint(family), device="cpu", batch_size=3)
    model.generate_until(requests_for(model, docs[:1], GREEDY))  # tries what the model allows
    assert model._engine.forks == TABLE[family].forked
    prompts, batch = [], model._engine._batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model._engine, "_batch", lambda rows: prompts.append(len(rows)) or batch(rows))
        found = responses(model, docs, SAMPLED, 3)
        assert sum(prompts) == (3 if TABLE[family].forked else 9)
        model._engine.forks = False
        assert found == responses(model, docs, SAMPLED, 3)


@pytest.mark.parametrize("family", TABLE)
def test_batches_are_made_as_the_table_says(family):
    processor = AutoProcessor.from_pretrained(checkpoint(family))
    batcher = Batcher(processor, processor.tokenizer.pad_token_id)
    assert len(batcher.trials) == 3
    assert batcher.way == ("processed" if TABLE[family].whole else "joined")


def test_a_model_whose_rows_affect_each_other_gets_one_prompt_at_a_time(caplog):
    """A dependence that no batching method removes is found on the model, and reported."""
    docs = documents()[:4]
    plain = DcsftHF(pretrained=checkpoint("qwen2_vl"), device="cpu", batch_size=4)
    wanted = responses(plain, docs, SAMPLED, 2)
    model = DcsftHF(pretrained=checkpoint("qwen2_vl"), device="cpu", batch_size=4)
    vision = type(model._model.model).get_image_features

    def first_picture_alone(self, pixel_values, image_grid_thw=None, **more):
        found = vision(self, pixel_values, image_grid_thw, **more)
        for later in found.pooler_output[1:]:
            later[:] = found.pooler_output[0][0]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model._model.model), "get_image_features", first_picture_alone)
        assert responses(model, docs, SAMPLED, 2) == wanted
    assert model._engine._batcher.way == "single"
    assert len([record for record in caplog.records if "one by one, which is slower" in record.message]) == 1


@pytest.mark.parametrize("family", ["internvl", "gemma3", "gemma4", "qwen3_5"])
def test_flops_count_image_patches_without_padding(family):
    settings = ModelSettings(pretrained=checkpoint(family))
    config, processor = models.open_config(settings), models.open_processor(settings)
    costs = Arithmetic(models.skeleton(config))
    for doc in documents()[:3]:
        found = processor.image_processor(images=[doc["image"]], return_tensors="pt")
        if family == "gemma4":  # a token is pooled from a square of patches
            wanted = int(found["num_soft_tokens_per_image"][0]) * config.vision_config.pooling_kernel_size**2
        elif family == "qwen3_5":
            wanted = int(found["image_grid_thw"].prod())
        else:
            tiles, _, height, width = found["pixel_values"].shape
            side = 16 if family == "gemma3" else config.vision_config.patch_size[0]
            wanted = tiles * (height // side) * (width // side)
        assert costs.patches(found) == wanted > 0


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", "qwen3_vl", "glm4v", "internvl", "gemma4", "gemma3", "qwen3_5", "kimi_k25"]
)
def test_flops_equal_those_counted_by_torch(family):
    settings = ModelSettings(pretrained=checkpoint(family))
    processor = models.open_processor(settings)
    model = models.load_model(settings, torch.device("cpu"))
    costs, (doc, *_) = Arithmetic(model), documents()
    content = [{"type": "image"}, {"type": "text", "text": doc["text"]}]
    text = render(processor, [{"role": "user", "content": content}], family, add_generation_prompt=True)
    features = process_one(processor, text, [doc["image"]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**features, logits_to_keep=2)
    products = ("mm", "addmm", "convolution")  # attention between tokens is not counted

    def counted(*parts):
        found = [counter.get_flop_counts()[part] for part in parts]
        return sum(one[op] for one in found for op in one if str(op).split(".")[1] in products)

    top = type(model).__name__
    language = counted(f"{top}.model.language_model", f"{top}.lm_head")
    vision = counted("Global") - language
    tokens, patches = features["input_ids"].shape[-1], costs.patches(features)
    if family == "kimi_k25":  # torch does not count experts, of which each token uses 2 of 4
        experts = [one.numel() for name, one in model.named_parameters() if ".experts." in name]
        assert len(experts) > 0
        language += 2 * tokens * sum(experts) * 2 / 4
    assert costs.forward(tokens, 0, 2) == pytest.approx(language, rel=0.001)
    # torch also counts class tokens and the patches that Gemma 4 pads images with.
    assert costs.forward(0, patches) == pytest.approx(vision, rel=0.15 if family == "gemma4" else 0.03)
    image_tokens = int((features["input_ids"] == model.config.image_token_id).sum())
    assert image_tokens * patches_per_token(model.config) == patches


@pytest.mark.parametrize("family", TABLE)
def test_pixel_limits_are_applied_or_refused_before_weights_are_read(family, weightless):
    settings = ModelSettings(pretrained=checkpoint(family), min_pixels=64 * 64, max_pixels=128 * 128)
    if not TABLE[family].limits:
        with pytest.raises(HarnessError, match="ImageProcessor of .* has no pixel limits"):
            DcsftHF(pretrained=settings.pretrained, min_pixels=64 * 64, max_pixels=128 * 128)
        return
    images = models.open_processor(settings).image_processor
    picture = documents()[0]["image"].resize((300, 400))
    grid = images(picture, return_tensors="pt")["image_grid_thw"][0]
    assert 64 * 64 <= int(grid.prod()) * images.patch_size**2 <= 128 * 128


@pytest.mark.parametrize("family", TABLE)
def test_boxes_are_in_the_familys_coordinates_or_the_given_ones(family, monkeypatch):
    settings = ModelSettings(pretrained=checkpoint(family))
    config, processor = models.open_config(settings), models.open_processor(settings)
    assert models.convention(config, processor).space == TABLE[family].boxes
    assert models.convention(config, processor, "norm1000").space == "norm1000"
    if family == "glm4v" or not TABLE[family].limits:
        with pytest.raises(HarnessError, match="box_space=resized: .* does not resize"):
            models.convention(config, processor, "resized")
    else:
        size = models.convention(config, processor, "resized").resized_size((300, 400))
        grid = processor.image_processor(documents()[0]["image"].resize((300, 400)), return_tensors="pt")
        _, rows, columns = grid["image_grid_thw"][0].tolist()
        patch = processor.image_processor.patch_size
        assert size == (columns * patch, rows * patch)


@pytest.mark.parametrize("family", [family for family, works in TABLE.items() if works.grpo])
def test_grpo_is_refused_in_one_sentence_before_weights_are_read(family, weightless, tmp_path):
    with pytest.raises(HarnessError, match=rf"TRL's GRPO does not take .*{TABLE[family].grpo}"):
        grpo.train_grpo(checkpoint(family), items(), Parity(4), tmp_path / "out", GrpoConfig(max_steps=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", [family for family, works in TABLE.items() if works.sft])
def test_sft_is_refused_in_one_sentence_before_weights_are_read(family, weightless, tmp_path):
    for train, config in ((sft.train_sft, SftConfig()), (sft.train_cold_start, ColdStartConfig())):
        with pytest.raises(HarnessError, match=rf"TRL's SFT does not take .*{TABLE[family].sft}"):
            train(checkpoint(family), conversations(), tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_every_verb_names_a_missing_package(weightless, monkeypatch, tmp_path):
    base = checkpoint("smolvlm")
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    verbs = {
        "sample, evaluate": lambda: DcsftHF(pretrained=base, device="cpu"),
        "sft": lambda: sft.train_sft(base, conversations(), tmp_path / "out"),
        "cold start": lambda: sft.train_cold_start(base, conversations(), tmp_path / "out"),
        "grpo": lambda: grpo.train_grpo(base, items(), Parity(4), tmp_path / "out"),
    }
    for verb in verbs.values():
        with pytest.raises(HarnessError, match="needs a package that is not installed .*num2words"):
            verb()


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gemma4"))]
)
def test_grpo_marks_exactly_the_image_tokens(family, tmp_path, drawn):  # noqa: F811
    """Prompts of a batch differ in length: padding shifts the places of their images."""
    grpo.train_grpo(
        checkpoint(family),
        items(),
        Parity(4),
        tmp_path / "out",
        GrpoConfig(max_steps=1, batch_size=8, num_generations=2, max_completion_length=2),
    )
    image = AutoConfig.from_pretrained(checkpoint(family)).image_token_id
    for _, _, found in drawn:
        kinds = found["mm_token_type_ids" if "mm_token_type_ids" in found else "token_type_ids"]
        ids = found["prompt_ids"]
        assert len(set(found["prompt_mask"].sum(1).tolist())) > 1
        assert torch.equal(kinds[:, : ids.shape[1]] == 1, ids == image)


@pytest.mark.slow
@pytest.mark.parametrize("family", TABLE)
def test_training_merging_and_evaluation_work_where_the_table_says_so(family, tmp_path, monkeypatch):
    base = checkpoint(family)
    if TABLE[family].grpo is None:
        config = GrpoConfig(max_steps=1, batch_size=4, num_generations=2, max_completion_length=2)
        notes = grpo.train_grpo(base, items(), Parity(4), tmp_path / "rl", config)
        assert notes["ledger"]["generated"] == 4
    scored = base
    if TABLE[family].sft is None:
        seen = labels_seen(monkeypatch)
        conversations().save_to_disk(str(tmp_path / "set" / "data"))
        config = SftConfig(max_steps=2, batch_size=4, learning_rate=1e-2, warmup_ratio=0)
        notes = sft.train_sft(base, tmp_path / "set", tmp_path / "adapter", config)
        assert bool(notes["pixel_limits"]) == TABLE[family].limits
        decode = AutoProcessor.from_pretrained(base).tokenizer.decode
        assert {decode(row[row != -100])[:7] for row in seen[0]} >= {"a goose", "7 boxes", "the cat"}
        notes = stages.STAGES["merge"](
            tmp_path / "merged", adapter=tmp_path / "adapter", device="cpu", prompts=3
        )
        assert notes["changed"] == notes["adapted"]
        assert notes["parity"]["same_answers"] == 3
        scored = tmp_path / "merged"
    notes = stages.STAGES["evaluate"](
        tmp_path / "scores",
        model_args=f"pretrained={scored},device=cpu,batch_size=4,box_space=norm1000",
        tasks=["dcsft_digits", "dcsft_digits_ground"],
        limit=4,
    )
    assert {name: task["n"] + task["unscored"] for name, task in notes["tasks"].items()} == dict.fromkeys(
        ("dcsft_digits", "dcsft_digits_ground"), 4
    )
    assert coordinates.declared().space == "norm1000"
