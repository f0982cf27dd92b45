"""`dcsft compare-cost`: costs summed along manifests, ratios, equal budgets, and unknown parts."""

import csv
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest

from dcsft_harness import environment, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.usage import Ledger
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import cost, cost_report


def make(kind, folder, config=(), notes=(), inputs=(), files=()):
    with manifest.writing(kind, folder, dict(config), dict(inputs)) as draft:
        draft.notes.update(dict(notes))
        for name, text in dict(files).items():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_text(text)
    return folder


def ledger(**figures):
    values = {"peak_memory_bytes": 1000, "flops": 1e12, "seconds": 10.0}
    return {"ledger": Ledger(**{**values, **figures}).as_dict()}


def history(*rows):
    names = ("step", "samples", "tokens", "seconds")
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


def trained(folder, method, data, cold, figures, rows=(), kept=(), adapter=None, full=False):
    """A finished training run with its log and the checkpoints that it kept."""
    files = {"training_log.jsonl": history(*rows)}
    files |= {f"checkpoint-{step}/adapter_config.json": json.dumps([folder.name, step]) for step in kept}
    inputs = {"model": cold} | ({"data": data} if data else {}) | ({"adapter": adapter} if adapter else {})
    notes = {"base": str(cold), "steps": figures.get("steps"), **ledger(**figures)}
    kind = "checkpoint" if full or method == "cold-start" else "adapter"
    return make(kind, folder, {"method": method, "full": full}, notes, inputs, files)


def scored(folder, adapter, cold, accuracies, pixels=None, more="", **conditions):
    tasks = {
        name: {"distribution": name[:-1], "accuracy": value, "version": 1, **conditions}
        for name, value in accuracies.items()
    }
    config = {
        "model": "dcsft_hf",
        "model_args": f"pretrained={cold},adapter={adapter},batch_size=4{more}",
        "tasks": [*tasks],
    }
    notes = {"tasks": tasks, "pixels": pixels}
    return make("scores", folder, config, notes, {"model": cold, "adapter": adapter})


@pytest.fixture
def place(tmp_path):
    """A cold start, labels, and three training runs from it: SFT on everything, DC-SFT and GRPO."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    cold = trained(tmp_path / "cold", "cold-start", None, base, {"steps": 5, "prompts": 80, "seconds": 7.0})
    drawn = {"prompts": 10, "generated": 80, "prompt_tokens": 400, "completion_tokens": 240}
    rollouts = make(
        "rollouts",
        tmp_path / "rollouts",
        notes=ledger(**drawn, flops=5e11, seconds=4.0, peak_memory_bytes=3000),
        inputs={"model": cold},
    )
    labels = make("labels", tmp_path / "labels", inputs={"rollouts": rollouts})
    sets = {
        name: make(
            "curated set", tmp_path / name, {"keep": keep, "mix": {}, "size": None, "seed": 1}, {}, both
        )
        for both in [{"labels": labels, "rollouts": rollouts}]
        for name, keep in {"all": ["easy", "medium", "hard"], "em": ["easy", "medium"]}.items()
    }
    figures = {"steps": 4, "prompts": 64, "prompt_tokens": 2000, "completion_tokens": 200}
    rows = [(step, 16 * step, 550 * step, 2.5 * step) for step in range(1, 5)]
    trained(tmp_path / "sft", "sft", sets["all"], cold, figures, rows, kept=(1, 2, 3, 4))
    trained(tmp_path / "dc", "sft", sets["em"], cold, figures, rows, kept=(1, 2))
    grpo = {"steps": 2, "prompts": 4, "generated": 32, "prompt_tokens": 1200, "completion_tokens": 300}
    rows = [(1, 16, 750, 8.0), (2, 32, 1500, 16.0)]
    trained(tmp_path / "rl", "grpo", None, cold, {**grpo, "flops": 4e12, "seconds": 16.5}, rows, kept=(1, 2))
    return tmp_path


def compared(place, *names, **options):
    return cost_report.as_dict(cost_report.compare([place / name for name in names], **options))


def test_labels_count_only_for_the_set_they_selected(place):
    found = compared(place, "sft", "dc", "rl")
    sft, dc, rl = found["runs"]
    assert [run["method"] for run in found["runs"]] == ["SFT", "DC-SFT", "GRPO"]
    assert (sft["labelling"], rl["labelling"]) == (None, None)
    assert "keeps every difficulty" in sft["remarks"][0]
    assert dc["labelling"]["generated"] == 80 and dc["training"]["generated"] == 0
    total = dc["total"]
    assert (total["steps"], total["prompts"], total["generated"]) == (4, 74, 80)
    assert (total["prompt_tokens"], total["completion_tokens"]) == (2400, 440)
    assert (total["flops"], total["seconds"], total["peak_memory_bytes"]) == (1.5e12, 14.0, 3000)
    assert dc["ratio"]["seconds"] == pytest.approx(1.4) and dc["ratio"]["generated"] is None
    assert rl["ratio"]["flops"] == pytest.approx(4)
    assert found["shared"]["cold"]["seconds"] == 7.0
    assert found["baseline"] == "sft" and compared(place, "sft", "rl", baseline="rl")["baseline"] == "rl"
    again = compared(place, "dc", "rl", baseline=str(place / "rl"))
    assert again["runs"][0]["ratio"]["seconds"] == pytest.approx(14 / 16.5)


def test_a_cold_start_that_is_not_shared_is_in_the_totals(place):
    other = trained(place / "other", "sft", None, place / "base", {"steps": 1, "seconds": 1.0})
    found = cost_report.as_dict(cost_report.compare([place / "dc", other]))
    assert found["shared"] == {}
    assert found["runs"][0]["earlier"]["seconds"] == 7.0
    assert found["runs"][0]["total"]["seconds"] == 10 + 4 + 7
    assert found["runs"][1]["total"]["seconds"] == 1


@pytest.mark.parametrize(
    ("method", "data", "adapter", "named"),
    [
        ("sft", "em", None, "DC-SFT"),
        ("sft", "em", "dc", "DC-SFT"),
        ("sft", "all", "dc", "SFT"),  # labels chose what the adapter was trained on, not this set
        ("grpo", "em", None, "GRPO on a curated set"),
        ("grpo", None, "dc", "GRPO"),
        ("dpo", "rollouts", None, "DPO"),
        ("dpo", "rollouts", "dc", "DPO"),
        ("dpo", "em", None, "DPO on a curated set"),
    ],
)
def test_a_method_is_named_after_the_data_of_its_own_training(place, method, data, adapter, named):
    paths = (None if name is None else place / name for name in (data, adapter))
    data, adapter = paths
    trained(place / "more", method, data, place / "cold", {"steps": 1}, adapter=adapter)
    assert compared(place, "more")["runs"][0]["method"] == named


def test_relabeling_counts_every_earlier_artifact_once(place):
    second = make(
        "rollouts",
        place / "second",
        notes=ledger(generated=8, seconds=2.0),
        inputs={"model": place / "cold", "adapter": place / "dc"},
    )
    chosen = make("curated set", place / "set2", {"keep": ["medium"]}, inputs={"rollouts": second})
    figures = {"steps": 3, "seconds": 5.0}
    trained(place / "dc2", "sft", chosen, place / "cold", figures, adapter=place / "dc")
    run = compared(place, "dc2")["runs"][0]
    assert run["labelling"]["generated"] == 88 and run["labelling"]["seconds"] == 6
    assert run["earlier"]["seconds"] == 10 and run["total"]["seconds"] == 5 + 6 + 10


def test_an_input_lost_by_one_artifact_is_found_through_another(place):
    rollouts = {"rollouts": place / "rollouts"}
    lost = make("curated set", place / "far" / "set", {"keep": ["medium"]}, inputs=rollouts)
    (lost / manifest.NAME).write_text((lost / manifest.NAME).read_text().replace("../../rollouts", "../gone"))
    trained(place / "dc2", "sft", lost, place / "cold", {"seconds": 5.0}, adapter=place / "dc")
    run = compared(place, "dc2")["runs"][0]
    assert run["labelling"]["generated"] == 80 and "seconds" in run["lower_bounds"]


def test_a_merged_checkpoint_costs_as_much_as_its_adapter(place):
    merged = make("checkpoint", place / "merged", inputs={"model": place / "cold", "adapter": place / "sft"})
    run = compared(trained(place / "more", "grpo", None, merged, {"steps": 1}).parent, "more")["runs"][0]
    assert run["earlier"]["seconds"] == 10 and run["lower_bounds"] == []
    with pytest.raises(HarnessError, match="was merged, not trained"):
        compared(place, "merged")


@pytest.mark.parametrize(("gone", "said"), [("rollouts", "rollouts"), ("em", "data")])
def test_a_missing_input_makes_the_total_a_lower_bound(place, gone, said):
    shutil.rmtree(place / gone)
    found = cost_report.compare([place / "rl", place / "dc"])
    run = cost_report.as_dict(found)["runs"][1]
    assert run["total"]["seconds"] == 10.0 and "seconds" in run["lower_bounds"]
    assert run["ratio"]["seconds"] is None
    text = cost_report.markdown(found)
    assert f"its total is a lower bound, as the {said} that" in text and "≥ 10.0 s" in text
    equal = compared(place, "rl", "sft", "dc")["equal"]
    assert {one["said"] for one in equal if one["run"] == "dc"} == {"its cost is unknown"}
    assert {one["kept"] for one in equal if one["run"] == "sft"} == {True}


def test_a_changed_input_is_reported(place):
    note = json.loads((place / "rollouts" / manifest.NAME).read_text())
    note["notes"]["ledger"]["generated"] = 1
    (place / "rollouts" / manifest.NAME).write_text(json.dumps(note))
    assert "changed" in compared(place, "dc")["runs"][0]["remarks"][0]


def test_a_cost_without_a_ledger_is_unknown_and_not_zero(place):
    older = make(
        "adapter", place / "older", {"method": "sft"}, {"steps": 4, "base": "b"}, {"model": place / "cold"}
    )
    run, said = compared(place, "older")["runs"][0], cost_report.markdown(cost_report.compare([older]))
    assert (run["training"]["steps"], run["training"]["flops"]) == (4, None)
    assert "has no ledger" in said and "unknown" in said
    notes = ledger(generated=8, flops=0.0) | {"ledger_unknown": {"flops": "the model does not say"}}
    served = make("rollouts", place / "served", notes=notes)
    chosen = make("curated set", place / "set3", {"keep": ["medium"]}, inputs={"rollouts": served})
    trained(place / "dc3", "sft", chosen, place / "cold", {"steps": 1})
    run = compared(place, "dc3")["runs"][0]
    assert run["labelling"]["flops"] is None and run["lower_bounds"] == ["flops"]


@pytest.mark.parametrize(
    ("config", "chose"),
    [
        ({"keep": ["easy", "medium", "hard"], "size": 5, "seed": 3}, False),
        ({"keep": ["easy", "hard", "medium"], "weight": "p(1-p)"}, True),
        ({"keep": [], "band": [0.1, 0.9]}, True),
        ({"keep": ["medium"], "mix": {"hard": 0.1}}, True),
        ({"keep": ["easy", "medium", "hard"], "mix": {}, "suspect": 0.9}, True),
    ],
)
def test_labels_select_by_more_than_difficulty(config, chose):
    assert cost.selective(config) is chose


def test_equal_budgets_name_the_newest_kept_checkpoint_within_them(place):
    found = compared(place, "sft", "dc", "rl")
    equal = {(one["unit"], one["run"]): one for one in found["equal"]}
    # In samples GRPO is the cheapest with 32; the labels of dc alone took 80.
    assert {one["budget"] for (unit, _), one in equal.items() if unit == "samples"} == {32}
    sft = equal["samples", "sft"]
    assert (sft["checkpoint"], sft["step"], sft["spent"]) == ("checkpoint-2", 2, 32)
    assert equal["samples", "dc"]["said"] == "its inputs already cost more"
    assert (equal["samples", "rl"]["checkpoint"], equal["samples", "rl"]["step"]) == (None, 2)
    # In tokens it is the cheapest too, with 1,500: 2 steps of SFT, 1 of DC-SFT after 640 for labels.
    assert equal["tokens", "sft"]["checkpoint"] == "checkpoint-2"
    assert (equal["tokens", "dc"]["checkpoint"], equal["tokens", "dc"]["spent"]) == ("checkpoint-1", 1190)
    # In time SFT is, with 10 s: two steps of DC-SFT after 4 s, one of GRPO.
    assert (equal["seconds", "sft"]["step"], equal["seconds", "sft"]["spent"]) == (4, 10.0)
    assert (equal["seconds", "dc"]["checkpoint"], equal["seconds", "dc"]["spent"]) == ("checkpoint-2", 9.0)
    assert equal["seconds", "rl"]["checkpoint"] == "checkpoint-1"
    shutil.rmtree(place / "sft" / "checkpoint-1")
    shutil.rmtree(place / "sft" / "checkpoint-2")
    lacking = next(one for one in compared(place, "sft", "rl")["equal"] if one["run"] == "sft")
    assert (lacking["kept"], lacking["step"]) == (False, 2)
    assert lacking["said"] == "no kept checkpoint is within"


def test_samples_include_those_behind_the_labels(place):
    run = cost_report.compare([place / "dc"]).runs[0]
    assert run.spent("samples") == 80 + 64


def test_accuracies_are_matched_by_content_and_missing_ones_come_with_a_command(place):
    cold = place / "cold"
    folders = [
        scored(place / "s1", place / "sft", cold, {"id1": 0.5, "ood1": 0.2, "ood2": 0.4}),
        scored(place / "s2", place / "rl", cold, {"id1": 0.6, "ood1": 0.3}),
        scored(place / "s3", place / "sft" / "checkpoint-2", cold, {"id1": 0.45, "ood1": 0.1, "ood2": 0.2}),
    ]
    found = cost_report.compare([place / "sft", place / "dc", place / "rl"], folders)
    said = cost_report.as_dict(found)
    assert said["runs"][0]["accuracy"] == {"id": 0.5, "ood": pytest.approx(0.3)}
    assert said["runs"][1]["accuracy"] is None
    assert said["runs"][2]["accuracy"] == {"id": 0.6, "ood": None}  # never over fewer tasks
    equal = {(one["unit"], one["run"]): one for one in said["equal"]}
    assert equal["samples", "sft"]["accuracy"]["ood"] == pytest.approx(0.15)
    assert equal["seconds", "sft"]["accuracy"]["id"] == 0.5
    commands = [shlex.split(line) for line in said["to_evaluate"]]
    given = {command[command.index("--model-args") + 1] for command in commands}
    ends = [place / "dc" / "checkpoint-1", place / "dc" / "checkpoint-2", place / "rl" / "checkpoint-1"]
    assert given == {
        f"pretrained={cold.resolve()},adapter={ends[0]}",
        f"pretrained={cold.resolve()},adapter={ends[1]}",
        f"pretrained={cold},adapter={ends[2]},batch_size=4",
    }
    assert all(command[command.index("--tasks") + 1] == "id1,ood1,ood2" for command in commands)
    text = cost_report.markdown(found)
    assert "50.00 %" in text and "not scored" in text and f"adapter={ends[1]}" in text


@pytest.mark.parametrize(
    ("change", "differing"), [({"limit": 10}, "limit"), ({"more": ",system_prompt=Think."}, "system prompt")]
)
def test_scores_of_other_adapters_or_conditions_are_reported(place, change, differing):
    cold = place / "cold"
    one = scored(place / "s1", place / "sft", cold, {"id1": 0.5}, limit=None)
    other = scored(place / "s2", place / "rl", cold, {"id1": 0.6}, **{"limit": None, **change})
    said = "\n".join(cost_report.compare([place / "sft", place / "rl"], [one, other]).remarks)
    assert f"accuracies on id1 are not comparable: {other} has another {differing}" in said
    assert f"{other} scores none of these runs" in "\n".join(
        cost_report.compare([place / "sft"], [other]).remarks
    )
    twice = scored(place / "s3", place / "sft", cold, {"id1": 0.5})
    with pytest.raises(HarnessError, match="score the same adapter on id1"):
        cost_report.compare([place / "sft"], [one, twice])


def test_the_command_for_missing_scores_has_the_limit_of_the_others(place):
    cold = place / "cold"
    limited = scored(place / "s1", place / "sft", cold, {"id1": 0.5}, limit=16)
    commands = cost_report.as_dict(cost_report.compare([place / "sft", place / "rl"], [limited]))[
        "to_evaluate"
    ]
    assert commands and all("--limit 16 --tasks id1" in line for line in commands)


@pytest.mark.parametrize(
    ("options", "tasks", "said"),
    [
        ({"scorer": "choice"}, {"mine": 0.5}, "--data mine.jsonl --scorer choice"),
        (
            {"scorer": "choice", "held_out": 0.1},
            {"mine_held_out": 0.5, "ood1": 0.2},
            "--data mine.jsonl --tasks ood1 --scorer choice --held-out 0.1",
        ),
        (
            {"scorer": "choice", "image_root": "pics", "allow_outside_root": True, "include_path": "own"},
            {"mine": 0.5},
            "--data mine.jsonl --include-path own --scorer choice --image-root pics --allow-outside-root",
        ),
    ],
)
def test_the_command_for_missing_scores_names_own_rows_by_file(place, monkeypatch, options, tasks, said):
    monkeypatch.chdir(place)
    Path("mine.jsonl").write_text("{}\n")
    kinds = {name: {"distribution": "id", "accuracy": value} for name, value in tasks.items()}
    inputs = {"model": place / "cold", "adapter": place / "sft", "data": Path("mine.jsonl")}
    config = {"model": "dcsft_hf", "model_args": f"pretrained={place / 'cold'},adapter={place / 'sft'}"}
    reset = manifest.CALL.set({"verb": "evaluate", "options": options})
    make("scores", place / "s1", config, {"tasks": kinds}, inputs)
    manifest.CALL.reset(reset)
    found = cost_report.as_dict(cost_report.compare([place / "sft", place / "rl"], [place / "s1"]))
    assert found["to_evaluate"] and all(f" {said} --output" in line for line in found["to_evaluate"])


def test_the_command_for_missing_scores_samples_like_the_others(place):
    cold, drawn = place / "cold", {"max_new_tokens": 1024, "samples": 4, "temperature": 0.7, "seed": 3}
    inputs = {"model": cold, "adapter": place / "sft"}
    config = {"model": "dcsft_hf", "model_args": f"pretrained={cold},adapter={place / 'sft'}", **drawn}
    make("scores", place / "s1", config, {"tasks": {"id1": {"distribution": "id", "accuracy": 0.5}}}, inputs)
    found = cost_report.as_dict(cost_report.compare([place / "sft", place / "rl"], [place / "s1"]))
    wanted = " --samples 4 --temperature 0.7 --max-new-tokens 1024 --seed 3 --tasks id1 "
    assert found["to_evaluate"] and all(wanted in line for line in found["to_evaluate"])


def test_other_machines_and_versions_are_reported(place, monkeypatch):
    assert cost_report.compare([place / "sft", place / "rl"]).remarks == ()
    monkeypatch.setattr(environment, "hardware", lambda: {"processor": "another", "cores": 64})
    monkeypatch.setattr(environment, "packages", lambda: {"torch": "0.1"})
    trained(place / "far", "grpo", None, place / "cold", {"steps": 1})
    times, versions = cost_report.compare([place / "sft", place / "far"]).remarks
    assert times.startswith("times are not comparable: ") and "another (far)" in times
    assert "torch" in versions and "0.1 (far)" in versions


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ([], {}, "no adapters or checkpoints"),
        (["sft", "sft"], {}, "is given twice"),
        (["rollouts"], {}, "holds rollouts"),
        (["sft"], {"baseline": "sfd"}, "Did you mean sft"),
        (["base"], {}, "has no manifest.json"),
    ],
)
def test_incomparable_runs_are_refused(place, names, options, said):
    with pytest.raises(HarnessError, match=said):
        cost_report.compare([place / name for name in names], **options)


def test_files_edited_after_they_were_written_are_refused(place):
    scores = scored(place / "scores", place / "sft", place / "cold", {"id1": 0.5})
    data = json.loads((scores / "manifest.json").read_text())
    data["files"]["scores.parquet"] = "0" * 64
    (scores / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(HarnessError, match=r"scores\.parquet does not match manifest\.json beside it"):
        cost_report.compare([place / "sft"], scores=[scores])
    (place / "sft" / "training_log.jsonl").write_text("")
    with pytest.raises(HarnessError, match=r"training_log\.jsonl does not match manifest\.json beside it"):
        cost_report.compare([place / "sft"])


def test_folders_with_the_same_name_are_distinguished(place):
    trained(place / "more" / "sft", "sft", None, place / "cold", {"steps": 1})
    found = compared(place, "sft", "more/sft")
    assert [run["name"] for run in found["runs"]] == [str(place / "sft"), str(place / "more" / "sft")]


def test_the_command_prints_and_writes(place, capsys):
    names = [str(place / name) for name in ("sft", "dc", "rl")]
    assert main(["compare-cost", *names]) == 0
    printed = capsys.readouterr().out
    assert "| dc (DC-SFT): total" in printed and "1.5 TFLOP" in printed
    assert main(["compare-cost", *names, "--baseline", "rl", "--output", str(place / "out")]) == 0
    written = manifest.read(place / "out", "cost comparison")
    assert written.notes["rows"] == ["sft", "dc", "rl"] and "run 3" in written.inputs
    assert capsys.readouterr().out.strip() in (place / "out" / "costs.md").read_text()
    rows = list(csv.DictReader(io.StringIO((place / "out" / "costs.csv").read_text())))
    assert float(rows[1]["total_seconds"]) == 14 and float(rows[1]["labelling_generated"]) == 80
    assert json.loads((place / "out" / "costs.json").read_text())["baseline"] == "rl"
    with pytest.raises(HarnessError, match="already holds a cost comparison"):
        stages.STAGES["compare-cost"](place / "out", None, artefacts=[place / "sft"])


@pytest.mark.parametrize(
    ("figure", "value", "shown"),
    [
        ("flops", 1.2e12, "1.2 TFLOP"),
        ("flops", 999.7e9, "1 TFLOP"),
        ("flops", 123.4e9, "123 GFLOP"),
        ("flops", 12, "12 FLOP"),
        ("seconds", 4.25, "4.2 s"),
        ("seconds", 59.97, "1 min 0 s"),
        ("seconds", 200, "3 min 20 s"),
        ("seconds", 3600 * 5 + 60 * 12 + 3, "5 h 12 min"),
        ("seconds", 86400 * 2 + 3600 * 3, "2 d 3 h"),
        ("peak_memory_bytes", 1.19e9, "1.19 GB"),
        ("prompt_tokens", 1234567, "1,234,567"),
    ],
)
def test_figures_are_shown_in_readable_units(figure, value, shown):
    assert cost_report.human(figure, value) == shown


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"pixels": {"max_pixels": 10}}, {"pixels": {"max_pixels": 20}}, "another pixel limit max_pixels"),
        ({"metric": "acc"}, {"metric": "f1"}, "another metric"),
        ({"pixels": {"max_pixels": 10}, "metric": "acc"}, {"pixels": {"max_pixels": None}}, None),
        ({"pixels": {"max_pixels": 10}}, {"pixels": None}, None),
    ],
)
def test_accuracies_under_other_conditions_are_reported(place, first, second, said):
    for name, conditions in (("sft", first), ("dc", second)):
        scored(place / f"s-{name}", place / name, place / "cold", {"id1": 0.5}, **conditions)
    found = cost_report.read_scores([place / "s-sft", place / "s-dc"]).remarks
    assert (said in " ".join(found)) if said else not found
