"""`generation_config=checkpoint`: the effect of the checkpoint's own settings, and where it is recorded."""

import json
import shutil
import types
from pathlib import Path

import pytest

from dcsft_harness import lmms, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import load as load_board
from dcsft_harness.models.arguments import GenerationArguments, ModelSettings
from dcsft_harness.models.vllm import DcsftVLLM
from dcsft_harness.scoring import VERSIONS
from dcsft_harness.training import grpo
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import ONE_FAST, checkpoint, documents, requests_for
from tests.models.test_models_hf import GREEDY, by_generate, load, texts
from tests.models.test_models_shared_prompt import generations

FILE = "generation_config.json"


@pytest.fixture
def copied(tmp_path):
    """Copies a tiny checkpoint with other generation settings."""

    def copy(family="qwen2_5_vl", **settings):
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(checkpoint(family), folder)
        path = folder / FILE
        named = {k: v for k, v in json.loads(path.read_text()).items() if k.endswith("_token_id")}
        path.write_text(json.dumps({**named, **settings}))
        return str(folder)

    return copy


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_FAST)
def test_the_checkpoints_penalty_equals_that_of_generate_at_every_batch_size(family, copied):
    docs, folder = documents(), copied(family, repetition_penalty=1.3)
    found = {}
    for size, more in ((1, {}), (8, {}), (8, {"use_cache": False})):
        model = load(family, pretrained=folder, batch_size=size, generation_config="checkpoint")
        found[size, bool(more)] = texts(model, docs, GREEDY | more)
    alone, *others = found.values()
    assert others == [alone, alone]
    assert alone != texts(load(family, batch_size=8), docs, GREEDY)
    assert alone[:4] == [by_generate(folder, doc) for doc in docs[:4]]


@pytest.mark.slow
def test_samples_of_one_prompt_are_penalized_separately(copied):
    folder = copied(repetition_penalty=1.3)
    given = {"max_new_tokens": 8, "temperature": 0.7}
    runs = [
        generations(
            load(pretrained=folder, batch_size=size, generation_config="checkpoint"),
            documents(),
            given | more,
        )
        for size, more in ((1, {}), (8, {}), (8, {"use_cache": False}))
    ]
    assert runs[0] == runs[1] == runs[2]
    said = generations(load(pretrained=folder), documents(), given | {"repetition_penalty": 1.3})
    assert runs[0] == said


def test_neutral_is_the_default_and_reads_no_settings(copied):
    docs = documents()[:4]
    folder = copied(repetition_penalty=1.3, no_repeat_ngram_size=2)
    assert texts(load(pretrained=folder), docs, GREEDY) == texts(load(), docs, GREEDY)
    assert texts(load(pretrained=folder, generation_config="neutral"), docs, GREEDY) == texts(
        load(), docs, GREEDY
    )


QWEN = {"do_sample": True, "temperature": 0.2, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05}


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ({}, {"temperature": 0.2, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05}),
        ({"do_sample": True}, {"temperature": 0.2, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05}),
        ({"do_sample": False}, {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.05}),
        ({"temperature": 0}, {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.05}),
        ({"temperature": 0.9, "top_p": 1.0}, {"temperature": 0.9, "top_k": 1, "top_p": 1.0}),
        (
            {"temperature": 0.9, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.1},
            {"temperature": 0.9, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.1},
        ),
    ],
)
def test_requests_take_precedence_and_sampling_settings_need_a_sampling_request(request_, wanted):
    found = GenerationArguments.parse(request_, "t", QWEN)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.grid
@pytest.mark.parametrize(
    "setting",
    [
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [5]},
        {"begin_suppress_tokens": [5]},
        {"bad_words_ids": [[5]]},
        {"forced_eos_token_id": 5},
        {"typical_p": 0.5},
        {"num_beams": 4},
        {"encoder_repetition_penalty": 1.2},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"sequence_bias": [[[5], -1.0]]},
        {"min_length": 5},
        {"stop_strings": ["END"]},
        {"guidance_scale": 2.0},
    ],
)
@pytest.mark.parametrize("model", ["hf", "vllm"])
def test_a_setting_that_cannot_be_applied_is_refused_by_name(model, setting, copied, monkeypatch):
    fake_vllm.install(monkeypatch)
    make = load if model == "hf" else lambda **given: DcsftVLLM(**given)
    folder = copied(**setting)
    (name,) = setting
    with pytest.raises(HarnessError, match=rf"generation_config=checkpoint: .*{FILE} sets {name}="):
        make(pretrained=folder, generation_config="checkpoint")
    make(pretrained=folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 1, "no_repeat_ngram_size": 0, "suppress_tokens": None, "length_penalty": 1.0},
        {"_from_model_config": True},
        {"max_length": 4096, "use_cache": True, "chat_format": "chatml", "max_window_size": 6144},
        {"top_k": None, "temperature": 1.0, "repetition_penalty": 1.0},
    ],
)
def test_settings_without_effect_are_accepted(setting, copied):
    model = load(pretrained=copied(**setting), generation_config="checkpoint")
    assert model.generation_from_checkpoint(GREEDY, "t") == {}


@pytest.mark.parametrize(
    ("content", "said"), [("{", "cannot be read"), ('{"repetition_penalty": 0}', "repetition_penalty=0")]
)
def test_a_damaged_file_is_an_error_and_a_missing_file_is_not(content, said, copied):
    folder = copied()
    (Path(folder) / FILE).write_text(content)
    with pytest.raises(HarnessError, match=said):
        load(pretrained=folder, generation_config="checkpoint")
    (Path(folder) / FILE).unlink()
    assert load(pretrained=folder, generation_config="checkpoint").checkpoint_generation == {}


@pytest.mark.parametrize("setting", [{"no_repeat_ngram_size": 3}, {"min_p": 0.1}, {"min_new_tokens": 4}])
def test_grpo_refuses_settings_that_would_change_its_samples(setting, copied):
    base, (name,) = ModelSettings(pretrained=str(copied(**setting))), setting
    args = types.SimpleNamespace(generation_kwargs=None, min_p=None)
    with pytest.raises(HarnessError, match=f"GRPO: the {FILE} of .* sets {name}="):
        grpo.check_generation(base, args)
    grpo.check_generation(ModelSettings(pretrained=str(copied(**QWEN))), args)
    if name == "min_p":
        grpo.check_generation(base, types.SimpleNamespace(generation_kwargs=None, min_p=0.0))


def test_grpo_refuses_generation_arguments_that_transformers_does_not_know(copied):
    args = types.SimpleNamespace(generation_kwargs={"typicalp": 0.9}, min_p=None)
    with pytest.raises(HarnessError, match="generation_kwargs: 'typicalp'. Did you mean typical_p"):
        grpo.check_generation(ModelSettings(pretrained=str(copied(**QWEN))), args)


def test_an_unknown_value_is_refused():
    with pytest.raises(HarnessError, match="generation_config value 'checkpont'.*checkpoint"):
        load(generation_config="checkpont")


def test_vllm_receives_the_checkpoints_settings(copied, monkeypatch):
    fake = fake_vllm.install(monkeypatch)
    folder = copied(**QWEN)
    model = DcsftVLLM(pretrained=folder, generation_config="checkpoint")
    model.generate_until(requests_for(model, documents()[:1], {"max_new_tokens": 4, "temperature": 0.9}))
    (params,) = [one for _, call, _ in fake.last.calls for one in call]
    assert (params.temperature, params.top_p, params.top_k) == (0.9, 0.001, 1)
    assert params.repetition_penalty == 1.05


class TestRecords:
    """Scores and rollouts record the settings in force; boards and resumed runs distinguish them."""

    TASK, POOL = "dcsft_digits", "dcsft_digits_pool"

    def scores(self, output, folder, mode):
        arguments = f"pretrained={folder},device=cpu,generation_config={mode}"
        stages.STAGES["evaluate"](output, model_args=arguments, tasks=[self.TASK], limit=2)
        return manifest.read(output).notes["tasks"][self.TASK]

    @pytest.mark.slow
    def test_of_scores_are_compared_by_the_leaderboard(self, tmp_path, copied):
        folder, plain = copied(repetition_penalty=1.3), copied()
        notes = self.scores(tmp_path / "with", folder, "checkpoint")
        assert notes["generation_from_checkpoint"] == {"repetition_penalty": 1.3}
        assert notes["generation_in_force"]["repetition_penalty"] == 1.3
        assert notes["generation_in_force"]["temperature"] == 0.0
        notes = self.scores(tmp_path / "without", folder, "neutral")
        assert notes["generation_from_checkpoint"] == {}
        assert notes["generation_in_force"]["repetition_penalty"] == 1.0
        with pytest.raises(HarnessError, match=r"generation setting repetition_penalty 1.3 and 'unset'"):
            load_board([tmp_path / "with", tmp_path / "without"])
        # A checkpoint whose file sets nothing gives the same numbers in both modes.
        self.scores(tmp_path / "nothing", plain, "checkpoint")
        assert len(load_board([tmp_path / "without", tmp_path / "nothing"]).rows) == 2

    def test_of_lmms_evals_logs_are_compared_by_the_leaderboard(self, tmp_path, copied):
        folders = {"more": copied(repetition_penalty=1.3), "less": copied(repetition_penalty=1.1)}
        for name, folder in folders.items():
            arguments = f"pretrained={folder},device=cpu,generation_config=checkpoint"
            words = ["--model", "dcsft_hf", "--model_args", arguments, "--tasks", self.TASK, "--limit", "2"]
            assert lmms.command_line([*words, "--log_samples", "--output_path", str(tmp_path / name)]) == 0
        with pytest.raises(HarnessError, match=r"generation setting repetition_penalty 1.3 and 1.1"):
            load_board([tmp_path / "more", tmp_path / "less"])
        self.scores(tmp_path / "scores", folders["more"], "checkpoint")
        assert "repetition_penalty" not in str(load_board([tmp_path / "more", tmp_path / "scores"]).remarks)

    def test_of_rollouts_are_compared_when_resuming(self, tmp_path, copied):
        folder = copied(**QWEN)

        def draw(mode, fail=False, seen=None):
            model = lmms.open_model("dcsft_hf", f"pretrained={folder},device=cpu,generation_config={mode}")
            if fail:
                real = model._finish

                def interrupted(answered):
                    real(answered)
                    raise KeyboardInterrupt

                model._finish = interrupted
            task = lmms.open_tasks([self.POOL])[self.POOL]
            config = sampling.SamplingConfig(samples=2, limit=2, max_new_tokens=4)
            settings = {"model": "dcsft_hf", "model_args": f"pretrained={folder},generation_config={mode}"}
            return sampling.sample(model, task, tmp_path / "out", config, settings)

        with pytest.raises(KeyboardInterrupt):
            draw("checkpoint", fail=True)
        with pytest.raises(HarnessError, match="generation_config: checkpoint -> neutral"):
            draw("neutral")
        notes = draw("checkpoint")
        assert notes["generation_from_checkpoint"] == {"repetition_penalty": 1.05}
        assert notes["generation_in_force"]["top_k"] == 50
        assert notes["scorers"] == {"exact_word": VERSIONS["exact_word"]}
