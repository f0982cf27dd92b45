"""Training settings: the paper's defaults, and errors that name argument and value."""

import dataclasses
import subprocess
import sys

import pytest

import dcsft_harness as dcsft
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.training.config import (
    OWN,
    TRACKERS,
    ColdStartConfig,
    GrpoConfig,
    SftConfig,
    TrainingConfig,
)


def test_the_defaults_are_the_papers():
    cold, sft = ColdStartConfig(), SftConfig()
    assert (cold.learning_rate, cold.batch_size, cold.epochs, cold.max_steps) == (1e-5, 16, 1, None)
    assert (sft.learning_rate, sft.batch_size, sft.max_steps, sft.epochs) == (1e-5, 16, 600, None)
    assert (sft.lora_rank, sft.lora_alpha, sft.lora_dropout, sft.lora_target) == (32, 64, 0.05, "all")
    for config in (cold, sft):
        assert config.warmup_ratio == 0.1
        # As in evaluation, unless given.
        assert (config.max_pixels, config.min_pixels) == (None, None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"learning_rate": 0}, "--learning-rate 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"learning_rate": float("inf")}, "--learning-rate inf"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": 2.5}, "--batch-size 2.5"),
        ({"batch_size": True}, "--batch-size true"),
        ({"batch_size": 16, "micro_batch_size": 5}, "--micro-batch-size 5 does not divide --batch-size 16"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"max_steps": None}, "--max-steps None and --epochs None"),
        ({"max_steps": 600, "epochs": 2}, "--max-steps 600 and --epochs 2"),
        ({"warmup_ratio": 1.0}, "--warmup-ratio 1.0"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1"),
        ({"adam_beta2": 1}, "--adam-beta2 1"),
        ({"seed": -1}, "--seed -1"),
        ({"dtype": "bf16"}, "unknown --dtype value 'bf16'"),
        ({"min_pixels": 900, "max_pixels": 800}, "--min-pixels 900 exceeds --max-pixels 800"),
        ({"lora_rank": 0}, "--lora-rank 0 is out of range"),
        ({"lora_dropout": 1.0}, "--lora-dropout 1.0 is out of range"),
        ({"lora_target": "(visual"}, "--lora-target (visual is not a regular expression"),
        ({"extra": ["bf16"]}, "--extra ['bf16']"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(wrong, said):
    with pytest.raises(HarnessError) as refused:
        SftConfig(**wrong)
    assert said in str(refused.value)


def test_options_may_be_text_as_in_yaml():
    config = SftConfig.from_options({"learning_rate": "1e-5", "max_steps": "100", "min_pixels": "none"})
    assert (config.learning_rate, config.max_steps, config.min_pixels) == (1e-5, 100, None)


def test_epochs_replace_the_default_steps_and_vice_versa():
    assert SftConfig.from_options({"epochs": 2}).max_steps is None
    assert ColdStartConfig.from_options({"max_steps": 10}).epochs is None
    with pytest.raises(HarnessError, match="--max-steps 10 and --epochs 2"):
        SftConfig.from_options({"max_steps": 10, "epochs": 2})


@pytest.mark.parametrize(
    ("config", "given", "length"),
    [
        (ColdStartConfig, {"max_steps": "none"}, (None, 1)),
        (ColdStartConfig, {"max_steps": None}, (None, 1)),
        (SftConfig, {"epochs": "none"}, (600, None)),
        (SftConfig, {"epochs": "null", "max_steps": "30"}, (30, None)),
        (SftConfig, {"max_steps": "none", "epochs": "2"}, (None, 2)),
    ],
)
def test_a_length_may_be_none(config, given, length):
    made = config.from_options(given)
    assert (made.max_steps, made.epochs) == length


def test_the_cold_start_has_no_lora_options():
    with pytest.raises(HarnessError, match="unknown option 'lora_rank'"):
        ColdStartConfig.from_options({"lora_rank": 8})


def test_settings_round_trip_through_their_record():
    config = SftConfig(max_steps=7, extra={"max_grad_norm": 0.5})
    assert SftConfig(**config.as_dict()) == config
    assert isinstance(config, TrainingConfig)


def test_the_settings_import_neither_torch_nor_trl():
    code = "import sys, dcsft_harness.training.config; print(set(sys.modules) & {'torch', 'trl', 'datasets'})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize("config", [ColdStartConfig, SftConfig, GrpoConfig])
@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("output_dir", "/tmp", "Pass --output"),
        ("resume_from_checkpoint", "out/checkpoint-5", "the same command resumes an interrupted run"),
        ("push_to_hub", True, "Pass --push-to-hub OWNER/NAME .* or run `dcsft push`"),
        ("push-to-hub", True, "Pass --push-to-hub OWNER/NAME"),
        ("hub_token", "hf_secret", "dcsft push"),
        ("seed", 1, "Pass --seed"),
        ("data_seed", 1, "Pass --seed"),
        ("learning_rate", 1e-4, "Pass --learning-rate"),
        ("lr", 1e-4, "Pass --learning-rate"),
        ("num_train_epochs", 3, "Pass --epochs"),
        ("max_steps", 3, "Pass --max-steps"),
        ("per_device_train_batch_size", 2, "Pass --batch-size"),
        ("warmup_steps", 10, "Pass --warmup-ratio"),
        ("bf16", True, "Pass --dtype"),
        ("save_strategy", "epoch", "Pass --save-steps"),
        ("save_total_limit", 3, "Pass --keep"),
        ("load_best_model_at_end", True, "dcsft score --watch"),
        ("do_eval", True, "dcsft evaluate"),
        ("logging_dir", "logs", "runs/"),
        ("max_seq_length", 512, "chat template, uncut"),
        ("chat_template_path", "mine.jinja", "chat template"),
        ("deepspeed", "zero.json", "Pass --num-processes and --launch"),
        ("trust_remote_code", True, "code of checkpoints is never run"),
        ("model", "other", "Pass --model"),
    ],
)
def test_trls_name_for_one_of_our_options_is_refused_with_ours(config, name, value, remedy):
    with pytest.raises(
        HarnessError, match=f"TRL's argument {name} is set by the harness.*{remedy}"
    ) as refused:
        config(extra={name: value})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("optim", "extra={'optim': VALUE}, in a recipe as extra: {optim: VALUE}"),
        ("report_to", "extra={'report_to': VALUE}"),
        ("lora_aplha", "Did you mean lora_alpha or lora_rank? TRL's arguments are"),
        ("num_train_epochs", "Pass epochs="),
        ("lr", "Pass learning_rate="),
        ("deepspeed", "Pass num_processes= and launch="),
    ],
)
def test_an_unknown_option_is_refused_with_ours_or_the_place_of_trls(name, remedy):
    for function in (dcsft.train_sft, dcsft.train_grpo, dcsft.train_dpo):
        with pytest.raises(HarnessError, match=f"unknown option '{name}'") as refused:
            function("m", data="d", output="out", **{name: 1})
        assert remedy in str(refused.value)


def test_a_text_in_place_of_trls_arguments_is_quoted():
    with pytest.raises(HarnessError, match="^extra=optim=sgd is not a mapping"):
        dcsft.train_sft("m", data="d", output="out", extra="optim=sgd")


def test_generation_arguments_cannot_contain_our_options():
    for name, option in (("temperature", "--temperature"), ("max_new_tokens", "--max-completion-length")):
        with pytest.raises(HarnessError, match=f"generation_kwargs has {name}, .*{option}"):
            GrpoConfig(extra={"generation_kwargs": {name: 1}})
    GrpoConfig(extra={"generation_kwargs": {"typical_p": 0.9}})


@pytest.mark.parametrize("way", ["file", "nested", "set"])
def test_a_file_and_set_cannot_bypass_our_options(tmp_path, capsys, way):
    (tmp_path / "own.yaml").write_text(
        "push_to_hub: true\n" if way == "file" else "extra: {push_to_hub: true}\n"
    )
    given = ["--set", "push_to_hub=true"] if way == "set" else ["--config", str(tmp_path / "own.yaml")]
    for method in ("cold-start", "sft", "grpo"):
        words = ["train", method, "--model=m", "--data=d", "--output", str(tmp_path / "out"), *given]
        assert main(words) == 1
        assert (
            "TRL's argument push_to_hub is set by the harness. Pass --push-to-hub" in capsys.readouterr().err
        )
    assert not (tmp_path / "out").exists()


# Passed on to TRL as given: how it trains, and nothing that one of our options decides.
PASSED_ON = """
activation_checkpointing activation_checkpointing_kwargs activation_offloading adam_beta1 adam_epsilon
average_tokens_across_devices cache_implementation cast_lm_head_to_fp32
dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug delta
disable_dropout ds3_gather_for_generation entropy_coef entropy_coef_delta entropy_coef_max entropy_coef_min
entropy_target epsilon epsilon_high full_determinism generation_batch_size generation_kwargs
gradient_checkpointing gradient_checkpointing_kwargs importance_sampling_level include_num_input_tokens_seen
label_smoothing_factor liger_kernel_config log_completions log_level log_level_replica log_multimodal
log_on_each_node log_unique_prompts loss_type lr_scheduler_kwargs mask_truncated_completions max_grad_norm
max_tool_calling_iterations min_p multi_objective_aggregation neftune_noise_alpha num_completions_to_print
num_iterations off_policy_mask_threshold optim optim_args optim_target_modules pad_to_multiple_of project
ref_model_mixup_alpha ref_model_sync_steps repetition_penalty report_to reward_weights router_aux_loss_coef
run_name sapo_temperature_neg sapo_temperature_pos scale_rewards shuffle_dataset skip_memory_metrics
steps_per_generation sync_ref_model tf32 top_entropy_quantile torch_compile torch_compile_backend
torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
train_sampling_strategy transformers_continuous_batching_config use_adaptive_entropy use_bias_correction_kl
use_cache use_liger_kernel use_transformers_continuous_batching use_transformers_paged use_vllm vespo_k_neg
vespo_k_pos vespo_lambda_neg vespo_lambda_pos
""".split()


@pytest.mark.parametrize("name", ["hub", "tensorbord", ["wandb", "tensorbord"], 3])
def test_an_unknown_tracker_is_refused_with_the_known_ones(name):
    with pytest.raises(HarnessError, match="unknown report_to '(hub|tensorbord|3)'"):
        SftConfig(extra={"report_to": name})


def test_the_known_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(INTEGRATION_TO_CALLBACK) == set(TRACKERS)
    for name in (*TRACKERS, "all", "none", ["wandb", "mlflow"], []):
        SftConfig(extra={"report_to": name})


def test_every_argument_of_trl_is_ours_or_known_to_be_passed_on():
    import trl

    for kind, config in ((trl.SFTConfig, SftConfig), (trl.GRPOConfig, GrpoConfig)):
        names = {item.name for item in dataclasses.fields(kind) if item.init}
        own = {*OWN, *config.model_fields}
        left = {name for name in names - own - set(PASSED_ON) if not name.startswith("vllm_")}
        assert left == set()
