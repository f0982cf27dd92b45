"""A dry run prints what a stage needs, and a stage that does not fit is refused before weights are read."""

import copy
import json
import re
import types
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from dcsft_harness import reading, recipes
from dcsft_harness.artifacts import manifest, usage
from dcsft_harness.cli import main
from dcsft_harness.cli.running import command_of
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation.autoeval import open_board
from dcsft_harness.models import checkpoint as models
from dcsft_harness.models import estimates, published
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.recipes import chain, rehearsal
from dcsft_harness.stages import STAGES
from dcsft_harness.stages.stage import place_of
from dcsft_harness.training import data, lora, run, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from tests.artifacts.test_manifest import FIRST_ENGINES, FIRST_READERS, first_edition  # noqa: F401
from tests.fixtures import forked
from tests.training.test_training_families import checkpoint as tiny
from tests.training.test_training_families import conversations

BASE = "../../../dcsft_harness/data/digits/base"
LOADING = [verb for verb in FIRST_ENGINES if verb != "dpo"]  # whose fixture has no pairs
PLANNED = {name: words for name, words in FIRST_READERS.items() if name != "card"} | {
    name: FIRST_ENGINES[name] for name in LOADING
}


@pytest.mark.parametrize("verb", PLANNED)
def test_a_dry_run_prints_memory_and_time_without_reading_weights_or_writing(
    verb,
    first_edition,  # noqa: F811
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(first_edition)
    monkeypatch.setattr(models, "open_weights", lambda *given, **more: pytest.fail("weights were read"))
    if PLANNED[verb][0] == "train" and "--adapter" not in PLANNED[verb]:  # the adapter's base is checked
        monkeypatch.setattr(manifest, "folder_sha256", lambda folder: pytest.fail("weights were hashed"))
    before = sorted(first_edition.rglob("*"))
    assert main([*(word.replace("BASE", BASE) for word in PLANNED[verb]), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "| memory |" in said and "| time |" in said and "B of " in said
    assert sorted(first_edition.rglob("*")) == before


def test_every_verb_has_a_dry_run_and_uses_the_device_only_there(capsys):
    for verb, stage in STAGES.items():
        command = command_of(verb)
        names = {one.name for one in command.get_params(click.Context(command))}
        assert {"dry_run", "device"} <= names, verb
        assert isinstance(command, click.Command) and (stage.light is None) == (
            verb.startswith("train") or verb in ("sample", "evaluate", "merge")
        )
    code = main(["label", "rollouts", "--output", "labels", "--device", "24 GB"])
    assert code == 1 and "--device 24 GB applies to dry runs" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["24", "24 GB", "24gb", "24 GiB", " 24.0 G "])
def test_a_device_can_be_given_by_its_memory(text):
    device = usage.Device.named(text)
    assert (device.kind, device.total) == ("cuda", 24e9) and 21e9 < device.free < 24e9


@pytest.mark.parametrize("text", ["", "GB", "0 GB", "-1", "1.2.3", ".", "a lot", "99999", "x" * 500])
def test_an_invalid_device_is_refused(text):
    with pytest.raises(HarnessError, match=r'--device .*Use cpu, cuda or "24 GB"') as caught:
        usage.Device.named(text)
    assert len(str(caught.value)) < 200


SIZES = {"qwen2.5-vl-3b": 3_754_622_976, "qwen3-vl-4b": 4_437_815_808, "internvl3-2b": 2_088_957_440}


@pytest.mark.parametrize("shape", SIZES)
def test_published_sizes_have_the_published_number_of_parameters(shape):
    anatomy = estimates.Anatomy(published.configuration(shape))
    assert anatomy.parameters == SIZES[shape]
    assert anatomy.stored() == 2 * SIZES[shape]
    assert anatomy.patches_per_token == 4
    assert anatomy.language.gated and anatomy.vision.gated == (shape == "qwen2.5-vl-3b")


def sparse(folder, shape="qwen2.5-vl-3b"):
    """A full-size checkpoint whose weights take no space on disk: a sparse file."""
    config, processor = published.settle(shape, folder)
    header, end = {}, 0
    for name, weight in published.weights_of(config).items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(weight.shape),
            "data_offsets": [end, end + 2 * weight.numel()],
        }
        end = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    tokens = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture(scope="module")
def three_billion(tmp_path_factory):
    """A 3B model with unread random weights, and 16 rows with images of 256 tokens."""
    place = tmp_path_factory.mktemp("3b")
    lines = []
    for number in range(16):
        Image.new("RGB", (448, 448), (number, 0, 0)).save(place / f"{number}.png")
        lines.append({"question": "<image>Which?", "answer": "goose", "image": f"{number}.png"})
    (place / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return sparse(place / "base"), place / "rows.jsonl"


def planned(words, capsys, device="24 GB"):
    """Exit code, and the dry run's lines."""
    code = main([*words, "--output", "never", "--dry-run", "--device", device])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_processes_that_share_the_items_are_planned_for(capsys):
    words = ["sample", "--model", "digits", "--task", "dcsft_digits_pool"]
    code, said = planned([*words, "--num-processes", "8"], capsys)
    assert code == 0 and "| processes | 8 |" in said
    code, said = planned([*words, "--engine", "dcsft_vllm", "--num-processes", "8"], capsys)
    assert code == 0 and "8 engines decide how much memory to take" in said
    alone = STAGES["sample"].plan("never", "24 GB", model="digits", task="dcsft_digits_pool")
    shared = STAGES["sample"].plan(
        "never", "24 GB", model="digits", task="dcsft_digits_pool", num_processes=8
    )
    assert shared.seconds < alone.seconds and shared.memory == alone.memory


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, the first one nearly full."""
    peaks = {0: 10**9, 1: 5 * 10**9}
    found = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 2,
        "mem_get_info": lambda index=None: ((2 + 76 * (index or 0)) * 10**9, 80 * 10**9),
        "get_device_name": lambda index=None: f"GPU {index or 0}",
        "max_memory_allocated": lambda index=None: peaks[index or 0],
        "reset_peak_memory_stats": lambda index=None: peaks.update({index or 0: 0}),
    }
    for name, function in found.items():
        monkeypatch.setattr(torch.cuda, name, function)


@pytest.mark.parametrize(
    ("given", "name", "free"),
    [
        (None, "GPU 0", 1.9e9),
        ("cuda", "GPU 0", 1.9e9),
        ("cuda:0", "GPU 0", 1.9e9),
        ("cuda:1", "GPU 1", 74.1e9),
    ],
)
def test_a_device_is_judged_by_its_own_memory(two_gpus, given, name, free):
    device = usage.planned_device(given)
    assert (device.name, device.free) == (name, pytest.approx(free))
    assert usage.Device.named(given) == device


@pytest.mark.parametrize("given", ["cuda:2", "cuda:x", "cuda:-1"])
def test_a_missing_device_is_refused(two_gpus, given):
    with pytest.raises(
        HarnessError, match=f"device {given} is not a CUDA device of this .* Use cuda:0 to cuda:1"
    ):
        usage.Device.named(given)


def test_peak_memory_is_that_of_the_device_in_use(two_gpus):
    assert usage.peak_memory_bytes() == 5 * 10**9
    assert usage.Meter().peak_memory_bytes == 0


@pytest.mark.parametrize("given", [{"max_new_tokens": 10**8, "samples": 2}, {"samples": 10**8}])
def test_the_remedy_for_too_many_responses_is_their_length_or_number(given):
    plan = STAGES["sample"].plan("never", "24 GB", model="digits", task="dcsft_digits_pool", limit=1, **given)
    assert not plan.fits and re.match(r"Lower --max-new-tokens \(\d+\) or the responses", plan.remedy)


def test_a_command_has_its_arguments_in_order(tmp_path):
    """A recipe may give them in another order."""
    words = STAGES["data overlap"].command({"tasks": ["t", "u"], "pool": "p"}, tmp_path)
    assert words[:6] == ["dcsft", "data", "overlap", "p", "t", "u"]


PLACES = {  # option, its value -> its path; None: it does not exist
    "a path with an equals sign": ("rollouts", "lr=1e-3/rollouts", "lr=1e-3/rollouts"),
    "no name in another option": ("rollouts", "name=apart", "name=apart"),
    "a board's": ("results", "lr=1e-3/rollouts", "lr=1e-3/rollouts"),
    "a board's with a name": ("results", "name=lr=1e-3/rollouts", "lr=1e-3/rollouts"),
    "a run": ("results", "logs/1", "logs/1_results.json"),
    "a run with a name": ("results", "name=logs/1", "logs/1_results.json"),
    "nowhere": ("results", "name=nowhere", None),
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_name_before_a_path_is_not_part_of_it(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("lr=1e-3/rollouts", "apart", "logs"):
        Path(folder).mkdir(parents=True)
    Path("logs/1_results.json").write_text("{}")
    option, value, place = PLACES[kind]
    if place is None:
        with pytest.raises(HarnessError, match="^nowhere does not exist"):
            place_of(option, value)
        return
    assert place_of(option, value) == Path(place)
    verb = {"results": "leaderboard build", "rollouts": "label"}[option]
    options = {option: [value] if option == "results" else value}
    stage = recipes.Stage("one", verb, options)
    if Path(place).exists():
        STAGES[verb].plan("out", **options)
        chain.refuse_missing(recipes.Recipe("own", "x", (stage,)), Path("out"), unprepared=False)


def test_a_boards_results_are_split_at_the_first_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("lr=1e-3/scores", "apart"):
        Path(folder).mkdir(parents=True)
    given = [Path("lr=1e-3/scores"), Path("SFT=lr=1e-3/scores"), Path("base=apart")]
    board = open_board(Path("board"), None, False, given)
    assert board.given == ["../lr=1e-3/scores", "SFT=../lr=1e-3/scores", "base=../apart"]
    assert list(map(str, board.results())) == ["lr=1e-3/scores", "SFT=lr=1e-3/scores", "base=apart"]


def test_a_memory_limit_for_batches_is_planned_with():
    given = {"model": "digits", "task": "dcsft_digits_pool", "limit": 64}
    free, limited = (
        STAGES["sample"].plan("never", "24 GB", **given, model_args=arguments)
        for arguments in ("", "memory_gb=0.01")
    )
    assert (free.settings["items at a time"], free.settings == limited.settings) == (64, False)
    batch = ("keys and values", "activations", "images")
    assert sum(limited.parts[name] for name in batch) <= 0.01e9 < sum(free.parts[name] for name in batch)
    assert limited.seconds > free.seconds


def test_processes_on_a_cpu_share_its_memory(monkeypatch):
    given = {"model": "digits", "task": "dcsft_digits_pool", "limit": 1}
    alone, shared = (STAGES["sample"].plan("never", "cpu", **given, num_processes=count) for count in (1, 64))
    assert alone.device.free == pytest.approx(64 * shared.device.free, rel=0.2)


@pytest.mark.slow
def test_24_gb_are_enough_to_train_a_3b_model_with_the_defaults(three_billion, capsys):
    base, rows = map(str, three_billion)
    own = ["--model", base, "--data", rows, "--scorer", "exact_word"]
    code, said = planned(["train", "cold-start", "--model", base, "--data", rows], capsys)
    assert code == 1 and "dcsft train sft --epochs 1 trains an adapter instead of all parameters" in said
    assert "--launch zero3" in said
    for words in (
        ["sample", *own],
        ["train", "sft", "--model", base, "--data", rows, "--epochs", "1"],
        ["train", "sft", "--model", base, "--data", rows],
        ["train", "grpo", *own],
    ):
        code, said = planned(words, capsys)
        assert code == 0, (words, said)
    code, said = planned(["train", "sft", "--model", base, "--data", rows, "--full"], capsys)
    assert code == 1 and "leaving --full out trains an adapter" in said


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_divided_further(three_billion, capsys):
    base, rows = map(str, three_billion)
    words = ["train", "sft", "--model", base, "--data", rows, "--set", "gradient_checkpointing=false"]
    code, said = planned(words, capsys)
    assert code == 0 and "| micro_batch_size |" in said
    code, said = planned([*words, "--micro-batch-size", "16"], capsys)
    assert code == 1 and "Pass --micro-batch-size " in said
    code, said = planned(words, capsys, "8 GB")
    assert code == 1 and "--launch zero3 divides the model among" in said


@pytest.fixture
def small(monkeypatch):
    """A function that changes this machine's amount of memory."""

    def change(free):
        device = usage.Device("a small machine", "cpu", free, free, 1e12)
        monkeypatch.setattr(usage.Device, "here", lambda name=None: device)

    return change


def needed(config, method="sft"):
    """Bytes without samples, and bytes per sample, of a tiny training run that accumulates gradients."""
    from dcsft_harness.training import run

    seen = []
    original = run.training

    def spy(anatomy, given, device):
        seen.append(original(anatomy, given, device))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "training", spy)
        patch.setattr(run, "admit", lambda estimate: (_ for _ in ()).throw(usage.Planned(estimate)))
        with pytest.raises(usage.Planned):
            sft.train_sft(tiny("qwen2_5_vl"), conversations(), Path("never"), config)
    return seen[0].total(1, True) - seen[0].sample, seen[0].sample


def test_the_default_micro_batch_fits_and_trains_the_same(small, tmp_path):
    base, config = tiny("qwen2_5_vl"), SftConfig(max_steps=2, batch_size=4)
    fixed, sample = needed(config)
    whole = sft.train_sft(base, conversations(), tmp_path / "whole", config)
    assert "micro_batch_size" not in whole
    small((fixed + 2.5 * sample) / 0.9)
    parted = sft.train_sft(base, conversations(), tmp_path / "parted", config)
    assert parted["micro_batch_size"] == 2
    assert parted["final_loss"] == pytest.approx(whole["final_loss"], rel=1e-3)


def test_training_without_enough_memory_is_refused_before_weights_are_read(small, tmp_path, monkeypatch):
    small(5e8)
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    for train, config in ((sft.train_sft, SftConfig()), (sft.train_cold_start, ColdStartConfig())):
        with pytest.raises(HarnessError, match=r"about .* of memory is needed \(libraries .*0.5 GB free"):
            train(tiny("qwen2_5_vl"), conversations(), tmp_path / "out", config)
        assert not (tmp_path / "out").exists()


MEASURED = [
    # Image tokens of a row with 36 further tokens, batch, gigabytes of the process at its peak, in bfloat16.
    ("qwen2.5-vl-3b", 1, {"full": True, "dropout": False}, 256, 2, 9.43),
    ("qwen2.5-vl-3b", 2, {"full": True, "dropout": False}, 64, 2, 10.99),
    ("qwen2.5-vl-3b", 2, {"full": False, "dropout": True}, 256, 4, 3.91),
    ("qwen3-vl-4b", 1, {"full": False, "dropout": True}, 64, 2, 2.75),
    ("internvl3-2b", 1, {"full": False, "dropout": True}, 256, 2, 2.83),
]


@pytest.mark.parametrize(("shape", "layers", "given", "image", "batch", "gigabytes"), MEASURED)
def test_estimates_match_measurements_at_the_published_width(shape, layers, given, image, batch, gigabytes):
    anatomy = estimates.Anatomy(published.configuration(shape, layers))
    linear = lora.linear_layers(anatomy.model)
    trained = anatomy.parameters
    if not given["full"]:
        modules = map(anatomy.model.get_submodule, linear)
        trained = sum(32 * (one.in_features + one.out_features) for one in modules)
    training = estimates.Training(
        trained, linear, number=2, checkpointing=False, tokens=image + 36, image_tokens=image, **given
    )
    step = estimates.training(anatomy, training, usage.Device("here", "cpu", 24e9, 20e9))
    assert step.total(batch, accumulates=False) == pytest.approx(gigabytes * 1e9, rel=0.15)


@pytest.mark.parametrize(
    ("config", "drawn", "accumulates"),
    [
        (GrpoConfig(), [128], None),
        (GrpoConfig(micro_batch_size=8), [128], True),
        (GrpoConfig(micro_batch_size=128), [128], False),
        (SftConfig(full=True, micro_batch_size=1), [], True),
        (SftConfig(full=True, micro_batch_size=16), [], False),
    ],
)
def test_a_given_micro_batch_is_planned_as_one_of_several(config, drawn, accumulates, monkeypatch):
    """transformers samples the completions of a whole batch at once; gradients of several passes are kept."""
    rows, parts = [], []
    generation, counted = run.generation, estimates.Step.parts
    monkeypatch.setattr(
        run, "generation", lambda *given, **more: rows.append(given[2]) or generation(*given, **more)
    )
    monkeypatch.setattr(
        estimates.Step, "parts", lambda self, *given: parts.append(given) or counted(self, *given)
    )
    known = data.Conversations("set", [None], None, None, None, [0], {}, tokens=60, image_tokens=16)
    job = run.Job("grpo", tiny("qwen2_5_vl"), Path("set"), Path("out"), config)
    setup = run.Setup(job, Path("out"), known, None, None, torch.float32, completion=8 * len(drawn))
    run.plan(setup)
    assert rows == drawn
    assert accumulates is None or parts[-1] == (config.micro_batch_size, accumulates)


@pytest.mark.parametrize(("reference", "number"), [(0, 2), (1000, 2), (1000, 4)])
def test_the_reference_of_full_training_is_in_float32(reference, number):
    anatomy = estimates.Anatomy(models.open_config(ModelSettings(pretrained=str(tiny("qwen2_5_vl")))))
    given = estimates.Training(
        1000, {}, True, False, number, False, tokens=60, image_tokens=16, reference=reference
    )
    device = usage.Device("here", "cuda", 24e9, 20e9)
    assert estimates.training(anatomy, given, device).held.get("reference", 0) == 4 * reference
    setup = types.SimpleNamespace(completion=8, job=types.SimpleNamespace(config=GrpoConfig(full=True)))
    assert run._drawing(setup, anatomy, given, device, 8).get("reference", 0) == 4 * reference


def test_gradients_count_where_they_exist():
    held = {"weights": 4.0}
    step = estimates.Step(
        held, {"output layer": 1.0}, sample=3.0, gradients=4.0, ending={"output layer": 2.0}
    )
    for micro, accumulates, peak, gradients in (
        (1, False, 10.0, 4.0),  # where the backward pass ends
        (2, False, 11.0, 0.0),  # where it starts
        (1, True, 12.0, 4.0),  # where the last one starts, with the gradients of the earlier ones
    ):
        assert step.total(micro, accumulates) == peak, (micro, accumulates)
        assert step.parts(micro, accumulates)["gradients"] == gradients


@pytest.mark.parametrize(
    ("device", "listed", "visible"),
    [
        ("cpu", None, ""),
        ("cpu", "3,5", ""),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda", "3,5", "3"),
        ("cuda:1", "3, 5", "5"),
        ("cuda:1", "GPU-8f,GPU-a1", "GPU-a1"),
        ("cuda:2", "3,5", ""),
        ("cuda:x", "3,5", ""),
        ("cuda", "", ""),
    ],
)
def test_a_rehearsals_device_is_an_index_into_the_visible_ones(device, listed, visible):
    assert rehearsal._visible(device, listed) == visible


def test_every_stage_of_a_rehearsal_is_a_command(tmp_path):
    for verb, options in rehearsal.chain(tmp_path).values():
        STAGES[verb].options.from_options(options)
        assert STAGES[verb].command(options, tmp_path)[0] == "dcsft"
    assert set(rehearsal.SHAPES) == set(published.PUBLISHED)


def test_chat_template_arguments_reach_every_rehearsed_stage_with_prompts(tmp_path):
    template = {"enable_thinking": False, "languages": ["en", "de"]}
    chain = rehearsal.chain(tmp_path, template)
    for name in ("sft", "grpo", "dpo"):
        verb, options = chain[name]
        assert STAGES[verb].options.from_options(options).chat_template_kwargs == template
    for name in ("rollouts", "scores"):
        arguments = reading.named(chain[name][1]["model_args"])
        assert json.loads(arguments["chat_template_kwargs"]) == template and arguments["batch_size"] == "4"
    assert "chat_template_kwargs" not in str(rehearsal.chain(tmp_path))


REFUSED_REHEARSALS = (
    (("--chat-template-kwargs", '{"enable_thinking": false}'), "does not use enable_thinking; it uses none"),
    (("--chat-template-kwargs", "[1]"), "is not an object"),
    (("--chat-template-kwargs", "{"), "is not JSON"),
    (("--device", "cuda:99"), "--device cuda:99 is not there"),
)


@pytest.mark.parametrize(("words", "problem"), REFUSED_REHEARSALS)
def test_a_refused_rehearsal_leaves_its_folder_unchanged(words, problem, tmp_path, monkeypatch, capsys):
    def work(output, device, job, name):
        try:
            return rehearsal._make_base(output, {**job, "device": device})
        except HarnessError as error:
            raise rehearsal.Refused(error.problem, error.remedy) from error

    monkeypatch.setattr(published, "write", lambda *given: pytest.fail("weights were written"))
    monkeypatch.setattr(rehearsal, "_work", work)
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "new"):
        assert main(["rehearse", "--layers", "1", *words, "--output", str(tmp_path / name)]) == 1
        assert problem in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [tmp_path / "there"] and not [*(tmp_path / "there").iterdir()]


@pytest.mark.slow
def test_an_error_in_a_rehearsals_process_is_the_commands_error(tmp_path, capsys, monkeypatch):
    def start(words, **given):
        return forked.Popen(words[1:], **given)  # without the interpreter, which would import torch again

    monkeypatch.setattr(rehearsal, "subprocess", types.SimpleNamespace(Popen=start))
    words = ["--layers", "1", "--device", "cuda:99", "--output", str(tmp_path / "out")]
    assert main(["rehearse", *words]) == 1
    assert capsys.readouterr().err.startswith("dcsft: --device cuda:99 is not there: ")
    assert not [*tmp_path.iterdir()]


def test_another_folder_or_size_of_a_rehearsal_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    with pytest.raises(HarnessError, match="is not a rehearsal"):
        rehearsal.rehearse("qwen3-vl-4b", tmp_path / "mine", "cpu", 2)
    begun = {"shape": "internvl3-2b", "layers": 2, "device": "cpu", "stages": [], "parameters": 9}
    rehearsal._save(tmp_path / "mine", begun)
    with pytest.raises(HarnessError, match="is a rehearsal of shape internvl3-2b, layers 2"):
        rehearsal.rehearse("qwen3-vl-4b", tmp_path / "mine", "cpu", 2)


def test_a_rehearsal_that_failed_before_its_base_was_made_starts_over(tmp_path, monkeypatch):
    def crashes(output, device, job, name):
        (output / "base").mkdir()
        raise HarnessError("base failed with exit code -9", "its log has everything")

    monkeypatch.setattr(rehearsal, "_work", crashes)
    for layers in (2, 2, 3):
        with pytest.raises(HarnessError, match="exit code -9"):
            rehearsal.rehearse("internvl3-2b", tmp_path / "out", "cpu", layers)
        assert json.loads((tmp_path / "out" / "rehearsal.json").read_text())["layers"] == layers


def test_the_table_of_a_rehearsal_compares_estimates_with_measurements():
    one = rehearsal.Measured("train sft", 60.4, 2_000_000_000, 5_000_000, 12.3, 2_200_000_000)
    found = {"shape": "qwen2.5-vl-3b", "layers": 2, "parameters": 5.4e8, "machine": "M", "cores": 2}
    other = rehearsal.Measured("label", 2, 3 * 10**8, 9)
    text = rehearsal.table({**found, "stages": [vars(one), vars(other)]})
    assert "| train sft | 60 | 2.00 | 2.20 | 1.10 | 12 | 5.0 |" in text
    assert "| label | 2 | 0.30 | - | - | - | 0.0 |" in text


def test_a_rehearsal_fails_if_an_estimate_is_off_by_more_than_allowed():
    stages = [
        {"stage": name, "memory": memory, "estimated_memory": estimated}
        for name, memory, estimated in (
            ("train sft", 4e9, 4.5e9),
            ("merge", 2e9, 1.6e9),
            ("label", 2e8, None),
        )
    ]
    rehearsal.refuse_wrong({"stages": stages}, 0.21)
    for within, named in (
        (0.15, r"15%: merge took 2.0 GB, estimated 1.6 GB\."),
        (0.1, "train sft .*; merge"),
    ):
        with pytest.raises(HarnessError, match=named):
            rehearsal.refuse_wrong({"stages": stages}, within)


@pytest.mark.parametrize("verb", ["sample", "evaluate", "sft", "grpo"])
def test_an_unreachable_hub_is_asked_once(verb, first_edition, monkeypatch, capsys):  # noqa: F811
    asked = []

    def ask(name, **_):
        asked.append(name)
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    monkeypatch.chdir(first_edition)
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", ask)
    given = FIRST_ENGINES[verb]
    words = [word.replace("BASE", "jane/model") for word in given if word not in ("--adapter", "adapter")]
    assert main([word.replace(",adapter=adapter", "") for word in words]) == 1
    assert "couldn't connect" in (said := capsys.readouterr().err) and "HF_ENDPOINT" in said
    assert asked == ["jane/model"]


@pytest.mark.slow
def test_a_rehearsal_runs_every_stage_once_and_records_its_estimate(tmp_path, monkeypatch):
    narrow = copy.deepcopy(published.PUBLISHED["qwen2.5-vl-3b"])
    narrow["text_config"] |= {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 2000}
    narrow["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    narrow["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 64,
        "out_hidden_size": 256,
        "num_heads": 4,
    }
    monkeypatch.setitem(published.PUBLISHED, "qwen2.5-vl-3b", narrow)
    monkeypatch.setitem(published.SIDE, "qwen2.5-vl-3b", 112)
    ran = []

    def work(output, device, job, name):
        ran.append(name)
        answer = output / "logs" / f"{name}.json"
        answer.parent.mkdir(exist_ok=True)
        assert rehearsal._worker(answer, {**job, "device": device}) == 0
        return json.loads(answer.read_text())

    monkeypatch.setattr(rehearsal, "_work", work)
    found = rehearsal.rehearse("qwen2.5-vl-3b", tmp_path / "out", "cpu", 2)
    assert ran == ["base", *rehearsal.chain(tmp_path)]
    for one in found["stages"]:
        assert one["memory"] > 0 and one["estimated_memory"] > 0 and one["disk"] > 0, one
    assert {"dpo", "grpo", "sft"} < {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "base").exists() and not (tmp_path / "out" / "merged").exists()
    assert rehearsal.rehearse("qwen2.5-vl-3b", tmp_path / "out", "cpu", 2) == found and len(ran) == 10
