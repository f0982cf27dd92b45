"""Recipe files: scales, variants, seeds, inclusion; and the commands that a dry run prints."""

import contextlib
import io
import json
import os
import pty
import re
import shlex
import sys

import click
import pytest

from dcsft_harness import recipes
from dcsft_harness.cli import dcsft, main
from dcsft_harness.data import digits
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import chain
from dcsft_harness.stages import STAGES, training
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig

BASE = """
name: base
about: what others share
variables: {families: ["${cls}"], mix: null}
scales:
  digits: {seeds: [0, 1], cls: {family: cls, pool: dcsft_digits_pool}, size: 10}
  paper: {seeds: [0], cls: {family: cls, pool: dcsft_imagenet_pool}, size: 100}
stages:
  - stage: ${family}-rollouts-${seed}
    each: {family: "${families}", seed: "${seeds}"}
    verb: sample
    task: ${pool}
    seed: ${seed}
    model_args: seed=${seed}
  - stage: ${family}-labels-${seed}
    each: {family: "${families}", seed: "${seeds}"}
    verb: label
    rollouts: "@${family}-rollouts-${seed}"
"""
CHILD = """
name: child
about: what differs
first:
  - {stage: before, verb: label, rollouts: somewhere}
include: [base.yaml]
scales:
  digits: {size: 20}
stages:
  - stage: set-${variant}-${seed}
    each:
      seed: ${seeds}
      variant: [{variant: m, keep: [medium]}, {variant: em, keep: [easy, medium], mix: [hard=0.1]}]
    verb: curate
    labels: "@cls-labels-${seed}"
    keep: ${keep}
    mix: ${mix}
    size: ${size}
  - stage: board
    verb: leaderboard build
    results: ["@set-em-*", elsewhere]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text=CHILD, base=BASE, name="child.yaml"):
        (tmp_path / "base.yaml").write_text(base)
        (tmp_path / name).write_text(text)
        return name

    return write


def test_a_recipe_is_expanded_over_seeds_and_variants_after_its_includes(write):
    found = recipes.load(write())
    assert [stage.name for stage in found.stages] == [
        "before",
        "cls-rollouts-0",
        "cls-rollouts-1",
        "cls-labels-0",
        "cls-labels-1",
        "set-m-0",
        "set-em-0",
        "set-m-1",
        "set-em-1",
        "board",
    ]
    stages = {stage.name: stage for stage in found.stages}
    assert stages["cls-rollouts-1"].options == {
        "task": "dcsft_digits_pool",
        "seed": 1,
        "model_args": "seed=1",
    }
    assert stages["set-m-0"].options == {"labels": "@cls-labels-0", "keep": ["medium"], "size": 20}
    assert stages["set-em-1"].options["mix"] == ["hard=0.1"]
    assert stages["board"].options["results"] == ["@set-em-0", "@set-em-1", "elsewhere"]
    assert stages["board"].references() == ["set-em-0", "set-em-1"]


def test_another_scale_overrides_values_and_inherits_the_rest(write):
    found = recipes.load(write(), "paper")
    stages = {stage.name: stage for stage in found.stages}
    assert "set-m-1" not in stages
    assert stages["set-m-0"].options["size"] == 100
    assert stages["cls-rollouts-0"].options["task"] == "dcsft_imagenet_pool"
    assert found.scale == "paper"


def test_stages_shared_by_several_recipes_appear_once(write):
    other = (
        CHILD.replace("name: child", "name: other")
        .replace("set-", "other-")
        .replace("stage: board", "stage: table")
    )
    names = [write(), write(other, name="other.yaml")]
    found = [stage.name for stage in recipes.load(names).stages]
    assert len(found) == len(set(found)) and found.count("cls-labels-0") == 1
    assert {"set-m-0", "other-m-0", "board", "table"} <= set(found)


@pytest.mark.parametrize(
    ("text", "base", "said"),
    [
        (CHILD.replace("${keep}", "${kept}"), BASE, "variable in '\\${kept}' of recipe .*Did you mean keep"),
        (
            CHILD.replace("@set-em-*", "@set-ex-*"),
            BASE,
            "'board': no earlier stage is called set-ex-\\*",
        ),
        (CHILD.replace("set-${variant}-${seed}", "set"), BASE, "two different stages are called 'set'"),
        (CHILD, BASE + "include: [child.yaml]\n", "includes itself"),
        (CHILD.replace("base.yaml", "bose.yaml"), BASE, "bose.yaml does not exist"),
    ],
)
def test_an_invalid_file_is_refused(write, text, base, said):
    with pytest.raises(HarnessError, match=said):
        recipes.load(write(text, base))


def test_an_unknown_scale_is_refused(write):
    with pytest.raises(HarnessError, match="unknown scale 'papr'.*paper"):
        recipes.load(write(), "papr")
    only = BASE[: BASE.index("  paper:")] + BASE[BASE.index("stages:") :]
    with pytest.raises(HarnessError, match="scale of recipe base: 'paper'.*digits"):
        recipes.load(write(only, name="only.yaml"), "paper")


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_recipes_at_scale_paper_use_the_checkpoints_generation_settings(scale):
    names = sorted(recipes.shipped())
    given = [
        stage.options["model_args"]
        for name in names
        for stage in recipes.load(name, scale).stages
        if name != "digits" and stage.options.get("model_args")
    ]
    mode = {"digits": "neutral", "paper": "checkpoint"}[scale]
    assert given and all(f"generation_config={mode}" in one.split(",") for one in given)


SHIPPED = [(name, scale) for name in sorted(recipes.shipped()) for scale in recipes.SCALES]


@pytest.mark.parametrize(("name", "scale"), SHIPPED)
def test_every_command_of_a_dry_run_parses(name, scale, tmp_path):
    """Parsed by click itself, so that an unknown or missing option shows."""
    found = recipes.load(name, scale)
    # One seed of each: the others differ only in numbers.
    kinds = {re.sub(r"\d+", "", stage.name): stage for stage in found.stages}
    for stage in kinds.values():
        words = chain.command(stage, tmp_path)
        command, rest = dcsft, words[1:]
        while isinstance(command, click.Group):
            command, rest = command.get_command(None, rest[0]), rest[1:]
        given = command.make_context(words[0], list(rest), resilient_parsing=False).params
        assert given["output"] == tmp_path / stage.name
        for option, value in stage.options.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and option in given:
                assert float(given[option]) == value


@pytest.mark.parametrize("name", sorted(set(recipes.shipped()) - {"digits"}))
def test_one_variable_limits_every_response(name):
    limited = {
        "sample": "max_new_tokens",
        "evaluate": "max_new_tokens",
        "train grpo": "max_completion_length",
    }
    found = recipes.load(name, "digits", given={"max_new_tokens": 7})
    asked = {
        stage.name: stage.options.get(limited[stage.verb]) for stage in found.stages if stage.verb in limited
    }
    assert set(asked.values()) <= {7}, asked


def test_a_dry_run_prints_inputs_outputs_time_and_memory(tmp_path):
    told = chain.described(recipes.load("paradigms", "paper"), tmp_path).splitlines()
    at = next(number for number, line in enumerate(told) if line.startswith("# classification-grpo-0"))
    assert (
        f"reads {tmp_path / 'classification-cold-0'}; writes {tmp_path / 'classification-grpo-0'}" in told[at]
    )
    assert "GB on each device" in told[at + 1] and ("min" in told[at + 1] or " h" in told[at + 1])
    words = shlex.split(told[at + 2])
    assert words[:3] == ["dcsft", "train", "grpo"] and "--num-processes" in words
    assert told[-1].startswith("# in all about") and "8 x H100" in told[-1]


@pytest.mark.parametrize("name", recipes.shipped())
def test_at_the_papers_scale_all_gpus_sample_evaluate_and_train(name):
    found = recipes.load(name, "paper")
    counts = {
        stage.verb: stage.options.get("num_processes")
        for stage in found.stages
        if stage.verb in ("sample", "evaluate") or stage.verb.startswith("train")
    }
    # A recipe without assumptions has no such scale: it only covers the embedded suite.
    assert "assume" not in found.variables or set(counts.values()) <= {found.variables["assume"]["devices"]}


def test_estimates_use_the_trainers_defaults():
    said = [
        training.length_of(kind, options, rows)
        for kind, options, rows in (
            (ColdStartConfig, {}, 400),
            (SftConfig, {}, 1000),
            (SftConfig, {"epochs": 2, "batch_size": 10}, 1000),
            (SftConfig, {"epochs": 1}, 100),
            (GrpoConfig, {}, 1000),
            (GrpoConfig, {"epochs": 1}, 1600),
            (GrpoConfig, {"epochs": 1}, 100),
            (GrpoConfig, {"epochs": 2, "batch_size": 64, "num_generations": 4}, 1600),
        )
    ]
    expected = [(25, 16), (600, 16), (200, 10), (7, 16), (600, 128), (100, 128), (6, 128), (200, 64)]
    assert said == expected


def test_estimates_grow_with_the_work():
    paper = chain.estimates(recipes.load("paradigms", "paper"))
    assert paper["classification-grpo-0"].seconds > 2 * paper["classification-all-0"].seconds
    assert paper["classification-rollouts-0"].seconds > paper["classification-scores-cold-0"].seconds / 8
    full = chain.estimates(recipes.load("full-parameters", "paper"))
    assert full["classification-full-all-0"].seconds > paper["classification-all-0"].seconds


@pytest.mark.parametrize("name", ["paradigms", "difficulty", "full-parameters", "relabel"])
def test_recipes_at_the_papers_scale_write_boxes_and_sample_like_the_paper(name):
    """Original pixels, truncated, wherever boxes are taught or scored; top-k 50 wherever GRPO samples."""
    for scale in ("digits", "paper"):
        stages = [stage for stage in recipes.load(name, scale).stages if stage.verb.startswith("train")]
        for stage in stages:
            boxes = scale == "paper" and stage.name.startswith("grounding")
            grpo = stage.verb == "train grpo"
            assert stage.options.get("box_space") == ("pixel" if boxes else None), stage.name
            assert stage.options.get("box_rounding") == ("truncate" if boxes and not grpo else None)
            assert stage.options.get("top_k") == (50 if scale == "paper" and grpo else None)
        assert name != "paradigms" or any(stage.name.startswith("grounding-grpo") for stage in stages)


OWN = {"model": "some/model", "scorer": "choice", "test": "held.jsonl"}


def own(tmp_path, **given):
    pool = tmp_path / "mine.jsonl"
    pool.write_text("{}\n")
    return recipes.load("paradigms", given={**OWN, "pool": str(pool), **given})


def test_a_users_pool_and_model_replace_the_papers(tmp_path):
    found = own(tmp_path, tasks="dcsft_mathvista,dcsft_mmmu")
    stages = {stage.name: stage for stage in found.stages}
    assert found.scale == "paper"
    assert "own-cold-0" not in stages and len(stages) == 15
    assert stages["own-rollouts-0"].options["data"] == str(tmp_path / "mine.jsonl")
    assert stages["own-rollouts-0"].options["model_args"].startswith("pretrained=some/model,")
    assert stages["own-em-0"].options["model"] == "some/model"
    grpo = stages["own-grpo-0"].options
    assert (grpo["data"], grpo["scorer"]) == (str(tmp_path / "mine.jsonl"), "choice")
    scored = stages["own-scores-grpo-0"].options
    assert (scored["data"], scored["scorer"]) == ("held.jsonl", "choice")
    assert scored["tasks"] == ["dcsft_mathvista", "dcsft_mmmu"]
    assert "pretrained=some/model,adapter=@own-grpo-0," in scored["model_args"]
    assert stages["own-scores-cold-0"].options["name"] == "base (seed 0)"


def test_held_out_rows_of_the_pool_are_never_trained_on(tmp_path):
    for name in (
        "paradigms",
        "preferences",
        "full-parameters",
        "relabel",
        "curves",
        "difficulty",
        "test-time",
    ):
        pool = tmp_path / "mine.jsonl"
        pool.write_text("{}\n" * 200)
        given = {"model": "some/model", "scorer": "choice", "pool": str(pool), "held_out": "0.1"}
        for stage in recipes.load(name, given={**given, "image_root": "pictures"}).stages:
            if stage.options.get("data") == str(pool):
                told = [stage.options.get(key) for key in ("held_out", "scorer", "image_root")]
                assert told == [0.1, "choice", "pictures"], (name, stage.name)
            assert stage.verb != "evaluate" or stage.options["data"] == str(pool)
    tokens = recipes.load("paradigms", given=given).stages[0].variables["tokens"]
    assert (tokens["pool"], tokens["evaluated"]) == (180, 20)


def test_recipes_that_train_an_own_pool_in_two_ways_say_what_makes_them_one(tmp_path):
    """Each compares another family of data at its own length; an own pool is the only family."""
    (tmp_path / "mine.jsonl").write_text("{}\n" * 200)
    given = {**OWN, "model": "digits", "pool": str(tmp_path / "mine.jsonl")}
    said = (
        "'own-all-0': max_steps 50 and 250, save_steps 10 and 50"
        r"\. Rename one, or give both the same by --set steps=VALUE and --set save_steps=VALUE"
    )
    with pytest.raises(HarnessError, match=said):
        recipes.load("extended", given=given)
    assert recipes.load("extended", given={**given, "steps": "60", "save_steps": "20"}).stages


@pytest.mark.parametrize("name", sorted(set(recipes.shipped()) - {"digits", "extended"}))
def test_the_baseline_of_your_own_pools_board_is_one_of_its_rows(tmp_path, name):
    (tmp_path / "mine.jsonl").write_text("{}\n" * 200)
    given = {**OWN, "pool": str(tmp_path / "mine.jsonl")}
    stages = {stage.name: stage for stage in recipes.load(name, given=given).stages}
    for stage in stages.values():
        if stage.verb == "leaderboard build":
            rows = {stages[one].options["name"].partition(" (seed")[0] for one in stage.references()}
            assert stage.options["baseline"] in rows and "cold start" not in rows, stage.name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": "60", "save_steps": "20", "keep": "3", "scored_steps": "20,40,60"}, ""),
        ({"steps": "65", "save_steps": "20", "keep": "3", "scored_steps": "40,60,65"}, ""),
        ({"steps": "30"}, "reads checkpoint-40 of 'classification-all-0', which of 30 steps saves every 10"),
        ({"steps": "100"}, "reads checkpoint-10 .* of 100 steps saves every 10 steps and keeps the newest 5"),
        ({"steps": "65", "save_steps": "20", "keep": "3", "scored_steps": "20"}, "reads checkpoint-20"),
        ({"scored_steps": "15"}, "reads checkpoint-15"),
        ({"keep": "null"}, "reads checkpoint-10 .*, which keeps none"),
        ({"save_steps": "null"}, "which of 50 steps saves none"),
        ({"save_steps": "none"}, "which of 50 steps saves none"),
    ],
)
def test_only_checkpoints_that_training_keeps_can_be_scored(given, said):
    if not said:
        recipes.load("curves", given={"seeds": "0", **given})
        return
    with pytest.raises(HarnessError, match=said):
        recipes.load("curves", given={"seeds": "0", **given})


@pytest.mark.parametrize(
    ("text", "every"), [("", 100), ("    save_steps: null\n", None), ("    save_steps: ${steps}\n", 20)]
)
def test_null_means_none_where_none_is_allowed_and_else_the_default(write, text, every):
    head = "name: own\nvariables: {steps: 20}\nstages:\n  - stage: a\n    verb: train sft\n"
    (stage,) = recipes.load(write(f"{head}    model: digits\n    data: x\n    seed: null\n{text}")).stages
    read = STAGES["train sft"].options.from_options(stage.options)
    assert (read.save_steps, read.seed, read.max_steps) == (every, 0, 600)


@pytest.mark.parametrize(
    ("gpus", "given", "shared"),
    [(count, {}, shared) for count, shared in enumerate([None, None, 2, 2, 4, 4, 4, 4, 8, 8])]
    + [(6, {"micro": "8", "sft_micro": "8"}, 2), (3, {"completions": "96"}, 2), (12, {"steps": "7"}, 8)],
)
def test_as_many_gpus_train_as_can_share_every_batch(tmp_path, monkeypatch, gpus, given, shared):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    for stage in own(tmp_path, **given).stages:
        if stage.verb.startswith("train "):
            assert stage.options.get("num_processes") == shared, stage.name
        if stage.verb == "sample":
            assert stage.options.get("num_processes") == (gpus if gpus > 1 else None)


def test_a_batch_that_processes_cannot_share_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(HarnessError, match="stage 'own-all-0': --batch-size 16 cannot be shared by 3 proc"):
        own(tmp_path, num_processes="3")


def test_a_cold_start_on_your_own_data_comes_first(tmp_path):
    stages = {stage.name: stage for stage in own(tmp_path, cold="cold.jsonl").stages}
    assert stages["own-cold-0"].options["data"] == "cold.jsonl"
    assert stages["own-em-0"].options["model"] == "@own-cold-0"


def test_a_pool_may_be_a_task_with_its_own_scorer():
    given = {"pool": "dcsft_digits_pool", "tasks": "dcsft_digits"}
    stages = {stage.name: stage for stage in recipes.load("paradigms", given=given).stages}
    sampled = stages["own-rollouts-0"].options
    assert sampled["task"] == "dcsft_digits_pool" and not {"data", "scorer"} & set(sampled)
    assert "scorer" not in stages["own-grpo-0"].options


def test_variables_are_parsed_like_yaml(tmp_path):
    stages = {stage.name: stage for stage in own(tmp_path, seeds="3,4", steps="7", lr="2e-4").stages}
    assert {"own-em-3", "own-em-4"} <= set(stages)
    assert (stages["own-em-3"].options["max_steps"], stages["own-em-3"].options["seed"]) == (7, 3)
    assert float(stages["own-em-3"].options["learning_rate"]) == 2e-4


def test_the_papers_other_model_size_has_its_own_estimate():
    small, large = (recipes.load("paradigms", "paper", {"size": size}) for size in ("3b", "7b"))
    models = [
        {s.options.get("model") for s in one.stages if "cold-start" in s.verb} for one in (small, large)
    ]
    assert models == [{"Qwen/Qwen2.5-VL-3B-Instruct"}, {"Qwen/Qwen2.5-VL-7B-Instruct"}]
    a, b = chain.estimates(small), chain.estimates(large)
    assert a["classification-cold-0"].seconds < b["classification-cold-0"].seconds


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pol": "x"}, "unknown variable .*'pol'.*pool"),
        ({"pool": "x.jsonl"}, "no scorer is set"),
        ({"pool": "x.jsonl", "scorer": "math"}, "nothing to evaluate on"),
        ({"pool": "x", "test": "y.jsonl"}, "test=y.jsonl is a file, but no scorer is set"),
        ({"pool": "x.jsonl", "scorer": "math", "test": "y", "held_out": 0.1}, "but test=y is set too"),
        ({"pool": "x", "held_out": 0.1}, "but pool=x is a task"),
        ({"pool": "x.jsonl", "scorer": "math", "test": "x.jsonl"}, "test=x.jsonl is the pool itself"),
        ({"pool": "x.jsonl", "scorer": "math", "test": "./y/../x.jsonl"}, "is the pool itself"),
        ({"pool": "x.jsonl", "scorer": "math", "held_out": "all"}, "--held-out all"),
        ({"pool": "x.jsonl", "scorer": "math", "held_out": 10}, "--held-out 10"),
        ({"size": "4b"}, "unknown size .*4b.*3b"),
        ({"seeds": "[0,1]"}, r"seeds=\[0,1\] cannot be read"),
    ],
)
def test_invalid_variables_are_refused(given, said):
    with pytest.raises(HarnessError, match=said):
        recipes.load("paradigms", "paper", given)


def test_variables_of_a_file_are_its_own(write):
    """Variables of recipes that run together; the command line sets those of all."""
    stage = '{stage: NAME, verb: train sft, model: digits, data: d, max_steps: "${steps}"}'
    text = f"variables: {{steps: 100}}\nstages:\n  - {stage}\n"
    write(text.replace("NAME", "a") + "set: {steps: 5}\n", name="a.yaml")
    write(text.replace("NAME", "b"), name="b.yaml")
    write("recipes: [a.yaml, b.yaml]\n", name="both.yaml")
    for names in (["a.yaml", "b.yaml"], "both.yaml"):
        for given, wanted in (({}, [5, 100]), ({"steps": 7}, [7, 7])):
            found = recipes.load(names, given=given)
            assert [stage.options["max_steps"] for stage in found.stages] == wanted


def test_a_file_can_set_the_variables_of_the_command_line(tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    file = tmp_path / "mine.yaml"
    given = {**OWN, "pool": str(tmp_path / "mine.jsonl")}
    file.write_text(json.dumps({"name": "mine", "include": ["paradigms"], "set": given}))
    assert recipes.load(str(file)).stages == own(tmp_path).stages


INIT = ["init", "--pool", "mine.jsonl", "--scorer", "choice", "--tasks", "", "--output", "mine.yaml"]


@pytest.mark.parametrize(
    ("model", "test", "device", "scale", "options", "told"),
    [
        ("digits", "held.jsonl", "cpu", "digits", {"data": "held.jsonl"}, "in all about"),
        ("digits", "0.25", "cpu", "digits", {"data": "mine.jsonl", "held_out": 0.25}, "in all about"),
        ("own/er-7B", "0.25", "4x80", "paper", {"data": "mine.jsonl"}, "4 x GPU 80 GB"),
        ("own/er-72B", "0.25", "1x24", "paper", {"data": "mine.jsonl"}, "would need more than 24 GB"),
    ],
)
def test_init_writes_a_recipe_that_runs(
    tmp_path, monkeypatch, capsys, model, test, device, scale, options, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    (tmp_path / "held.jsonl").write_text("{}\n")
    given = [*INIT, "--model", model, "--test", test, "--device", device]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert "next: dcsft run mine.yaml" in shown.err and told in shown.out + shown.err
    found = recipes.load("mine.yaml")
    assert found.scale == scale and found.stages[0].options["data"] == "mine.jsonl"
    (scored, *_) = [stage.options for stage in found.stages if stage.verb == "evaluate"]
    assert options.items() <= scored.items()
    assert main(given) == 1
    assert "mine.yaml exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "device", "language", "drawn"),
    [  # weights in products, and tokens a second: 400 with 3B on a 24 GB GPU, and less the larger the model
        ("Qwen/Qwen2.5-VL-3B-Instruct", "1x24", 3e9, 412),
        ("my/er-VL", "2x24", 3.09e9, 800),
        ("my/er-7B", "1x24", 7e9, 177),
        ("my/er-7B", "1x80", 7e9, 883),
        ("tiny", "1x24", 1_046_400, 20_000),  # counted
        ("tiny", "cpu", 1_046_400, 787),
    ],
)
def test_init_estimates_for_the_size_of_the_model(model, device, language, drawn):
    given = chain.assumed(str(digits.path()) if model == "tiny" else model, device)["assume"]
    assert (given["language"], given["drawn"]) == (language, pytest.approx(drawn, rel=0.01))
    assert given["load"] == (5 if model == "tiny" else 60)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--test", "none.jsonl"], "--test none.jsonl does not exist"),
        (["--pool", "none.jsonl"], "--pool none.jsonl does not exist"),
        (["--test", ""], "nothing to evaluate on. Pass held-out rows (--test 0.1), or --tasks"),
        (["--test", "1.5"], "--test 1.5 is not a share between 0 and 1"),
        (["--model", "no/such/model"], "model no/such/model does not exist"),
        (["--scorer", "exact_wrod"], "unknown scorer 'exact_wrod'"),
        (["--tasks", "dcsft_digitz"], "unknown task 'dcsft_digitz'"),
        (["--tasks", "dcsft_digits,none.yaml"], "--tasks none.yaml does not exist"),
        (["--device", "gpu"], "--device gpu is neither cpu nor NUMBERxGIGABYTES"),
        (["--device", "0x24"], "--device 0x24 is neither"),
        (["--output", "mine"], "--output mine does not end in .yaml, as a recipe must"),
    ],
)
def test_init_writes_nothing_that_would_not_run(tmp_path, monkeypatch, capsys, given, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    defaults = ["--model", "own/er", "--test", "0.1", "--device", "cpu"]
    assert main([*INIT, *defaults, *given]) == 1
    assert told in capsys.readouterr().err and [one.name for one in tmp_path.glob("mine*")] == ["mine.jsonl"]


def test_init_accepts_patterns_and_files_like_evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "own.yaml", "more.jsonl"):
        (tmp_path / name).write_text("{}\n")
    given = ["--model", "own/er", "--test", "", "--device", "cpu", "--tasks"]
    assert main([*INIT, *given, "own.yaml, more.jsonl,dcsft_digits_?,"]) == 0
    found = [stage.options for stage in recipes.load("mine.yaml").stages if stage.verb == "evaluate"]
    assert found[0]["tasks"] == ["own.yaml", "more.jsonl", "dcsft_digits_?"]


def test_init_prompts_again_after_a_mistake(tmp_path):
    """Each prompt gets a mistake first."""
    (tmp_path / "mine.jsonl").write_text("{}\n")
    answers = {
        "Model": ["no/such/model", "digits"],
        "Training rows": ["none.jsonl", "mine.jsonl"],
        "Scorer of the rows": ["exact_wrod", "exact_word"],
        "Held-out rows": ["1.5", ""],
        "Further tasks": ["dcsft_digitz", ""],
        "Device": ["gpu", "cpu"],
        "Recipe file": ["mine.jsonl", "mine.yaml"],
    }
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover - another process
        os.chdir(tmp_path)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        code = main(["init"])
        sys.stdout.flush()
        os._exit(code)
    shown = ""
    for prompt, given in answers.items():
        for answer in given:
            before = shown
            while not re.search(rf"{prompt}[^\n]*: $", shown) or shown == before:
                shown += os.read(terminal, 4096).decode()
            os.write(terminal, answer.encode() + b"\n")
    with contextlib.suppress(OSError):  # the terminal's end
        while piece := os.read(terminal, 4096).decode():
            shown += piece
    assert os.waitpid(child, 0)[1] == 0, shown
    assert shown.count("Error: ") == len(answers)
    assert "next: dcsft run mine.yaml" in shown
    assert "held_out: 0.1" in (tmp_path / "mine.yaml").read_text()


def test_init_without_input_names_the_missing_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["init", "--model", "digits"]) == 1
    assert "--pool is missing, and there is no terminal to ask in. Pass --pool" in capsys.readouterr().err


@pytest.mark.parametrize(("output", "code"), [("a/b/my own.yaml", 0), ("mine.jsonl/mine.yaml", 1)])
def test_init_creates_the_folder_of_its_file(tmp_path, monkeypatch, capsys, output, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    words = ["--model", "digits", "--test", "0.5", "--device", "cpu", *INIT[1:-1], output]
    assert main(["init", *words]) == code
    assert (tmp_path / output).is_file() == (code == 0)
    refused = "dcsft: --output mine.jsonl/mine.yaml: mine.jsonl is a file. Name a file in a folder."
    done = "next: dcsft run 'a/b/my own.yaml' --output 'runs/my own'"
    assert (refused if code else done) in capsys.readouterr().err


def test_init_does_not_ask_for_the_scorer_of_a_task(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from dcsft_harness.cli import dcsft

    monkeypatch.chdir(tmp_path)
    asked = CliRunner().invoke(
        dcsft, ["init"], input="digits\ndcsft_digits_pool\n\ndcsft_digits\ncpu\nmine.yaml\n"
    )
    assert asked.exit_code == 0 and "Scorer" not in asked.output, asked.output


def test_core_runs_the_same_arms_on_both_pools_from_the_same_cold_starts():
    stages = {stage.name: stage for stage in recipes.load("core").stages}
    for clean, noisy in (("classification", "classification-noisy"), ("large", "large-noisy")):
        own = (rf"{family}-(?!noisy|cold|scores-cold)(.*)" for family in (clean, noisy))
        arms = [{match[1] for name in stages if (match := re.fullmatch(text, name))} for text in own]
        assert arms[0] == arms[1] and len(arms[0]) > 30, clean
    colds = {name for name, stage in stages.items() if stage.verb == "train cold-start"}
    assert colds == {f"classification-cold-{seed}" for seed in range(10)}
    for name in ("large-only-hard-3", "classification-noisy-grpo-3", "classification-m-3"):
        assert stages[name].options["model"] == "@classification-cold-3"
    pools = {stage.options["task"] for stage in stages.values() if stage.verb == "sample"}
    assert pools == {f"dcsft_digits_pool{a}{b}" for a in ("", "_large") for b in ("", "_noisy")}
    tables = {name: stages[name].options for name in ("large-set-only-hard-0", "large-only-hard-0")}
    # One epoch: 20 steps of 16.
    assert (tables["large-set-only-hard-0"]["size"], tables["large-only-hard-0"]["max_steps"]) == (320, 20)


def test_no_two_rules_are_equal():
    """At G = 8, pass rates from 0.1 to 0.9 are the medium items."""
    for name in ("core", "rules"):
        found = {}
        for stage in recipes.load(name).stages:
            if stage.verb == "curate" and stage.name.endswith("-0"):
                options = tuple(sorted((key, str(value)) for key, value in stage.options.items()))
                assert options not in found, (stage.name, found[options])
                found[options] = stage.name
                assert stage.options.get("band") != "0.1,0.9"


def test_a_list_of_recipes_equals_naming_them(write):
    both = write(
        json.dumps({"name": "both", "about": "x", "recipes": ["rules", "difficulty"]}), name="both.yaml"
    )
    named = recipes.load(["rules", "difficulty"])
    found = recipes.load(both)
    assert found.stages == named.stages and (found.name, found.scale) == ("both", "digits")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"set": {"steps": 3}}, "has `recipes` and other keys"),
        ({"stages": [{"stage": "x", "verb": "label"}]}, "has `recipes` and other keys"),
        ({"recipes": ["core"]}, "names core, which names recipes itself"),
        ({"recipes": ["none"]}, "recipe 'none'"),
    ],
)
def test_an_invalid_list_of_recipes_is_refused(write, more, said):
    with pytest.raises(HarnessError, match=said):
        recipes.load(write(json.dumps({"name": "both", "recipes": ["rules"], **more}), name="both.yaml"))
