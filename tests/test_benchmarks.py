"""The benchmarks run on a small scale, and the page says what they printed."""

import json
import sys

import pytest

from benchmarks import __main__ as runner
from benchmarks import answers, growth, page, sampling, shapes
from benchmarks.measuring import median, ratio, rounds


def printed(capsys, monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    main()
    return json.loads(capsys.readouterr().out.strip().split("\n")[-1])


def test_ways_run_in_turn_and_ratios_are_within_rounds():
    order = []
    found = rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert len(found["a"]) == 2
    times = {"a": [1.0, 10.0, 3.0], "b": [2.0, 5.0, 1.0]}
    assert (ratio(times, "a", "b"), median(times, "a")) == (2.0, 3.0)


@pytest.mark.slow
def test_the_page_says_whether_a_target_is_reached(capsys, monkeypatch):
    monkeypatch.setattr(sampling, "SIDES", {"digits": {224: 2}})
    found = printed(capsys, monkeypatch, sampling.main, "--rounds", "1")
    ways = found["results"][0]["over the engine"]
    assert {"8 passes, batch 4", "generate(num_return_sequences=8)", "prefill of the same batch"} < set(ways)
    assert [one["comparison"] for one in found["results"]][1] == "2 items, from lmms-eval's requests"
    found["results"][0]["over the engine"] |= {"8 passes, batch 4": 12.3, "8 passes, same batch": 5.9}
    text = page.render({"a machine": {"digits": {"sampling": {**found, "versions": {"torch": "2"}}}}})
    assert "## digits on a machine" in text and "(torch 2)" in text
    lines = {cells[2].strip(): cells for line in text.split("\n") if len(cells := line.split("|")) > 6}
    assert [cell.strip() for cell in lines["8 passes, batch 4"][3:6]] == ["12.3", "≥12", "yes"]
    assert [cell.strip() for cell in lines["8 passes, same batch"][3:6]] == ["5.9", "≥6", "no"]


def test_long_answers_have_the_lengths_that_are_forced_on_them(capsys, monkeypatch):
    found = printed(
        capsys, monkeypatch, answers.main, "--items", "2", "--longest", "6", "--rounds", "1", "--side", "56"
    )
    assert found["rows"] == 16
    assert found["ideal"]["rows"] % shapes.SAMPLES == 0
    assert 1 <= found["ideal"]["tokens"] <= 6


@pytest.mark.slow
def test_growth_asks_for_as_many_samples_as_it_says(capsys, monkeypatch):
    monkeypatch.setattr(growth, "GS", (1, 3))
    monkeypatch.setattr(growth, "SIDES", (56,))
    found = printed(capsys, monkeypatch, growth.main, "--rounds", "1")
    assert list(found["seconds by G at 112 px"]) == ["1", "3"]


def test_every_part_has_a_section_and_a_module():
    for part in runner.PARTS:
        assert part in page.SECTIONS
        if part != "vllm_overhead":
            assert runner.command(part, "digits")[2] == f"benchmarks.{part}"


def test_a_published_size_is_built_with_random_weights(monkeypatch):
    small = {"text_config": {"num_hidden_layers": 1, "layer_types": ["full_attention"]}}
    monkeypatch.setitem(shapes.PUBLISHED, "small", small)
    folder = shapes.folder("small")
    config = json.loads((shapes.Path(folder) / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 1
    assert (shapes.Path(folder) / "model.safetensors").exists()
