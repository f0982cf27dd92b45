"""Adapters are attached completely and unmerged, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from dcsft_harness.errors import HarnessError
from dcsft_harness.models.adapters import attach
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.checkpoint import check_adapter, open_config
from dcsft_harness.models.hf import DcsftHF
from tests.fixtures.tiny_checkpoints import checkpoint, documents, qwen2_5_vl
from tests.models.test_models_hf import GREEDY, load, texts

# Linear layers of the vision tower and of the language model.
LINEAR = r".*\.(qkv|proj|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|fc1|fc2|out_proj)"


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Family -> the folder of a random LoRA on both towers."""
    folders = {}
    for family in ("qwen2_5_vl", "qwen3_vl", "idefics3"):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=16, target_modules=LINEAR, init_lora_weights=False)
        folders[family] = tmp_path_factory.mktemp("adapter") / family
        get_peft_model(model, config).save_pretrained(folders[family])
    return folders


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "idefics3"])
def test_outputs_with_an_adapter_equal_those_of_peft(family, adapters):
    stored = load_file(adapters[family] / "adapter_model.safetensors")
    vision = [name for name in stored if "visual" in name or "vision" in name]
    assert 0 < len(vision) < len(stored)
    docs = documents()
    model = load(family, adapter=str(adapters[family]), batch_size=8)
    with_adapter = texts(model, docs, GREEDY)
    without = texts(load(family, batch_size=8), docs, GREEDY)
    assert all(one != other for one, other in zip(with_adapter, without, strict=True))
    assert sum("lora_A" in name for name, _ in model._model.named_parameters()) == len(stored) / 2

    base = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32)
    reference = PeftModel.from_pretrained(base, adapters[family]).eval()
    text = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}],
        tokenize=False,
    )
    inputs = model.processor(text=[text], images=[docs[0]["image"]], return_tensors="pt")
    with torch.no_grad():
        found, wanted = model._model(**inputs).logits, reference(**inputs).logits
    # Patches are embedded by another kernel; weights this large amplify its rounding.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 * float(wanted.std()))


@pytest.mark.slow
def test_a_batch_with_an_adapter_gives_the_responses_of_single_items(adapters):
    docs = documents()
    given = {"adapter": str(adapters["qwen2_5_vl"])}
    assert texts(load(**given, batch_size=8), docs, GREEDY) == texts(load(**given), docs, GREEDY)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_with_the_names_of_transformers_4_is_attached(options, tmp_path):
    base = checkpoint("qwen2_5_vl")
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    trained = get_peft_model(model, LoraConfig(r=4, **options)).eval()
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape)
    trained.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    stored = load_file(file)
    old = {name.replace("model.model.language_model.", "model.model."): one for name, one in stored.items()}
    assert old.keys() != stored.keys()
    save_file(old, file)
    settings = ModelSettings(pretrained=base, adapter=str(tmp_path))
    check_adapter(settings, open_config(settings))
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    found = attach(model, str(tmp_path), base).eval()
    tokens = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    assert torch.equal(found(**tokens).logits, trained(**tokens).logits)


def altered(adapters, tmp_path, change):
    """A copy of the adapter with its tensors passed through `change`."""
    folder = tmp_path / "altered"
    shutil.copytree(adapters["qwen2_5_vl"], folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return str(folder)


def drop_one(tensors):
    del tensors[sorted(tensors)[0]]


def drop_vision(tensors):
    for name in [name for name in tensors if "visual" in name]:
        del tensors[name]


def rename_one(tensors):
    name = sorted(tensors)[0]
    tensors[name.replace("lora_A", "elsewhere.lora_A")] = tensors.pop(name)


def add_one(tensors):
    tensors["base_model.model.model.language_model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 64)


def reshape_one(tensors):
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(4, tensors[name].shape[1] + 1)


@pytest.mark.parametrize("change", [drop_one, drop_vision, rename_one, add_one, reshape_one])
def test_a_partial_fit_is_refused_before_weights_are_loaded(change, adapters, tmp_path, monkeypatch):
    adapter = altered(adapters, tmp_path, change)
    base = checkpoint("qwen2_5_vl")
    monkeypatch.setattr("dcsft_harness.models.checkpoint.open_weights", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(HarnessError) as caught:
        DcsftHF(pretrained=base, adapter=adapter, device="cpu")
    assert adapter in str(caught.value) and base in str(caught.value)


def test_a_tensor_that_peft_silently_drops_is_noticed(adapters, monkeypatch):
    load_adapter = PeftModel.load_adapter

    def forgetful(self, *args, **kwargs):
        result = load_adapter(self, *args, **kwargs)
        name, weight = next((name, weight) for name, weight in self.named_parameters() if "lora_B" in name)
        if not weight.is_meta:
            weight.data.zero_()
        return result

    monkeypatch.setattr(PeftModel, "load_adapter", forgetful)
    with pytest.raises(HarnessError, match="1 of its tensors were not loaded"):
        load(adapter=str(adapters["qwen2_5_vl"]))


def test_the_adapter_of_another_base_is_refused(adapters, tmp_path):
    wider = str(qwen2_5_vl(tmp_path / "wider", width=128))
    for base, adapter in (
        (wider, adapters["qwen2_5_vl"]),
        (checkpoint("qwen2_5_vl"), adapters["qwen3_vl"]),
        (checkpoint("idefics3"), adapters["qwen2_5_vl"]),
    ):
        with pytest.raises(HarnessError) as caught:
            DcsftHF(pretrained=base, adapter=str(adapter), device="cpu")
        assert str(adapter) in str(caught.value) and base in str(caught.value)


def test_a_folder_without_an_adapter_is_refused(adapters, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(adapters["qwen2_5_vl"], broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    prompt = tmp_path / "prompt"
    shutil.copytree(adapters["qwen2_5_vl"], prompt)
    (prompt / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"})
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (broken, prompt, empty, Path(checkpoint("qwen2_5_vl"))):
        with pytest.raises(HarnessError, match=str(folder)):
            DcsftHF(pretrained=checkpoint("qwen2_5_vl"), adapter=str(folder), device="cpu")
