"""Cold start and SFT on the tiny random Qwen2.5-VL, through TRL and PEFT as for a large model."""

import contextlib
import json
import types

import numpy as np
import pytest
import torch
import trl.trainer.base_trainer
import trl.trainer.utils
from datasets import Dataset, Features, Image, List, Value
from peft import PeftModel
from PIL import Image as Pillow
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from dcsft_harness.artifacts import manifest
from dcsft_harness.data.digits import pretrain
from dcsft_harness.models import estimates, published
from dcsft_harness.training import run, sft
from dcsft_harness.training.config import ColdStartConfig, SftConfig
from dcsft_harness.training.run import Job
from dcsft_harness.training.sft import SftTrainer
from dcsft_harness.training.trainer import Accounted, answers_alone

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT = "Which digit is this? Answer with one word."
TEXT = Value("string")
FEATURES = Features({"messages": List({"role": TEXT, "content": TEXT}), "images": List(Image())})
SIZES = ((56, 56), (84, 56), (56, 84), (84, 84))


def conversations(count, sizes=SIZES):
    """Noise of several sizes and answers of several lengths, so that every batch is ragged."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        answer = " and ".join(WORDS[(number + extra) % 10] for extra in range(1 + number % 3))
        messages = [
            {"role": "user", "content": "<image>" + PROMPT},
            {"role": "assistant", "content": answer},
        ]
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        rows.append({"messages": messages, "images": [Pillow.fromarray(noise)]})
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokens = pretrain.blank_tokenizer([PROMPT, *WORDS])
    torch.manual_seed(0)
    pretrain.blank_model(tokens).save_pretrained(folder)
    pretrain.blank_processor(tokens).save_pretrained(folder)
    return folder


@pytest.fixture
def batches(monkeypatch):
    """The inputs of every micro-batch of a run in this test."""
    seen = []
    original = SftTrainer.training_step

    def spy(self, model, inputs, *rest, **named):
        seen.append({name: value.clone() for name, value in inputs.items()})
        return original(self, model, inputs, *rest, **named)

    monkeypatch.setattr(SftTrainer, "training_step", spy)
    return seen


def by_hand(base, image, answer):
    """Token ids and labels of a sample, from the layout of the dialogue alone."""
    tokens = AutoProcessor.from_pretrained(base).tokenizer
    pads = pretrain.IMAGE_PAD * (image.width // 28 * image.height // 28)
    head = (
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )
    before, after = tokens(head)["input_ids"], tokens(answer + "<|im_end|>")["input_ids"]
    return before + after, [-100] * len(before) + after


def loss_by_hand(base, rows, weights=None):
    """The weighted mean over answer tokens of all rows, its gradient's norm, and the number of tokens."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(base)
    pad = processor.tokenizer.convert_tokens_to_ids(pretrain.IMAGE_PAD)
    total, count = torch.zeros(()), 0
    for row, weight in zip(rows, weights or [1.0] * len(rows), strict=True):
        image = row["images"][0]
        ids, labels = by_hand(base, image, row["messages"][1]["content"])
        inputs = processor(text=[pretrain.IMAGE_PAD], images=[image], return_tensors="pt")
        inputs["input_ids"] = torch.tensor([ids])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == pad).long()
        scores = model(**inputs).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(labels[1:]):
            if label != -100:
                total, count = total - weight * scores[position, label], count + 1
    loss = total / count
    loss.backward()
    norm = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]).norm()
    return loss.item(), norm.item(), count


def logits(model, base):
    """Logits of one fixed sample."""
    processor = AutoProcessor.from_pretrained(base)
    image = conversations(4)[3]["images"][0]
    text = f"<|im_start|>user\n<|vision_start|>{pretrain.IMAGE_PAD}<|vision_end|>{PROMPT}<|im_end|>\n"
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_the_loss_only_covers_answer_and_end_token(base, tmp_path, batches):
    rows = conversations(8)
    sft.train_sft(base, rows, tmp_path / "out", SftConfig(max_steps=1, batch_size=8))
    expected = {}
    for row in rows:
        ids, labels = by_hand(base, row["images"][0], row["messages"][1]["content"])
        expected[tuple(ids)] = labels
    (batch,) = batches
    found = {}
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        found[tuple(ids[:length].tolist())] = labels[:length].tolist()
        assert set(labels[length:].tolist()) <= {-100}
    assert found == expected
    end = AutoProcessor.from_pretrained(base).tokenizer.convert_tokens_to_ids(pretrain.IM_END)
    assert all(labels[-1] == end for labels in found.values())


def test_the_first_steps_loss_is_the_mean_over_all_answer_tokens(base, tmp_path):
    rows = conversations(8)
    loss, _, count = loss_by_hand(base, rows)
    # A new LoRA adapter adds nothing, so the first loss is the base's; with accumulation, too.
    for micro in (None, 2):
        config = SftConfig(max_steps=1, batch_size=8, micro_batch_size=micro)
        notes = sft.train_sft(base, rows, tmp_path / f"out{micro}", config)
        assert notes["final_loss"] == pytest.approx(loss, rel=1e-5)
        assert notes["ledger"]["completion_tokens"] == count


def run_twice(base, tmp_path, change, **settings):
    """The notes of two equal runs, the second one after `change`."""
    rows, notes = conversations(4), []
    for name in ("one", "two"):
        if name == "two":
            change()
        notes.append(
            sft.train_sft(base, rows, tmp_path / name, SftConfig(max_steps=2, batch_size=4, **settings))
        )
    return notes


def test_the_output_layer_only_scores_answers_with_equal_losses(base, tmp_path, monkeypatch):
    scored = []
    original = trl.trainer.utils._ChunkedLogProbFunction.apply

    def spy(hidden, *rest):
        scored.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(trl.trainer.utils._ChunkedLogProbFunction, "apply", spy)
    notes = run_twice(
        base, tmp_path, lambda: monkeypatch.setattr(run, "answers_alone", contextlib.nullcontext)
    )
    assert sum(scored[:2]) == notes[0]["ledger"]["completion_tokens"] < scored[2]
    for name in ("final_loss", "mean_grad_norm"):
        assert notes[0][name] == pytest.approx(notes[1][name], rel=1e-5)


def test_gradient_checkpointing_keeps_the_losses_of_large_models(base, tmp_path, monkeypatch):
    assert estimates.recomputes(published.configuration("qwen2.5-vl-3b"))
    assert not estimates.recomputes(published.configuration("qwen2.5-vl-3b", 2))
    notes = run_twice(base, tmp_path, lambda: monkeypatch.setattr(estimates, "_RECOMPUTED", 1))
    for name in ("final_loss", "mean_grad_norm"):
        assert notes[0][name] == pytest.approx(notes[1][name], rel=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.0}, {"lora_target": "language"}])
def test_the_estimated_activation_memory_equals_the_measured_one(base, tmp_path, monkeypatch, rows, settings):
    kept, samples = {}, []
    original, estimated = SftTrainer.compute_loss, run.training

    def measured(self, model, inputs, *rest, **named):
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

        def pack(tensor):
            place = tensor.untyped_storage()
            if place.data_ptr() not in weights:
                kept[place.data_ptr()] = (place.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return original(self, model, inputs, *rest, **named)

    def noted(*given):
        samples.append(estimated(*given).sample)
        return estimated(*given)

    monkeypatch.setattr(SftTrainer, "compute_loss", measured)
    monkeypatch.setattr(run, "training", noted)
    monkeypatch.setattr(estimates, "_tiles", lambda *given: 0.0)
    config = SftConfig(max_steps=1, batch_size=rows, lora_rank=2, save_steps=None, **settings)
    sft.train_sft(base, conversations(rows, ((224, 224),)), tmp_path / "out", config)
    found = sum(size for size, _ in kept.values())
    assert rows * samples[0] == pytest.approx(found, rel=0.15)


@pytest.mark.slow
def test_an_adapter_learns_reloads_and_covers_the_vision_tower(base, tmp_path, monkeypatch):
    kept = {}
    original = run._save
    monkeypatch.setattr(
        run,
        "_save",
        lambda trainer, *rest: (kept.update(logits=logits(trainer.model, base)), original(trainer, *rest)),
    )
    out, steps = tmp_path / "out", []
    config = SftConfig(max_steps=20, batch_size=8, learning_rate=5e-3, warmup_ratio=0.1)
    notes = sft.train_sft(base, conversations(8), out, config, progress=lambda *step: steps.append(step))

    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, 21))
    told = {"step", "loss", "grad_norm", "learning_rate", "entropy", "samples", "tokens", "seconds"}
    assert set(log[0]) == told
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    assert [step[:2] for step in steps] == [(number, 20) for number in range(1, 21)]
    assert steps[-1][2] == {name: log[-1][name] for name in ("loss", "grad_norm")}

    assert notes["adapted"] == {"language": 28, "vision": 20, "aligner": 2}
    weights = load_file(out / "adapter_model.safetensors")
    assert sum(name.endswith("lora_B.weight") for name in weights) == 50
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    assert notes["trainable_parameters"] == sum(value.numel() for value in weights.values())
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)

    fresh = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), out)
    assert torch.equal(logits(fresh, base), kept["logits"])

    written = manifest.read(out, "adapter")
    assert written.notes["steps"] == 20 and written.notes["ledger"]["prompts"] == 160
    settings, inputs = Job("sft", base, conversations(8), out, config).recorded()
    assert written.key == manifest.key_of("adapter", settings, inputs)
    assert "library_name: peft" in (out / "README.md").read_text()


def test_a_cold_start_changes_every_parameter_and_reloads(base, tmp_path):
    out = tmp_path / "out"
    config = ColdStartConfig(batch_size=4, learning_rate=1e-3, max_pixels=56 * 56)
    notes = sft.train_cold_start(base, conversations(10), out, config)
    assert (notes["steps"], notes["ledger"]["prompts"]) == (3, 10)
    before = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert [name for name, value in model.state_dict().items() if torch.equal(value, before[name])] == []
    processor = AutoProcessor.from_pretrained(out)
    assert processor.chat_template == pretrain.CHAT_TEMPLATE
    # Evaluation keeps the base's pixel limits, whatever those of training.
    assert processor.image_processor.size["longest_edge"] == 802816
    assert notes["pixel_limits"] == {"low": 784, "high": 3136}
    assert manifest.read(out, "checkpoint").files.keys() >= {"model.safetensors", "config.json"}
    assert (out / "README.md").is_file()


def test_a_checkpoint_is_saved_in_its_bases_type(base, tmp_path):
    half = tmp_path / "half"
    AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    AutoProcessor.from_pretrained(base).save_pretrained(half)
    sft.train_cold_start(half, conversations(4), tmp_path / "out")
    kinds = {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}


@pytest.mark.slow
def test_equal_seeds_give_equal_files_and_another_seed_does_not(base, tmp_path):
    folder = tmp_path / "set"
    conversations(12).save_to_disk(str(folder / "data"))
    weights, logs = [], []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sft.train_sft(base, folder, tmp_path / name, SftConfig(max_steps=2, batch_size=4, seed=seed))
        weights.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
        rows = map(json.loads, (tmp_path / name / "training_log.jsonl").read_text().splitlines())
        logs.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert weights[0][file] == weights[1][file]
    assert logs[0] == logs[1]
    assert weights[0]["adapter_model.safetensors"] != weights[2]["adapter_model.safetensors"]


@pytest.mark.slow
def test_the_order_depends_only_on_the_seed_and_the_data_repeats(base, tmp_path, batches):
    rows = conversations(6)
    sft.train_sft(base, rows, tmp_path / "a", SftConfig(max_steps=5, batch_size=4))
    sft.train_cold_start(base, rows, tmp_path / "b", ColdStartConfig(max_steps=5, epochs=None, batch_size=4))
    lora, full = batches[:5], batches[5:]
    assert [len(batch["input_ids"]) for batch in lora] == [4, 2, 4, 2, 4]
    for one, other in zip(lora, full, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
    first, second = (torch.cat([b["pixel_values"] for b in lora[at : at + 2]]) for at in (0, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sum(1).sort().values, second.sum(1).sort().values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "adapted"),
    [
        ("language", {"language": 28, "vision": 0, "aligner": 0}),
        ("vision", {"language": 0, "vision": 20, "aligner": 2}),
        (r".*merger.*", {"language": 0, "vision": 0, "aligner": 2}),
    ],
)
def test_a_narrower_target_adapts_nothing_else(base, tmp_path, target, adapted):
    config = SftConfig(max_steps=1, batch_size=2, lora_target=target)
    assert sft.train_sft(base, conversations(2), tmp_path / "out", config)["adapted"] == adapted
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum("lora_B" in name for name in weights) == sum(adapted.values())


def test_training_and_evaluation_show_the_same_pixels(base, tmp_path, batches):
    checkpoint = pytest.importorskip("dcsft_harness.models.checkpoint")
    settings = pytest.importorskip("dcsft_harness.models.arguments")
    rows, limit = conversations(1, sizes=((168, 140),)), 84 * 84
    sft.train_sft(base, rows, tmp_path / "out", SftConfig(max_steps=1, batch_size=1, max_pixels=limit))
    processor = checkpoint.open_processor(settings.ModelSettings(pretrained=str(base), max_pixels=limit))
    parts = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    chat = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    shown = processor(text=[text], images=rows[0]["images"], return_tensors="pt")
    prompt = batches[0]["input_ids"][0][batches[0]["labels"][0] == -100]
    assert torch.equal(prompt, shown["input_ids"][0])
    assert torch.equal(batches[0]["pixel_values"], shown["pixel_values"])


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_reported(base, tmp_path, capfd, monkeypatch):
    def forbidden(*args, **named):
        raise AssertionError("TRL reported the run")

    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", forbidden)
    monkeypatch.delenv("CI", raising=False)
    sft.train_sft(base, conversations(2), tmp_path / "a", SftConfig(max_steps=1, batch_size=2))
    sft.train_cold_start(base, conversations(2), tmp_path / "b", ColdStartConfig(batch_size=2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("device", "known", "inside", "outside"),
    [("cpu", True, 2, 42), ("cuda", True, 2, 2), ("cpu", False, 42, 42), ("cuda", False, 2, 2)],
)
def test_the_ledger_counts_the_output_layer_as_trl_runs_it(monkeypatch, device, known, inside, outside):
    name = "_use_triton"
    if known:
        monkeypatch.setattr(trl.trainer.utils, name, lambda device: device.type == "cuda")
    else:
        monkeypatch.delattr(trl.trainer.utils, name)
    trainer = Accounted()
    trainer.accelerator = types.SimpleNamespace(device=torch.device(device))
    with answers_alone():
        assert trainer.scored(42, 2) == inside
    assert trainer.scored(42, 2) == outside


def test_trls_own_arguments_are_passed_through(base, tmp_path):
    config = SftConfig(max_steps=2, batch_size=2, extra={"optim": "sgd", "max_grad_norm": 1e-9})
    sft.train_sft(base, conversations(2), tmp_path / "out", config)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert max(value.abs().max() for name, value in weights.items() if "lora_B" in name) < 1e-9


def test_bfloat16_trains_on_the_cpu_with_the_adapter_in_float32(base, tmp_path):
    config = SftConfig(max_steps=2, batch_size=2, dtype="bfloat16")
    assert sft.train_sft(base, conversations(2), tmp_path / "out", config)["dtype"] == "bfloat16"
    kinds = {value.dtype for value in load_file(tmp_path / "out" / "adapter_model.safetensors").values()}
    assert kinds == {torch.float32}
