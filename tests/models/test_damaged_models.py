"""Damaged checkpoints and adapters, in every verb and engine that opens weights: one sentence each."""

import functools
import json
import math
import os
import re
import shutil
import struct
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.models.smolvlm import processing_smolvlm

from dcsft_harness import cli, lmms, stages
from dcsft_harness.artifacts import disk, manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import checkpoint as models
from dcsft_harness.models import weights
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.training import grpo as training_grpo
from dcsft_harness.training import hub
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import FAMILIES, OTHERS, checkpoint, documents, requests_for
from tests.models.test_models_adapter import LINEAR
from tests.training.test_training_dpo import digits
from tests.training.test_training_families import conversations

BASE_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"
FIRST = "model.layers.0.mlp.down_proj.weight"
HF, VLLM = "dcsft_hf", "dcsft_vllm"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A base, an adapter for it, and a training set."""
    place = tmp_path_factory.mktemp("sound")
    shutil.copytree(checkpoint("qwen2_5_vl"), place / "base")
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(place / "base", dtype=torch.float32)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=LINEAR, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(place / "adapter")
    conversations().add_column("item_id", [f"item {row}" for row in range(len(conversations()))])
    conversations().save_to_disk(str(place / "set" / "data"))
    digits(place / "pairs", 2)
    with pytest.MonkeyPatch.context() as patch:  # GRPO's prompts, 300 with images, are those of every model
        patch.setattr(training_grpo, "open_data", functools.cache(training_grpo.open_data))
        yield place


def sample(base, adapter, out, model=HF):
    stages.STAGES["sample"](out, model=model, model_args=args(base, adapter, model), **POOL)


def evaluate(base, adapter, out, model=HF):
    stages.STAGES["evaluate"](
        out, model=model, model_args=args(base, adapter, model), tasks=["dcsft_digits"], limit=1
    )


def sample_vllm(base, adapter, out):
    sample(base, adapter, out, VLLM)


def evaluate_vllm(base, adapter, out):
    evaluate(base, adapter, out, VLLM)


def cold_start(base, adapter, out):
    stages.STAGES["train cold-start"](
        out, model=str(base), data=str(base.parent / "set"), max_steps=1, batch_size=2
    )


def sft(base, adapter, out):
    stages.STAGES["train sft"](
        out, model=str(base), data=str(base.parent / "set"), adapter=adapter, max_steps=1, batch_size=2
    )


def grpo(base, adapter, out):
    stages.STAGES["train grpo"](
        out,
        model=str(base),
        data="dcsft_digits",
        adapter=adapter,
        max_steps=1,
        batch_size=2,
        num_generations=2,
    )


def dpo(base, adapter, out):
    stages.STAGES["train dpo"](
        out, model=str(base), data=str(base.parent / "pairs"), adapter=adapter, max_steps=1, batch_size=2
    )


def merge(base, adapter, out):
    adapter = adapter or base.parent / "adapter"
    stages.STAGES["merge"](out, adapter=adapter, base=str(base), device="cpu", prompts=1)


def push(base, adapter, out):
    """Pushes an artifact whose manifest was made after the damage."""
    sealed = out.parent / "sealed"
    with manifest.writing("adapter" if adapter else "checkpoint", sealed, {}) as draft:
        shutil.copytree(adapter or base, draft.folder, dirs_exist_ok=True)
    try:
        hub.refuse_unfit(sealed)
    finally:
        shutil.rmtree(sealed)


def lmms_eval(base, adapter, out, model=HF):
    words = ["--model", model, "--model_args", args(base, adapter, model), "--tasks", "dcsft_digits"]
    assert lmms.command_line([*words, "--limit", "1"]) == 1
    raise HarnessError(SAID.readouterr().err)


def lmms_eval_vllm(base, adapter, out):
    lmms_eval(base, adapter, out, VLLM)


POOL = {"task": "dcsft_digits_pool", "limit": 1, "samples": 2, "max_new_tokens": 2}
SAID = None
VERBS = [
    sample,
    sample_vllm,
    evaluate,
    evaluate_vllm,
    cold_start,
    sft,
    grpo,
    dpo,
    merge,
    push,
    lmms_eval,
    lmms_eval_vllm,
]
ADAPTED = [verb for verb in VERBS if verb is not cold_start]


def args(base, adapter, model):
    given = {"pretrained": base, "adapter": adapter, "device": "cpu" if model == HF else None}
    return ",".join(f"{name}={value}" for name, value in given.items() if value is not None)


def drop(tensors):
    for name in sorted(tensors)[:3]:
        del tensors[name]


def add(tensors):
    tensors["model.extra.weight"] = torch.zeros(2)


def reshape(tensors):
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].repeat(2, *([1] * (tensors[name].ndim - 1)))


def value(number, name):
    def spoil(tensors):
        chosen = next(each for each in sorted(tensors) if name in each)
        tensors[chosen].view(-1)[-1] = number

    return spoil


BASE_FAULTS = {
    "missing": (drop, r"3 tensors missing \(.*, .*, .*\)"),
    "unexpected": (add, r"1 tensor unexpected \(model\..*extra\.weight\)"),
    "of another shape": (reshape, r"1 tensor of another shape \(.* is \[.*\] instead of \[.*\]\)"),
    "nan": (value(math.nan, FIRST), r"1 tensor is not finite \(.*down_proj.*\)"),
    "infinite embedding": (value(math.inf, "embed_tokens"), r"1 tensor is not finite \(.*embed_tokens.*\)"),
}
ADAPTER_FAULTS = {
    "missing": (drop, r"3 modules have no weights in it \(.*\)"),
    "unexpected": (add, r"1 of its weights have no module \(.*model\.extra\.weight.*\)"),
    "of another shape": (reshape, "size mismatch"),
    "nan": (value(math.nan, "lora_B"), r"1 tensor is not finite \(.*lora_B.*\)"),
    "infinite": (value(-math.inf, "lora_A"), r"1 tensor is not finite \(.*lora_A.*\)"),
}


def table(faults, verbs):
    """Every fault in every verb; lmms-eval's own command line, which takes seconds, with two of them."""
    return [
        pytest.param(fault, verb, id=f"{fault}-{verb.__name__}")
        for fault in faults
        for verb in verbs
        if "lmms_eval" not in verb.__name__ or fault in ("missing", "nan", "base")
    ]


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def copied(sound, tmp_path):
    for name in ("base", "adapter", "set", "pairs"):
        shutil.copytree(sound / name, tmp_path / name)
    return tmp_path / "base", tmp_path / "adapter"


def refused(verb, base, adapter, message, monkeypatch, capsys):
    """A run that must fail with one sentence, before any weights are used, and leave nothing."""
    monkeypatch.setattr(f"{__name__}.SAID", capsys)
    if "vllm" in verb.__name__:
        fake_vllm.install(monkeypatch)
    out = base.parent / "out"
    with pytest.raises(HarnessError, match=message) as told:
        verb(base, adapter, out)
    assert not out.exists()
    if "lmms_eval" not in verb.__name__:  # whose standard error has more
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(("fault", "verb"), table(BASE_FAULTS, VERBS))
def test_a_base_whose_weights_do_not_fit_the_model_is_refused(
    fault, verb, sound, tmp_path, monkeypatch, capsys
):
    base, adapter = copied(sound, tmp_path)
    spoil, message = BASE_FAULTS[fault]
    rewrite(base / BASE_FILE, spoil)
    refused(verb, base, None, message, monkeypatch, capsys)


@pytest.mark.parametrize(("fault", "verb"), table(ADAPTER_FAULTS, ADAPTED))
def test_an_adapter_whose_weights_do_not_fit_its_modules_is_refused(
    fault, verb, sound, tmp_path, monkeypatch, capsys
):
    base, adapter = copied(sound, tmp_path)
    spoil, message = ADAPTER_FAULTS[fault]
    rewrite(adapter / ADAPTER_FILE, spoil)
    refused(verb, base, adapter, message, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("verb", "alpha"),
    [
        *((verb, math.nan) for verb in ADAPTED if "lmms" not in verb.__name__),
        *((sample, alpha) for alpha in (math.inf, -math.inf, 0)),
    ],
)
def test_an_adapter_with_an_invalid_lora_alpha_is_refused(alpha, verb, sound, tmp_path, monkeypatch, capsys):
    base, adapter = copied(sound, tmp_path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
    refused(verb, base, adapter, f"lora_alpha is {alpha!r}", monkeypatch, capsys)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "5", "{", "\0"])
@pytest.mark.parametrize("verb", [sample, sft, merge, push], ids=lambda verb: verb.__name__)
def test_a_damaged_adapter_config_is_refused(verb, content, sound, tmp_path, monkeypatch, capsys):
    base, adapter = copied(sound, tmp_path)
    (adapter / "adapter_config.json").write_text(content)
    refused(verb, base, adapter, "adapter_config.json cannot be read", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("setting", "value", "refused"),
    [
        ("num_hidden_layers", 1001, True),
        ("num_hidden_layers", 1000, False),
        ("n_routed_experts", 10**9, True),
        ("depth", -1, True),
        ("vision_feature_layer", -2, False),
        ("max_window_layers", 10**9, False),
    ],
)
def test_settings_may_count_modules_or_name_one(setting, value, refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {setting: value}}))
    with pytest.raises(HarnessError, match=f"text_config.{setting} is {value}") if refused else nullcontext():
        weights.refuse_absurd(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_and_derived_buffers_may_be_missing(family, tied, tmp_path):
    """As published: a tied output layer is not stored."""
    base = tmp_path / "base"
    shutil.copytree(checkpoint(family), base)
    if tied:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        config = json.loads((base / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        (base / "config.json").write_text(json.dumps(config))
        rewrite(base / BASE_FILE, lambda tensors: tensors.pop("lm_head.weight"))
        del model
    assert DcsftHF(pretrained=str(base), device="cpu")


def truncated(base):
    content = (base / BASE_FILE).read_bytes()
    (base / BASE_FILE).write_bytes(content[: len(content) // 2])


def header(base, length, text):
    (base / BASE_FILE).write_bytes(struct.pack("<Q", length) + text)


def claims(base, **entry):
    """One tensor with a modified header, over 16 bytes."""
    told = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | entry}
    text = json.dumps(told).encode()
    header(base, len(text), text + bytes(16))


def setting(base, name, value, file="config.json"):
    path = base / file
    data = json.loads(path.read_text())
    *parents, last = name.split(".")
    inner = data
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(data))


def pickled(base):
    torch.save(load_file(base / BASE_FILE), base / "pytorch_model.bin")
    (base / BASE_FILE).unlink()


def sharded(base):
    index = {"weight_map": dict.fromkeys(load_file(base / BASE_FILE), "model-00001-of-00002.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / BASE_FILE).unlink()


def template(base, text):
    (base / "chat_template.jinja").write_text(text)


NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DAMAGE = {
    "truncated": (truncated, "model.safetensors is not a whole safetensors file"),
    "empty": (lambda base: (base / BASE_FILE).write_bytes(b""), "is not a whole safetensors file"),
    "a header of 10 GB": (lambda base: header(base, 10**10, b"{}"), "is not a whole safetensors file"),
    "10 GB of weights": (
        lambda base: claims(base, data_offsets=[0, 10**10]),
        "is not a whole safetensors file",
    ),
    "negative offsets": (lambda base: claims(base, data_offsets=[-16, 0]), "is not a whole safetensors file"),
    "other tensors": (claims, "tensors missing .* 1 tensor unexpected"),
    "no weights": (lambda base: (base / BASE_FILE).unlink(), "has no weights"),
    "a pickle": (pickled, "pytorch_model.bin, a pickle.* Convert them to safetensors"),
    "a missing shard": (sharded, "index.json names 'model-00001-of-00002.safetensors'"),
    "an invalid index": (
        lambda base: (sharded(base), (base / "model.safetensors.index.json").write_text("[]")),
        "is not a safetensors index",
    ),
    "more layers": (lambda base: setting(base, "vision_config.depth", 3), "tensors missing"),
    "fewer layers": (lambda base: setting(base, "vision_config.depth", 1), "tensors unexpected"),
    "layers of no type": (
        lambda base: setting(base, "text_config.num_hidden_layers", 3),
        r"num_hidden_layers",
    ),
    "a billion layers": (lambda base: setting(base, "text_config.num_hidden_layers", 10**9), "is 1000000000"),
    "negative layers": (lambda base: setting(base, "vision_config.depth", -1), "vision_config.depth is -1"),
    "a negative size": (lambda base: setting(base, "text_config.hidden_size", -64), "cannot be"),
    "a rope_theta that is text": (
        lambda base: setting(base, "text_config.rope_parameters.rope_theta", "10000.0"),
        "text_config.rope_parameters.rope_theta is '10000.0', not a positive number",
    ),
    "a rope_theta of 0": (
        lambda base: setting(base, "text_config.rope_parameters.rope_theta", 0),
        "rope_theta is 0, not a positive number",
    ),
    "no heads": (lambda base: setting(base, "text_config.num_attention_heads", 0), "cannot be"),
    "a configuration of text": (lambda base: setting(base, "text_config", "none"), "cannot be"),
    "a configuration that is a list": (lambda base: (base / "config.json").write_text("[]"), "cannot be"),
    "a truncated configuration": (
        lambda base: (base / "config.json").write_text('{"model_type": '),
        "config.json is not JSON",
    ),
    "a patch size of 0": (
        lambda base: setting(base, "image_processor.patch_size", 0, "processor_config.json"),
        "cannot process an image",
    ),
    "another image token": (
        lambda base: setting(base, "image_token_id", 10**7),
        "its config.json says image_token_id 10000000, but its tokenizer has",
    ),
    **{
        f"the image token is {token}": (
            lambda base, token=token: setting(base, "image_token_id", token),
            rf"says image_token_id {token} \(.*\), but its processor marks images with 5 \(",
        )
        for token in (2, 3, 6, 100)  # the end of a turn, the start of an image, videos, and a letter
    },
    "a negative image token": (
        lambda base: setting(base, "image_token_id", -1),
        "its config.json says image_token_id -1, but its tokenizer has",
    ),
    "a mean that is not a number": (
        lambda base: setting(base, "image_processor.image_mean", [math.nan] * 3, "processor_config.json"),
        r"pixel_values is not finite\). Correct its processor_config.json",
    ),
    "a deviation of 0": (
        lambda base: setting(base, "image_processor.image_std", [0, 0, 0], "processor_config.json"),
        "pixel_values is not finite",
    ),
    "no files of a processor": (
        lambda base: [(base / name).unlink() for name in models.PROCESSOR if (base / name).exists()],
        r"has no processor: .*preprocessor_config.json.*Copy the files of the processor",
    ),
    "an empty tokenizer": (
        lambda base: (base / "tokenizer.json").write_text(""),
        "has no usable processor",
    ),
    "an endless template": (lambda base: template(base, NESTED), "chat template does not end"),
    "an endless range": (
        lambda base: template(base, "{% for i in range(10**9) %}{% endfor %}"),
        "chat template fails .*[Rr]ange",
    ),
    "a template of 10 GB": (lambda base: template(base, "{{ 'a' * 10**10 }}"), "chat template does not end"),
    "a broken template": (lambda base: template(base, "{% for %}"), "chat template fails"),
    "a template that refuses": (
        lambda base: template(base, "{{ raise_exception('no pictures') }}"),
        "chat template fails .*no pictures",
    ),
    "an empty template": (lambda base: template(base, ""), "no chat template"),
    "truncated generation settings": (
        lambda base: (base / "generation_config.json").write_text('{"eos_token_id": '),
        "generation_config.json cannot be read",
    ),
    "generation settings of 100,000 levels": (
        lambda base: (base / "generation_config.json").write_text("[" * 100_000),
        "generation_config.json cannot be read .nested deeper|cannot be loaded .maximum recursion",
    ),
    "a configuration of 100,000 levels": (
        lambda base: (base / "config.json").write_text("[" * 100_000),
        "config.json is not JSON .nested deeper than 64 levels",
    ),
    "a processor of 100,000 levels": (
        lambda base: (base / "processor_config.json").write_text("[" * 100_000),
        "has no usable processor",
    ),
    "an end token that does not exist": (
        lambda base: setting(base, "eos_token_id", "end", "generation_config.json"),
        "generation_config.json cannot be read .eos_token_id is 'end', not a token's number",
    ),
    "end tokens with a negative one": (
        lambda base: setting(base, "eos_token_id", [2, -1], "generation_config.json"),
        r"generation_config.json cannot be read .eos_token_id is \[2, -1\]",
    ),
}


@pytest.mark.parametrize(
    ("damage", "verb"),
    [
        pytest.param(damage, verb, id=f"{damage}-{verb.__name__}")
        for damage in DAMAGE
        for verb in (sample, cold_start, merge, *((sft, grpo, dpo) if "image token" in damage else ()))
    ],
)
def test_a_damaged_base_is_refused_before_its_weights_are_read(
    damage, verb, sound, tmp_path, monkeypatch, capsys
):
    base, _ = copied(sound, tmp_path)
    spoil, message = DAMAGE[damage]
    spoil(base)
    forbid_loading(monkeypatch)
    refused(verb, base, None, message, monkeypatch, capsys)


def forbid_loading(monkeypatch):
    """Fails a test that reads weights; only names and shapes are compared on the device meta."""
    load = AutoModelForImageTextToText.from_pretrained

    def compare(*given, **named):
        return load(*given, **named) if named.get("device_map") == "meta" else pytest.fail("loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", compare)


@pytest.mark.parametrize("family", FAMILIES | OTHERS)
def test_every_family_is_refused_with_another_image_marker(family, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(checkpoint(family), base)
    # SmolVLM's processor needs the package for videos.
    monkeypatch.setattr(processing_smolvlm, "num2words", processing_smolvlm.num2words or str)
    config = json.loads((base / "config.json").read_text())
    name = next((one for one in ("image_token_id", "image_token_index") if one in config), None)
    assert models.open_processor(ModelSettings(pretrained=str(base)))
    if name is None:
        pytest.skip("its configuration marks no pictures")
    around = {3, 4, 7}  # of Gemma 3 and Molmo 2: tokens before and after an image's own
    for token in {0, 9, 20, *around} - {config[name]}:
        setting(base, name, token)
        with pytest.raises(HarnessError, match=rf"image_token_id {token} \(.*but its processor marks images"):
            models.open_processor(ModelSettings(pretrained=str(base)))


SHARD_FAULTS = {name: BASE_FAULTS[name] for name in ("missing", "unexpected", "of another shape")}
SHARD_FAULTS["not of the index"] = BASE_FAULTS["unexpected"]


@pytest.mark.parametrize("verb", [sample, cold_start, dpo, merge], ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_the_second_of_two_shards_is_checked_too(fault, verb, sound, tmp_path, monkeypatch, capsys):
    base, _ = copied(sound, tmp_path)
    spoil, message = SHARD_FAULTS[fault]
    whole = load_file(base / BASE_FILE)
    names = sorted(whole)
    shards = {f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    index = {name: file for file, some in shards.items() for name in some}
    for file, some in shards.items():
        save_file({name: whole[name] for name in some}, base / file, {"format": "pt"})
    rewrite(base / file, spoil)
    if fault != "not of the index":
        there = load_file(base / file)
        index = {name: place for name, place in index.items() if place != file}
        index |= dict.fromkeys(there, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (base / BASE_FILE).unlink()
    forbid_loading(monkeypatch)
    refused(verb, base, None, message, monkeypatch, capsys)


SAVED_FAULTS = {
    "missing": (lambda tensors: tensors.pop(saved(tensors)), r"1 module has no weights in it \(.*lm_head"),
    "nan": (lambda tensors: tensors[saved(tensors)].view(-1)[:1].fill_(math.nan), "1 tensor is not finite"),
    "of another shape": (
        lambda tensors: tensors.update({saved(tensors): tensors[saved(tensors)][:-1].clone()}),
        "size mismatch",
    ),
}


def saved(tensors):
    """The output layer of an adapter that was trained completely."""
    return next(name for name in tensors if "lm_head" in name)


@pytest.mark.parametrize("verb", [sample, sft, dpo, grpo, merge, push], ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("fault", SAVED_FAULTS)
def test_modules_saved_completely_with_an_adapter_are_checked_too(
    fault, verb, sound, tmp_path, monkeypatch, capsys
):
    base, adapter = copied(sound, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    shutil.rmtree(adapter)
    get_peft_model(model, config).save_pretrained(adapter)
    spoil, message = SAVED_FAULTS[fault]
    rewrite(adapter / ADAPTER_FILE, spoil)
    refused(verb, base, adapter, message, monkeypatch, capsys)


@pytest.mark.parametrize("damage", ["truncated", "a pickle", "an endless range", "an empty tokenizer"])
def test_the_command_line_reports_it_in_one_sentence(damage, sound, tmp_path, capsys):
    base, _ = copied(sound, tmp_path)
    spoil, message = DAMAGE[damage]
    spoil(base)
    words = ["evaluate", "--model-args", f"pretrained={base}", "--tasks", "dcsft_digits", "--output"]
    assert cli.main([*words, str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "given", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"min_new_tokens": 2}]
)
def test_non_finite_logits_are_an_error_that_names_the_item(given, shared):
    """One of three documents overflows: it is named, or skipped while the others are answered as usual."""
    model = DcsftHF(pretrained=checkpoint("qwen2_5_vl"), device="cpu", batch_size=3)
    docs = documents()[:3]
    requests = requests_for(model, docs, {"max_new_tokens": 6, **given})
    wanted = [one.text for one in model.generate_until(requests)]
    if not shared:
        model._engine.give_up("a test")
    prepare = model._prepare

    def marked(item):
        prepared = prepare(item)
        if item.doc_id == 1:
            prepared.features["pixel_values"] = prepared.features["pixel_values"] * math.inf
        return prepared

    model._prepare = marked
    with pytest.raises(HarnessError, match=r"task 'tiny', doc_id 1: the model's logits are not finite"):
        model.generate_until(requests)
    model.refused = {}
    found = [one.text for one in model.generate_until(requests)]
    assert list(model.refused) == [("tiny", 1)]
    assert [found[0], found[2]] == [wanted[0], wanted[2]] and found[1] == ""


def sealed(kind, folder, place):
    """A copy of a folder as an artifact of its own."""
    with manifest.writing(kind, place, {}) as draft:
        shutil.copytree(folder, draft.folder, dirs_exist_ok=True)
    return place


def swapped(path):
    """Other weights of the same size and time, as valid as the first ones."""
    before = path.stat()

    def change(tensors):
        for tensor in tensors.values():
            tensor.mul_(1.01)

    rewrite(path, change)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize(
    ("changed", "verb"),
    [
        *table(["base"], [verb for verb in VERBS if verb is not push]),
        *table(["adapter"], [sample, sft, merge]),
    ],
)
def test_weights_replaced_under_their_manifest_are_refused(
    changed, verb, sound, tmp_path, monkeypatch, capsys
):
    for name in ("set", "pairs"):
        shutil.copytree(sound / name, tmp_path / name)
    base = sealed("checkpoint", sound / "base", tmp_path / "base")
    adapter = sealed("adapter", sound / "adapter", tmp_path / "adapter")
    file = base / BASE_FILE if changed == "base" else adapter / ADAPTER_FILE
    swapped(file)
    message = f"{re.escape(str(file))} does not match manifest.json beside it"
    refused(verb, base, adapter, message, monkeypatch, capsys)


def test_a_kept_checkpoint_is_checked_against_the_runs_manifest(sound, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with manifest.writing("adapter", run, {}) as draft:
        shutil.copytree(sound / "adapter", draft.folder / "checkpoint-2")
    base = tmp_path / "base"
    shutil.copytree(sound / "base", base)
    swapped(run / "checkpoint-2" / ADAPTER_FILE)
    refused(
        evaluate,
        base,
        run / "checkpoint-2",
        "checkpoint-2/adapter_model.*does not match",
        monkeypatch,
        capsys,
    )


ADDED = [
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "adapter_config.json",
]


@pytest.mark.parametrize("name", [*ADDED, "box_space.json", "additional_chat_templates"])
@pytest.mark.parametrize("verb", [sample, sample_vllm, sft, merge], ids=lambda verb: verb.__name__)
def test_a_file_added_to_a_checkpoint_later_is_refused(name, verb, sound, tmp_path, monkeypatch, capsys):
    shutil.copytree(sound / "set", tmp_path / "set")
    shutil.copytree(sound / "adapter", tmp_path / "adapter")
    shutil.copytree(sound / "base", tmp_path / "plain")
    (tmp_path / "plain" / name).unlink(missing_ok=True)
    base = sealed("checkpoint", tmp_path / "plain", tmp_path / "base")
    (base / "notes.json").write_text("{}")  # nothing reads it
    if "." in name:
        (base / name).write_text("{}")
    else:
        (base / name).mkdir()
    message = f"{re.escape(str(base / name))} was added later"
    refused(verb, base, None, message, monkeypatch, capsys)


@pytest.mark.parametrize("verb", [sample, sample_vllm, sft, merge, lmms_eval], ids=lambda verb: verb.__name__)
def test_a_base_that_also_holds_an_adapter_is_refused(verb, sound, tmp_path, monkeypatch, capsys):
    """transformers attaches such an adapter to the base unasked."""
    base, _ = copied(sound, tmp_path)
    for path in (tmp_path / "adapter").iterdir():
        if path.name.startswith("adapter_"):
            shutil.copy(path, base)
    refused(verb, base, None, "base holds a base and an adapter", monkeypatch, capsys)


@pytest.mark.parametrize("place", ["", "checkpoint-2"])
@pytest.mark.parametrize("sealing", [True, False])
@pytest.mark.parametrize("verb", [*(verb for verb in ADAPTED if verb not in (push, merge))])
def test_an_adapter_on_another_base_than_it_was_trained_on_is_refused(
    verb, sealing, place, sound, tmp_path, monkeypatch, capsys
):
    """The base was retrained in place, or its weights were replaced where it has no manifest."""
    base, _ = copied(sound, tmp_path)
    if sealing:
        base = sealed("checkpoint", sound / "base", tmp_path / "sealed")
        shutil.copytree(sound / "set", tmp_path / "set", dirs_exist_ok=True)
    with manifest.writing("adapter", tmp_path / "run", {}, {"model": base}) as draft:
        for folder in ("", "checkpoint-2"):
            shutil.copytree(sound / "adapter", draft.folder / folder, dirs_exist_ok=True)
    if sealing:
        shutil.rmtree(base)
        sealed("checkpoint", sound / "base", base)
        path = base / manifest.NAME
        path.write_text(path.read_text().replace('"seconds"', '"again": 1, "seconds"'))
    else:
        swapped(base / BASE_FILE)
    adapter = tmp_path / "run" / place
    message = f"adapter {re.escape(str(adapter))} was trained on /.*has changed since"
    refused(verb, base, adapter, message, monkeypatch, capsys)


def test_a_file_is_hashed_once_per_process_until_it_changes(sound, tmp_path, monkeypatch):
    base = sealed("checkpoint", sound / "base", tmp_path / "base")
    for path in base.iterdir():
        os.utime(path, (1e9, 1e9))
    hashed = []
    original = disk.hashlib.file_digest
    monkeypatch.setattr(
        disk.hashlib,
        "file_digest",
        lambda file, *given: (hashed.append(os.path.basename(file.name)), original(file, *given))[1],
    )
    for _ in range(3):
        manifest.refuse_changed(base)
    assert hashed.count(BASE_FILE) == 1
