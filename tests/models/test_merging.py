"""Merged checkpoints answer like base and adapter, in the base's type, or are not kept."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from dcsft_harness import stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.data.digits import path
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import merging as engine
from dcsft_harness.models import resources
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.decoding import SpecialTokens
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.training import merging, sft
from dcsft_harness.training.config import ColdStartConfig, SftConfig
from tests.fixtures.tiny_checkpoints import ONE_FAST, checkpoint, documents, qwen2_5_vl
from tests.models.test_models_adapter import LINEAR
from tests.models.test_models_hf import GREEDY, texts
from tests.training.test_training_families import ADAPTED, conversations

SETTINGS = SftConfig(max_steps=2, batch_size=4, learning_rate=1e-2, warmup_ratio=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Family -> an adapter with a manifest, trained on vision tower, aligner and language model."""
    made = {}

    def train(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            conversations().save_to_disk(str(folder / "set" / "data"))
            sft.train_sft(checkpoint(family), folder / "set", folder / "adapter", SETTINGS)
            made[family] = folder / "adapter"
        return made[family]

    return train


def plain(folder, base, target=LINEAR, scale=0.3, **options):
    """A PEFT-only adapter with large random updates."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=target, **options))
    for name, weight in peft_model.named_parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape) * (scale if "lora" in name else 0.05)
    peft_model.save_pretrained(folder)
    return folder


def merge(adapter, output, **options):
    return stages.STAGES["merge"](output, adapter=adapter, **{"device": "cpu", "prompts": 3, **options})


def refused(adapter, output, match, **options):
    """A merge that must fail and leave nothing."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(HarnessError, match=match):
        merge(adapter, output, **options)
    assert sorted(output.parent.iterdir()) == before


def test_weights_copied_into_memory_equal_the_mapped_ones(monkeypatch):
    monkeypatch.setattr(resources, "_BLOCK", 3000)  # several blocks per tensor, whose ends lie within pages
    model = AutoModelForImageTextToText.from_pretrained(path(), dtype="auto")
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in model.named_parameters()}
    resources.own_weights(model)
    for name, weight in model.named_parameters():
        assert weight.data_ptr() != before[name][0] and torch.equal(weight, before[name][1]), name
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_that_share_memory_keep_their_values():
    values = torch.arange(100_000.0)
    model = torch.nn.ParameterList([torch.nn.Parameter(values), torch.nn.Parameter(values)])
    resources.own_weights(model)
    assert all(torch.equal(weight, torch.arange(100_000.0)) for weight in model.parameters())


@pytest.mark.parametrize("family", ONE_FAST)
def test_a_merged_checkpoint_answers_like_base_and_adapter(family, trained, tmp_path):
    adapter, out = trained(family), tmp_path / "merged"
    notes = merge(adapter, out)
    assert notes["adapted"] == notes["changed"] == ADAPTED[family]
    assert notes["parity"]["source"] == "the training set"
    assert (notes["parity"]["prompts"], notes["parity"]["same_answers"]) == (3, 3)
    assert notes["parity"]["same_argmax"] == 1.0 and notes["unchanged"] == []
    assert notes["parity"]["in_deviations"] < 1e-3 < notes["parity"]["effect"]

    report = json.loads((out / "parity.json").read_text())
    assert report["parity"] == notes["parity"]
    assert (
        sum(module["part"] == "vision" for module in report["modules"].values()) == ADAPTED[family]["vision"]
    )
    made = manifest.read(out, "checkpoint")
    assert manifest.is_intact(out) and made.input_folder("adapter") == adapter.resolve()
    assert made.input_folder("model") == Path(checkpoint(family)).resolve()
    assert (out / "generation_config.json").read_bytes() == (
        Path(checkpoint(family)) / "generation_config.json"
    ).read_bytes()
    own, merged = (AutoProcessor.from_pretrained(name) for name in (checkpoint(family), out))
    assert merged.chat_template == own.chat_template

    docs = documents()[:3]
    unmerged = DcsftHF(pretrained=checkpoint(family), adapter=str(adapter), device="cpu", batch_size=3)
    alone = DcsftHF(pretrained=str(out), device="cpu", batch_size=3)
    assert texts(alone, docs, GREEDY) == texts(unmerged, docs, GREEDY)


@pytest.mark.slow
def test_a_merged_checkpoint_can_be_trained_and_merged_again(trained, tmp_path):
    merge(trained("qwen2_5_vl"), tmp_path / "merged")
    sft.train_sft(tmp_path / "merged", conversations(), tmp_path / "again", SETTINGS)
    notes = merge(tmp_path / "again", tmp_path / "twice")
    assert notes["base"] == str(tmp_path / "merged")
    # Trained on rows without a folder: the embedded digits are used instead.
    assert notes["parity"]["source"] == "dcsft_digits"
    sft.train_cold_start(
        tmp_path / "twice", conversations(), tmp_path / "cold", ColdStartConfig(batch_size=4)
    )


@pytest.mark.slow
def test_the_type_is_that_of_the_stored_weights_not_of_the_configuration(tmp_path):
    base = tmp_path / "half"
    shutil.copytree(path(), base)
    weights = load_file(base / "model.safetensors")
    half = {name: value.bfloat16() for name, value in weights.items()}
    save_file(half, base / "model.safetensors", {"format": "pt"})
    assert json.loads((base / "config.json").read_text())["dtype"] == "float32"
    adapter = plain(tmp_path / "adapter", base, LINEAR, scale=0.02)
    notes = merge(adapter, tmp_path / "merged", base=str(base))
    assert notes["dtype"] == "bfloat16"
    kinds = {value.dtype for value in load_file(tmp_path / "merged" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert 1e-4 < notes["parity"]["typical"] < 0.1 < notes["parity"]["effect"]


@pytest.mark.slow
def test_updates_lost_to_rounding_in_the_bases_type_are_named(tmp_path):
    base = tmp_path / "half"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_5_vl"), dtype=torch.bfloat16)
    model.save_pretrained(base)
    AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl")).save_pretrained(base)
    adapter = plain(tmp_path / "adapter", base, r".*\.qkv", scale=0.0)
    weights = load_file(adapter / "adapter_model.safetensors")
    tiny = {name: value * 0 + 1e-9 for name, value in weights.items()}
    save_file(tiny, adapter / "adapter_model.safetensors", {"format": "pt"})
    notes = merge(adapter, tmp_path / "merged")
    assert notes["adapted"]["vision"] == 2 and notes["changed"]["vision"] == 0
    assert notes["parity"]["rounded_away"] == notes["unchanged"]
    assert len(notes["unchanged"]) == 2 and all(".qkv" in name for name in notes["unchanged"])


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("options", "tied"),
    [
        ({"use_dora": True}, False),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"modules_to_save": ["patch_embed", "merger"]}, False),
        ({"bias": "lora_only"}, False),
        ({"target": r".*embed_tokens|.*lm_head|.*q_proj"}, True),
        ({"target": r".*embed_tokens|.*q_proj"}, True),
        ({"target": r".*patch_embed\.proj|.*v_proj"}, True),
    ],
)
def test_other_peft_adapters_are_merged_too(options, tied, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(checkpoint("qwen2_5_vl"), base)
    if tied:
        model = AutoModelForImageTextToText.from_pretrained(base)
        for config in (model.config, model.config.text_config):
            config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(base)
    adapter = plain(tmp_path / "adapter", base, **options)
    notes = merge(adapter, tmp_path / "merged")
    assert notes["changed"] == notes["adapted"] and notes["parity"]["in_deviations"] < 1e-3
    assert notes["parity"]["effect"] > 0.01 and notes["trained_on"] is None
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    shared = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    ends = "lm_head" in str(options) or "embed_tokens" in str(options)
    assert shared is (tied and (not ends or "ensure_weight_tying" in options))


@pytest.mark.parametrize("family", ONE_FAST)
def test_a_greedy_answer_and_its_logits_come_from_one_pass_over_the_prompt(family):
    name = checkpoint(family)
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(name)
    generation = SpecialTokens.of(processor.tokenizer, GenerationConfig()).neutral_config()
    generation.max_new_tokens, generation.do_sample, generation.eos_token_id = 5, False, None
    generation.repetition_penalty = 1.0  # transformers takes an open one from the checkpoint
    lengths = []
    model.register_forward_hook(lambda module, given, output: lengths.append(output.logits.shape[1]))
    for features in merging.read_probes(None, processor, generation, 2).features:
        lengths.clear()
        generated = engine.read_outputs(model, features, generation)
        assert len(generated.answer) == 5 and lengths[1:] == [1] * 4
        forced = engine.read_outputs(model, features, generated.answer)
        assert len(generated.logits) == len(forced.logits) == engine.POSITIONS
        torch.testing.assert_close(generated.logits, forced.logits, rtol=1e-3, atol=1e-4)
        assert generated.likeliest().tolist() == forced.likeliest().tolist() == generated.answer


def test_images_of_a_comparison_are_small_whatever_the_processors_minimum(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(checkpoint("qwen2_5_vl"), base)
    processor = AutoProcessor.from_pretrained(base)
    processor.image_processor.size = {"shortest_edge": 448**2, "longest_edge": 448**2}
    processor.save_pretrained(base)
    settings = ModelSettings(pretrained=str(base), adapter=str(plain(tmp_path / "adapter", base)))
    _, processor, generation = merging._prepared(settings, merging.MergeConfig())
    probes = merging.read_probes(None, processor, generation, 2, 224**2)
    patches = [int(one["image_grid_thw"].prod()) for one in probes.features]
    assert len(patches) == 2 and all(0 < number <= (224 / 14) ** 2 for number in patches)


@pytest.mark.slow
def test_one_model_is_in_memory_at_a_time(trained, tmp_path, monkeypatch):
    alive, load = [], engine._load

    def counted(*given):
        gc.collect()
        assert not [model for model in alive if model() is not None]
        model = load(*given)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(engine, "_load", counted)
    merge(trained("qwen2_5_vl"), tmp_path / "merged")
    assert len(alive) == 2


def in_shards(folder):
    """A base in several files."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_5_vl"))
    model.save_pretrained(folder, max_shard_size="200KB")
    AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl")).save_pretrained(folder)
    return folder


def test_a_merge_has_its_bases_files_and_shares_all_unadapted_weights(tmp_path, monkeypatch):
    base = in_shards(tmp_path / "base")
    adapter = plain(tmp_path / "adapter", base, r".*\.(q_proj|qkv)")
    monkeypatch.setattr(engine, "_merged", lambda *_: pytest.fail("merged as a whole"))
    notes = merge(adapter, tmp_path / "merged")
    files = sorted(path.name for path in base.glob("model*"))
    assert len(files) > 3 and files == sorted(path.name for path in (tmp_path / "merged").glob("model*"))
    other = []
    for name in files:
        if name.endswith(".json"):
            assert (base / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
            continue
        before, after = load_file(base / name), load_file(tmp_path / "merged" / name)
        assert list(before) == list(after)
        assert (base / name).stat().st_size == (tmp_path / "merged" / name).stat().st_size
        other += [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert len(other) == sum(notes["adapted"].values()) > 3
    assert all(key.endswith(("q_proj.weight", "qkv.weight")) for key in other)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({}, False),
        ({"use_rslora": True}, False),
        ({"use_dora": True}, False),
        ({"modules_to_save": ["merger"]}, False),
        ({"target": r".*embed_tokens|.*q_proj"}, False),
        ({"target": r".*patch_embed\.proj|.*v_proj"}, False),
        ({"bias": "lora_only"}, True),
    ],
)
def test_merging_modules_one_by_one_equals_peft_merging_all(options, whole, tmp_path, monkeypatch):
    base = checkpoint("qwen2_5_vl")
    adapter = plain(tmp_path / "adapter", base, **options)
    called, by_module = [], engine._merged
    monkeypatch.setattr(engine, "_merged", lambda model: called.append(model) or by_module(model))
    merge(adapter, tmp_path / "one")
    assert bool(called) is whole
    monkeypatch.setattr(engine, "_by_module", lambda *_: False)
    merge(adapter, tmp_path / "all")
    one, all_ = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in ("one", "all")
    )
    assert one.keys() == all_.keys() and all(torch.equal(one[key], all_[key]) for key in one)


def test_large_checkpoints_merged_at_once_are_sharded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_SHARD", "200KB")
    adapter = plain(tmp_path / "adapter", checkpoint("qwen2_5_vl"), bias="lora_only")
    merge(adapter, tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("model-0000*.safetensors"))) > 2


def wrapping(change):
    """`wrap`, with a change to each of the vision tower's adapted modules."""
    wrap = engine.wrap

    def changed(*given):
        peft_model = wrap(*given)
        for name, module in peft_model.named_modules():
            if "visual" in name and hasattr(module, "merge"):
                change(module)
        return peft_model

    return changed


def test_vision_weights_lost_while_merging_are_noticed(trained, tmp_path, monkeypatch):
    adapter = trained("qwen2_5_vl")
    visual, merged = [], engine._merged_alone

    def forgetful(module):
        before = dict(engine.original(module).state_dict())
        tensors, hashed = merged(module)
        return (before if module in visual else tensors), hashed

    monkeypatch.setattr(engine, "_merged_alone", forgetful)
    monkeypatch.setattr(engine, "wrap", wrapping(visual.append))
    refused(adapter, tmp_path / "merged", r"12 adapted modules are not what was saved \(model\.visual\.")


def test_modules_that_peft_does_not_merge_are_noticed(trained, tmp_path, monkeypatch):
    adapter = trained("qwen2_5_vl")

    monkeypatch.setattr(engine, "wrap", wrapping(lambda one: setattr(one, "merge", lambda **named: None)))
    refused(adapter, tmp_path / "merged", r"12 adapted modules stay as they were \(model\.visual\.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_bias": True, "target": r".*o_proj"}, "the base layer has no bias. Use dcsft_hf"),
        ({"init_lora_weights": "pissa_niter_4", "target": r".*\.q_proj"}, "pissa_niter_4 .*base at random"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(options, said, tmp_path):
    refused(plain(tmp_path / "adapter", checkpoint("qwen2_5_vl"), **options), tmp_path / "merged", said)


def test_a_merged_model_with_other_answers_is_refused(trained, tmp_path, monkeypatch):
    load = engine._load

    def damaged(path, *given):
        model = load(path, *given)
        if "unfinished" in path:
            model.get_input_embeddings().weight.data.mul_(1.5)
        return model

    monkeypatch.setattr(engine, "_load", damaged)
    refused(trained("qwen2_5_vl"), tmp_path / "merged", "logits change by .* standard deviations")


@pytest.mark.slow
def test_another_base_must_be_requested_and_fit(trained, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(trained("qwen2_5_vl"), adapter)
    data = json.loads((adapter / "manifest.json").read_text())
    other = qwen2_5_vl(tmp_path / "other", seed=5)
    data["inputs"]["model"]["path"] = "../other"
    (adapter / "manifest.json").write_text(json.dumps(data))
    refused(adapter, tmp_path / "merged", "the model that .* has changed. Restore it, or name it: --base")
    shutil.rmtree(tmp_path / "other")
    refused(
        adapter,
        tmp_path / "merged",
        "is missing: .*/other, .*does not exist. Restore it, or name it: --base",
    )
    other = qwen2_5_vl(tmp_path / "other", seed=5)
    assert merge(adapter, tmp_path / "merged", base=str(other))["trained_on"] is False
    assert merge(adapter, tmp_path / "own", base=checkpoint("qwen2_5_vl"))["trained_on"] is True
    wider = qwen2_5_vl(tmp_path / "wider", width=128)
    refused(adapter, tmp_path / "no", "does not fit .*wider", base=str(wider))
    refused(adapter, tmp_path / "no", "does not fit", base=checkpoint("idefics3"))


@pytest.mark.slow
def test_a_base_whose_files_have_changed_is_refused(trained, tmp_path):
    merge(trained("qwen2_5_vl"), tmp_path / "base")
    adapter = plain(tmp_path / "adapter", tmp_path / "base")
    shutil.copyfile(Path(checkpoint("qwen2_5_vl")) / "model.safetensors", tmp_path / "base/model.safetensors")
    refused(adapter, tmp_path / "merged", "base/model.safetensors does not match manifest.json")


def test_a_folder_without_an_adapter_is_refused(trained, tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "out", "adapter .*nowhere does not exist")
    refused(Path(checkpoint("qwen2_5_vl")), tmp_path / "out", "not an adapter: it has no adapter_config.json")
    merge(trained("qwen2_5_vl"), tmp_path / "merged")
    refused(tmp_path / "merged", tmp_path / "out", "holds a checkpoint, where an adapter is needed")
    changed = tmp_path / "changed"
    shutil.copytree(trained("qwen2_5_vl"), changed)
    (changed / "adapter_config.json").write_text("{}")
    refused(changed, tmp_path / "out", "changed/adapter_config.json does not match manifest.json")
    (changed / "manifest.json").unlink()
    refused(changed, tmp_path / "out", "names no base. Name the base to merge into with --base")
    (changed / "adapter_config.json").write_text("[")
    refused(changed, tmp_path / "out", "cannot be read")
    refused(trained("qwen2_5_vl"), tmp_path / "out", "--prompts 0 is out of range", prompts=0)
    refused(trained("qwen2_5_vl"), tmp_path / "out", "unknown option 'promts'", promts=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_adapter_is_refused_before_the_base_is_loaded(value, tmp_path, monkeypatch):
    adapter = plain(tmp_path / "adapter", checkpoint("qwen2_5_vl"))
    weights = load_file(adapter / "adapter_model.safetensors")
    name = sorted(weights)[3]
    weights[name][0, 0] = value
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    monkeypatch.setattr(engine, "_load", lambda *_: pytest.fail("loaded"))
    refused(adapter, tmp_path / "merged", f"1 tensor is not finite \\({name}")


def test_a_quantized_base_and_a_small_disk_are_refused(trained, tmp_path, monkeypatch):
    base = tmp_path / "quantized"
    shutil.copytree(checkpoint("qwen2_5_vl"), base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    refused(trained("qwen2_5_vl"), tmp_path / "merged", "is quantized", base=str(base))
    full = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    monkeypatch.setattr(engine, "_load", lambda *_: pytest.fail("loaded"))
    refused(
        trained("qwen2_5_vl"), tmp_path / "merged", "the checkpoint takes .* MiB, but only 0.0 MiB are free"
    )
