"""The benchmarks run on a small scale, and the page shows what they printed."""

import copy
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import trl
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from benchmarks import __main__ as runner
from benchmarks import answers, board, growth, labels, page, sampling, shapes, training
from benchmarks.measuring import median, ratio, rounds
from dcsft_harness.artifacts import storage
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.artifacts.storage import AT_ONCE
from dcsft_harness.models import published
from dcsft_harness.training import sft
from dcsft_harness.training.config import SftConfig


def printed(capsys, monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    main()
    return json.loads(capsys.readouterr().out.strip().split("\n")[-1])


def test_ways_alternate_and_ratios_are_within_rounds():
    order = []
    found = rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert len(found["a"]) == 2
    times = {"a": [1.0, 10.0, 3.0], "b": [2.0, 5.0, 1.0]}
    assert (ratio(times, "a", "b"), median(times, "a")) == (2.0, 3.0)


def test_the_page_is_up_to_date_and_a_new_measurement_keeps_the_notes(tmp_path, monkeypatch):
    known = json.loads(runner.RESULTS.read_text(encoding="utf-8"))
    assert page.render(known) == runner.PAGE.read_text(encoding="utf-8"), "write into benchmarks.json"
    for name in ("RESULTS", "PAGE"):
        monkeypatch.setattr(runner, name, tmp_path / name)
    place = {"scoring": {"responses_per_second": {}, "versions": {}, page.NOTES: ["On a busy machine."]}}
    runner.RESULTS.write_text(json.dumps({"here": {"digits": place}}))
    monkeypatch.setattr(runner.machine, "describe", lambda shape: "here")
    new = {"responses_per_second": {"choice": {"letter": 5}}}
    monkeypatch.setattr(runner, "run", lambda part, shape, layers: new)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "scoring"])
    runner.main()
    text = runner.PAGE.read_text()
    assert "| choice   | letter      | 5          |" in text and "\nOn a busy machine.\n" in text


@pytest.mark.slow
def test_the_page_says_whether_a_target_is_met(capsys, monkeypatch):
    monkeypatch.setattr(sampling, "SIDES", {"digits": {224: 2}})
    found = printed(capsys, monkeypatch, sampling.main, "--rounds", "1")
    ways = found["results"][0]["over the engine"]
    assert {"8 passes, batch 4", "generate(num_return_sequences=8)", "prefill of the same batch"} < set(ways)
    assert [one["comparison"] for one in found["results"]][1] == "2 items, from lmms-eval's requests"
    assert found["parity"]["rows"] == 8 and found["parity"]["same first choice"] == 1
    found["results"][0]["over the engine"] |= {"8 passes, batch 4": 12.3, "8 passes, same batch": 5.9}
    text = page.render({"a machine": {"digits": {"sampling": {**found, "versions": {"torch": "2"}}}}})
    assert "## digits on a machine" in text and "(torch 2)" in text
    lines = {cells[2].strip(): cells for line in text.split("\n") if len(cells := line.split("|")) > 6}
    assert [cell.strip() for cell in lines["8 passes, batch 4"][3:6]] == ["12.3", "≥12", "yes"]
    assert [cell.strip() for cell in lines["8 passes, same batch"][3:6]] == ["5.9", "≥6", "no"]


def test_a_trial_with_few_layers_runs_every_part_and_never_replaces_full_figures(
    tmp_path, monkeypatch, capsys
):
    for name in ("RESULTS", "PAGE"):
        monkeypatch.setattr(runner, name, tmp_path / name)
    full = {"qwen2.5-vl-3b": {"growth": {"part": "full", "versions": {}}}}
    monkeypatch.setattr(runner.machine, "describe", lambda shape: "here")
    monkeypatch.setattr(runner, "VLLM_PYTHON", tmp_path / "none")
    monkeypatch.setattr(page, "SECTIONS", dict.fromkeys(page.SECTIONS, lambda found: [found["part"]]))
    ran = []

    def run(part, shape, layers):
        ran.append(runner.command(part, shape, layers)[2:])
        return {"part": part}

    monkeypatch.setattr(runner, "run", run)
    runner.RESULTS.write_text(json.dumps({"here": full}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--shape", "qwen2.5-vl-3b", "--layers", "2"])
    runner.main()
    given = ["--shape", "qwen2.5-vl-3b", "--layers", "2"]
    parts = [part for part in runner.SHAPED if part != "vllm_overhead"]
    rounds_ = {part: [] if part == "rehearsal" else ["--rounds", "1"] for part in parts}
    assert ran == [[f"benchmarks.{part}", *given, *rounds_[part]] for part in parts]
    assert "vllm_overhead is skipped: vllm_overhead needs vLLM's environment" in capsys.readouterr().err
    kept = json.loads(runner.RESULTS.read_text())["here"]
    assert kept["qwen2.5-vl-3b"] == full["qwen2.5-vl-3b"]
    (trial,) = (name for name in kept if name != "qwen2.5-vl-3b")
    assert list(kept[trial]) == parts
    text = runner.PAGE.read_text()
    assert f"## {trial} on here\n\nPartial, " in text and text.count("Partial, ") == 1


def test_layers_need_a_published_size(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--layers", "2"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "--layers needs a published size: add --shape qwen2.5-vl-3b" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "layers"), [("", ""), ("LAYERS=2", " --layers 2"), ("LAYERS=", "")])
def test_make_bench_uses_all_layers_by_default(given, layers):
    inherited = {name: value for name, value in os.environ.items() if name != "LAYERS"}
    command = ["make", "--no-print-directory", "-n", "bench", "SHAPE=qwen2.5-vl-3b", *given.split()]
    done = subprocess.run(command, cwd=runner.ROOT, capture_output=True, text=True, check=True, env=inherited)
    assert done.stdout.rstrip().split("\n")[-1].endswith(f"benchmarks --shape qwen2.5-vl-3b{layers}")


@pytest.mark.slow
def test_long_answers_have_the_lengths_forced_on_them(capsys, monkeypatch):
    found = printed(
        capsys, monkeypatch, answers.main, "--items", "2", "--longest", "6", "--rounds", "1", "--side", "56"
    )
    assert found["rows"] == 16
    assert found["ideal"]["rows"] % shapes.SAMPLES == 0
    assert 1 <= found["ideal"]["tokens"] <= 6


@pytest.mark.slow
def test_growth_measures_the_requested_numbers_of_samples(capsys, monkeypatch):
    monkeypatch.setattr(growth, "GS", (1, 3))
    monkeypatch.setattr(growth, "SIDES", (56,))
    found = printed(capsys, monkeypatch, growth.main, "--rounds", "1")
    assert list(found["seconds by G at 112 px"]) == ["1", "3"]


def test_every_part_has_a_section_and_a_module():
    for part in runner.PARTS:
        assert part in page.SECTIONS
        if part != "vllm_overhead":
            assert runner.command(part, "digits")[2] == f"benchmarks.{part}"


@pytest.mark.slow
@pytest.mark.parametrize("part", [sampling, answers, growth], ids=lambda part: part.__name__)
def test_a_part_runs_at_a_published_size_reduced_to_few_layers(part, capsys, monkeypatch):
    small = copy.deepcopy(published.PUBLISHED["qwen2.5-vl-3b"])
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    small["text_config"] |= {"hidden_size": 256, "intermediate_size": 64, "vocab_size": 2000, **heads}
    small["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 64,
        "out_hidden_size": 256,
        "num_heads": 4,
    }
    monkeypatch.setitem(published.PUBLISHED, "qwen2.5-vl-3b", small)
    shapes.folder.cache_clear()
    options = ["--shape", "qwen2.5-vl-3b", "--layers", "2", "--rounds", "1"]
    found = printed(capsys, monkeypatch, part.main, *options)
    shapes.folder.cache_clear()
    name = part.__name__.removeprefix("benchmarks.")
    kind = f"qwen2.5-vl-3b, 2 layers{page.TRIAL}"
    text = page.render({"a machine": {kind: {name: {**found, "versions": {}}}}})
    assert f"## {kind} on a machine\n\nPartial, " in text and text.count("|") > 10


def test_a_published_size_is_built_with_random_weights_in_shards(monkeypatch):
    small = copy.deepcopy(published.PUBLISHED["qwen2.5-vl-3b"])
    small["text_config"] |= {"hidden_size": 128, "intermediate_size": 64, "vocab_size": 2000}
    small["vision_config"] |= {"hidden_size": 64, "intermediate_size": 64, "out_hidden_size": 128}
    monkeypatch.setitem(published.PUBLISHED, "qwen2.5-vl-3b", small)
    monkeypatch.setattr(published, "SHARD", 400_000)
    monkeypatch.setattr(published, "_BLOCK", 10_007)
    folder = shapes.folder("qwen2.5-vl-3b", 2)
    config = json.loads((shapes.Path(folder) / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == config["vision_config"]["depth"] == 2
    files = list(shapes.Path(folder).glob("*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 600_000 for path in files)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    rows = model.get_output_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert rows[: len(tokenizer)].std() > 2.5 * rows[len(tokenizer) :].std()
    assert rows[tokenizer.eos_token_id].std() > 1.5 * rows[20].std()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.slow
def test_training_is_measured_against_a_bare_script_that_does_the_same(capsys, monkeypatch):
    monkeypatch.setattr(training, "STEPS", {"digits": 2})
    monkeypatch.setattr(training, "GRPO_STEPS", {"digits": 2})
    monkeypatch.setattr(training, "rows", lambda task, read=training.rows: read(task).select(range(64)))
    monkeypatch.setattr(training, "_alone", lambda work, *given: work(*given))
    found = printed(capsys, monkeypatch, training.main, "--rounds", "1")
    assert found["overhead"]["whole run"]["ratio"] > 0
    assert sum(found["methods"]["GRPO, LoRA"]["share"].values()) == pytest.approx(1, abs=0.01)
    found["overhead"]["whole run"]["ratio"], found["overhead"]["a step"]["ratio"] = 1.06, 1.01
    text = page.render({"a machine": {"digits": {"training": {**found, "versions": {"torch": "2"}}}}})
    lines = {cells[1].strip(): cells for line in text.split("\n") if len(cells := line.split("|")) > 4}
    judged = {name: [cell.strip() for cell in cells[2:5]] for name, cells in lines.items()}
    assert judged["`train_sft` over a bare TRL script, whole run"] == ["1.06", "≤1.05", "no"]
    assert judged["`train_sft` over a bare TRL script, a step"] == ["1.01", "≤1.05", "yes"]
    assert judged["SFT, LoRA, batch 16: peak memory, GB"][1] == "≤3"


@pytest.mark.slow
def test_the_bare_script_trains_the_same_layers_on_the_same_tokens(tmp_path, monkeypatch):
    # Without a warm-up, so that the only step trains: a bare script would give it the learning rate 0.
    given = {**training.settings("digits", "SFT, LoRA"), "max_steps": 1, "batch_size": 4, "warmup_ratio": 0.0}
    seen, sizes = [], []
    original = trl.SFTTrainer.training_step

    def spy(self, model, inputs, *rest, **named):
        kept = {name: inputs[name].clone() for name in ("input_ids", "labels", "pixel_values")}
        seen.append({name: value[:, :8] if name == "pixel_values" else value for name, value in kept.items()})
        sizes.append(sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
        return original(self, model, inputs, *rest, **named)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", spy)
    base, data = shapes.folder("digits"), training.rows(training.COLD).select(range(8))
    notes = sft.train_sft(base, data, tmp_path / "ours", SftConfig.from_options(given))
    training.bare(base, data, tmp_path / "bare", given, training.Steps())
    assert sizes == [notes["trainable_parameters"]] * 2
    assert all(seen[0][name].tolist() == seen[1][name].tolist() for name in seen[0])
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "bare"))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.slow
def test_a_board_is_built_and_its_page_opened(capsys, monkeypatch):
    monkeypatch.setattr(board, "OPENINGS", 1)
    found = printed(capsys, monkeypatch, board.main, "--rows", "3", "--tasks", "3", "--items", "40")
    assert found["build"]["cpu_seconds"] > 0 and found["megabytes"]["page"] > 0
    assert set(found["page seconds"]) in ({"opening", "comparing", "an item"}, set())
    text = page.render({"a machine": {"digits": {"board": {**found, "versions": {"numpy": "2"}}}}})
    assert "3 rows, 3 tasks and 40 items each" in text and "| ≤120" in text


def rollouts_of(folder, payload, characters=0, picture=0):
    """A rollouts folder as other writers make it: one row group, large strings, no statistics."""
    labels.make(folder, 4000, payload)
    table = pq.read_table(folder / "rollouts.parquet")
    if characters:
        table = table.set_column(2, "response", pa.array(["x" * characters] * 4000, pa.large_string()))
    pq.write_table(
        table, folder / "rollouts.parquet", write_statistics=False, use_dictionary=False, compression="none"
    )
    if picture:
        rows = [row | {"images": [{"bytes": bytes(picture), "path": None}]} for row in read_rows(folder)]
        features = load_from_disk(str(folder / "items")).features
        with storage.writing(folder / "items", features) as writer:
            writer.rows(rows)
    told = json.loads((folder / "manifest.json").read_text())
    told["files"] = {name: file_sha256(folder / name) for name in told["files"]}
    (folder / "manifest.json").write_text(json.dumps(told))
    return labels.both(folder, "easy,medium,hard")


def read_rows(folder):
    return load_from_disk(str(folder / "items")).data.to_pylist()


@pytest.mark.slow
def test_memory_of_labeling_and_curation_does_not_grow_with_texts_and_images(tmp_path):
    payload = labels.Payload(samples=4)
    small = rollouts_of(tmp_path / "small", payload)
    large = rollouts_of(tmp_path / "large", payload, characters=40_000, picture=500_000)
    size = labels.bytes_of(tmp_path / "large") / 1e6
    grown = {verb: large[verb]["own_peak_mb"] - small[verb]["own_peak_mb"] for verb in small}
    assert size > 600 and grown["label"] < 200 and grown["curate"] < 6.5 * AT_ONCE / 1e6, grown
