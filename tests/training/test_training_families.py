"""Training on other architectures and chat templates than the digits suite's."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from PIL import Image as Pillow
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import base, chat_template
from dcsft_harness.models.checkpoint import saved_processor
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import plan
from dcsft_harness.stages import STAGES, train_dpo
from dcsft_harness.training import data, grpo, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from tests.fixtures.several import Parity
from tests.fixtures.tiny_checkpoints import ONE_FAST, checkpoint, documents, labels_seen, requests_for
from tests.training.test_training_dpo import digits
from tests.training.test_training_grpo import drawn  # noqa: F401 - a fixture
from tests.training.test_training_sft import FEATURES

END = {"qwen2_5_vl": "<|im_end|>", "qwen3_vl": "<|im_end|>", "idefics3": "<end_of_utterance>"}
ADAPTED = {
    "qwen2_5_vl": {"language": 14, "vision": 10, "aligner": 2},
    "qwen3_vl": {"language": 14, "vision": 8, "aligner": 4},
    "idefics3": {"language": 14, "vision": 12, "aligner": 1},
}
ANSWERS = ("a goose", "B", "7 boxes", "the cat and the dog")


def conversations(images=1):
    """Four ragged documents with `images` images each."""
    rows = []
    for doc, answer in zip(documents(), ANSWERS, strict=False):
        messages = [
            {"role": "user", "content": "<image>" * images + doc["text"]},
            {"role": "assistant", "content": answer},
        ]
        rows.append({"messages": messages, "images": [doc["image"]] * images})
    return Dataset.from_list(rows, features=FEATURES)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", list(END))
def test_the_loss_covers_answer_and_end_token(family, tmp_path, monkeypatch):
    seen = labels_seen(monkeypatch)
    sft.train_sft(checkpoint(family), conversations(), tmp_path / "out", SftConfig(max_steps=1, batch_size=4))
    tokenizer = AutoProcessor.from_pretrained(checkpoint(family)).tokenizer
    learned = {tokenizer.decode(labels[labels != -100]) for labels in seen[0]}
    assert learned == {answer + END[family] for answer in ANSWERS}


@pytest.mark.parametrize("family", ONE_FAST)
def test_an_adapter_covers_every_part_and_reloads(family, tmp_path):
    base, out = checkpoint(family), tmp_path / "out"
    notes = sft.train_sft(base, conversations(), out, SftConfig(max_steps=2, batch_size=4, warmup_ratio=0))
    assert notes["adapted"] == ADAPTED[family]
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), out)
    layers = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len([name for name in layers if "default" not in name]) == sum(notes["adapted"].values())
    assert all(value.any() for name, value in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("family", ONE_FAST)
def test_a_cold_start_reloads(family, tmp_path):
    base, out = checkpoint(family), tmp_path / "out"
    sft.train_cold_start(base, conversations(), out, ColdStartConfig(batch_size=2, learning_rate=1e-3))
    before = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    unchanged = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert unchanged == []
    assert (
        AutoProcessor.from_pretrained(out).chat_template == AutoProcessor.from_pretrained(base).chat_template
    )


def test_rows_with_several_images_and_without_any_train_together(tmp_path):
    plain = {
        "messages": [{"role": "user", "content": "Say B."}, {"role": "assistant", "content": "B"}],
        "images": [],
    }
    rows = Dataset.from_list([*conversations(images=2), plain], features=FEATURES)
    notes = sft.train_sft(
        checkpoint("qwen2_5_vl"), rows, tmp_path / "out", SftConfig(max_steps=2, batch_size=5)
    )
    assert notes["ledger"]["prompts"] == 10


def test_pixel_limits_are_refused_if_the_processor_has_none(tmp_path):
    base = checkpoint("idefics3")
    with pytest.raises(HarnessError, match="the Idefics3ImageProcessor.* has no pixel limits"):
        sft.train_sft(base, conversations(), tmp_path / "out", SftConfig(max_pixels=3136))
    notes = sft.train_sft(base, conversations(), tmp_path / "out", SftConfig(max_steps=1, batch_size=1))
    assert notes["pixel_limits"] is None


def template(text, eos="<|im_end|>"):
    """The tiny Qwen2.5-VL's processor with another chat template."""
    processor = saved_processor(checkpoint("qwen2_5_vl"))
    processor.chat_template = processor.tokenizer.chat_template = text
    ids = [processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    processor.tokenizer.eos_token = eos
    return data.Template.of(processor, GenerationConfig(eos_token_id=ids))


TURNS = data.Turns(
    [
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "one<image>"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "More?"}]},
    ],
    "2",
    1,
)
BODY = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}"
    "{{ p.text if p.type == 'text' else '#' }}{% endfor %}%s{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_earlier_turns_are_prompt_and_text_after_the_end_token_is_dropped():
    rendered = template(BODY.replace("%s", "<|endoftext|>\n\n")).render(TURNS, "row 0")
    assert rendered.prompt.endswith("[user]#More?<|endoftext|>\n\n[assistant]")
    assert rendered.completion == "2<|endoftext|>"


def test_an_end_token_is_added_if_the_template_writes_none():
    assert template(BODY.replace("%s", "")).render(TURNS, "row 0").completion == "2<|im_end|>"


def test_a_template_that_starts_answers_unlike_its_generation_prompt_is_refused():
    thinking = BODY.replace("%s", "<|im_end|>").replace("[assistant]{%", "[assistant]Answer: {%")
    with pytest.raises(HarnessError, match=r"row 3: the chat template ends prompts with '.*Answer: '"):
        template(thinking).render(TURNS, "row 3")


def test_a_first_token_added_by_the_tokenizer_in_evaluation_is_kept():
    from tokenizers.processors import TemplateProcessing

    plain = template(BODY.replace("%s", "<|im_end|>"))
    assert not plain.render(TURNS, "row 0").prompt.startswith("<|endoftext|>")
    tokenizer = plain.processor.tokenizer
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert plain.render(TURNS, "row 0").prompt.startswith("<|endoftext|>[user]")


def test_an_adapter_folder_as_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(HarnessError, match="is an adapter"):
        sft.train_sft(tmp_path, conversations(), tmp_path / "out")


def test_a_text_only_base_is_refused(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(HarnessError, match="is a 'llama' model, not an image-text-to-text one"):
        sft.train_sft(tmp_path, conversations(), tmp_path / "out")


def test_images_of_all_sizes_and_modes_reach_the_model(tmp_path):
    rows = [
        {
            "messages": conversations()[0]["messages"],
            "images": [Pillow.new(mode, size)],
        }
        for mode, size in (("L", (60, 90)), ("RGBA", (64, 64)), ("1", (30, 200)), ("P", (41, 57)))
    ]
    config = SftConfig(max_steps=1, batch_size=4)
    notes = sft.train_sft(checkpoint("qwen3_vl"), Dataset.from_list(rows, FEATURES), tmp_path / "out", config)
    assert notes["ledger"]["prompts"] == len(rows)


# Templates of reasoning models: how a turn and a generation prompt begin.
TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n%s{% for p in m.content %}"
    "{{ p.text if p.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n%a{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
IN_TURNS = "{{ '" + EMPTY.replace("\n", "\\n") + "' if m.role == 'assistant' and loop.last }}"
OFF = "{% if enable_thinking is defined and not enable_thinking %}" + EMPTY
THINKING = {
    "hybrid": TURN.replace("%s", IN_TURNS).replace("%a", OFF + "{% endif %}"),
    "in the prompt alone": TURN.replace("%s", "").replace("%a", OFF + "{% else %}<think>\n{% endif %}"),
    "always": TURN.replace("%s", IN_TURNS).replace("%a", "<think>\n"),
    "always, in the prompt alone": TURN.replace("%s", "").replace("%a", "<think>\n"),
    "none": TURN.replace("%s", "").replace("%a", ""),
    "gemma 4": TURN.replace("%s", "").replace("%a", "<|channel>thought\n<channel|>"),
    # Qwen3.5 finds the thought in the text of a turn, and writes it in a form of its own.
    "rewritten": TURN.replace("%s", "")
    .replace("%a", OFF + "{% else %}<think>\n{% endif %}")
    .replace(
        "{{ p.text if",
        "{{ ('<think>\n' + p.text.split('</think>')[0].split('<think>')[-1] | trim + '\n</think>\n\n'"
        " if '</think>' in p.text else '') + p.text.split('</think>')[-1] | trim if",
    ),
    # Kimi K2.5 writes the thought of a turn from a field of its own, empty without one.
    "kimi": TURN.replace("%s", "{{ '<think></think>' if m.role == 'assistant' }}").replace(
        "%a", "{% if thinking is defined and not thinking %}<think></think>{% else %}<think>{% endif %}"
    ),
    # Turns of LLaVA-OneVision's own template begin with "assistant \n", its generation prompt has no space.
    "other white space": TURN.replace("{{ m.role }}", "{{ m.role }} ").replace("%s", "").replace("%a", ""),
}
NO = {"enable_thinking": False}
ALWAYS = ("always", "always, in the prompt alone")


@pytest.mark.parametrize(
    ("kind", "arguments", "answer", "completion"),
    [
        ("hybrid", {}, "2", EMPTY + "2"),
        ("hybrid", NO, "2", "2"),
        ("hybrid", NO, "<answer>2</answer>", "<answer>2</answer>"),
        ("in the prompt alone", {}, "2", "\n</think>\n\n2"),
        ("in the prompt alone", {}, "<think>\nTwo.\n</think>\n\n2", "Two.\n</think>\n\n2"),
        ("in the prompt alone", NO, "2", "2"),
        ("in the prompt alone", NO, "<answer>2</answer>", "<answer>2</answer>"),
        ("always", {}, "2", "\n</think>\n\n2"),
        ("always, in the prompt alone", {}, "2", "\n</think>\n\n2"),
        ("hybrid", {}, "<think>\nTwo.\n</think>\n\n2", "<think>\nTwo.\n</think>\n\n2"),
        ("always", {}, "<think>\nTwo.\n</think>\n\n2", "Two.\n</think>\n\n2"),
        # As such a model writes it: its prompt opened the thought.
        *((kind, {}, "Two.\n</think>\n\n2", "Two.\n</think>\n\n2") for kind in ALWAYS),
        ("rewritten", {}, "<think>Two.</think>2", "Two.\n</think>\n\n2"),
        ("kimi", {}, "2", "</think>2"),
        ("kimi", {}, "<think>Two.</think>2", "Two.</think>2"),
        ("kimi", {}, "Two.</think>2", "Two.</think>2"),
        ("kimi", {"thinking": False}, "2", "2"),
        ("none", {}, "2", "2"),
        ("gemma 4", {}, "2", "2"),
        ("other white space", {}, "2", "2"),
    ],
)
def test_the_loss_starts_where_the_prompt_of_evaluation_ends(kind, arguments, answer, completion):
    made = replace(template(THINKING[kind]), arguments=arguments)
    rendered = made.render(replace(TURNS, answer=answer), "row 0")
    asked = made.processor.apply_chat_template(TURNS.prompt, add_generation_prompt=True, **arguments)
    assert rendered == (asked, completion + "<|im_end|>")


@pytest.mark.parametrize("answer", ["ant", "a", "star", "assistant", "im", "|>"])
@pytest.mark.parametrize(
    ("kind", "arguments", "closed"),
    [
        ("in the prompt alone", {}, "\n</think>\n\n"),
        ("in the prompt alone", NO, ""),
        ("gemma 4", {}, ""),
        ("other white space", {}, ""),
    ],
)
def test_an_answer_may_occur_in_its_turns_header(kind, arguments, closed, answer):
    made = replace(template(THINKING[kind]), arguments=arguments)
    assert made.render(replace(TURNS, answer=answer), "row 0").completion == f"{closed}{answer}<|im_end|>"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("in the prompt alone", NO), ("hybrid", NO), ("rewritten", NO), ("kimi", {"thinking": False})],
)
def test_an_answer_with_reasoning_is_refused_if_the_prompt_has_an_empty_block(kind, arguments):
    made = replace(template(THINKING[kind]), arguments=arguments)
    with pytest.raises(HarnessError, match="row 7: the answer begins with <think>, but the prompt already"):
        made.render(replace(TURNS, answer="<think>Two.</think>2"), "row 7")


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """The tiny Qwen2.5-VL with a hybrid template."""
    folder = tmp_path_factory.mktemp("thinking") / "base"
    shutil.copytree(checkpoint("qwen2_5_vl"), folder)
    (folder / "chat_template.jinja").write_text(THINKING["hybrid"])
    return str(folder)


def prompts_of_evaluation(**given):
    """The tokens of the first document's prompts in `dcsft_hf`."""
    model = DcsftHF(device="cpu", **given)
    (item,) = plan(requests_for(model, documents()[:1], {}), {})
    return model._prepare(item).features["input_ids"][0].tolist()


@pytest.mark.parametrize("arguments", [None, NO])
def test_sft_uses_the_prompts_of_evaluation_which_reads_them_from_the_adapter(
    thinking, tmp_path, arguments, monkeypatch, caplog
):
    seen: list[dict] = []
    original = sft.SftTrainer.training_step

    def step(self, model, inputs, *rest):
        seen.append({name: inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")})
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(sft.SftTrainer, "training_step", step)
    config = SftConfig(max_steps=1, batch_size=1, chat_template_kwargs=arguments)
    notes = sft.train_sft(thinking, conversations().select([0]), tmp_path / "out", config)
    (one,) = seen
    prompt = one["input_ids"][0][(one["labels"][0] == -100) & one["attention_mask"][0].bool()].tolist()
    assert prompt == prompts_of_evaluation(pretrained=thinking, adapter=str(tmp_path / "out"))
    assert notes.get("chat_template_kwargs") == arguments
    assert "was trained with" not in caplog.text
    other = prompts_of_evaluation(
        pretrained=thinking, adapter=str(tmp_path / "out"), chat_template_kwargs='{"enable_thinking": true}'
    )
    assert (other == prompt) is (arguments is None)
    assert ("was trained with" in caplog.text) is (arguments is not None)


@pytest.mark.parametrize("arguments", [{}, NO])
def test_grpo_uses_the_prompts_of_evaluation(thinking, tmp_path, drawn, arguments):  # noqa: F811
    rows = conversations().select([0]).add_column("item_id", ["item0"])
    config = GrpoConfig(
        max_steps=1, batch_size=2, num_generations=2, max_completion_length=2, chat_template_kwargs=arguments
    )
    grpo.train_grpo(thinking, rows, Parity(1), tmp_path / "out", config)
    ((_, _, found),) = drawn
    prompt = found["prompt_ids"][0][found["prompt_mask"][0].bool()].tolist()
    assert prompt == prompts_of_evaluation(pretrained=thinking, chat_template_kwargs=arguments)
    assert manifest.read(tmp_path / "out").notes["chat_template_kwargs"] == arguments


def test_dpo_uses_the_prompts_of_evaluation(thinking, tmp_path, monkeypatch):
    seen: list[str] = []
    original = data.Template.render

    def render(self, turns, *more):
        found = original(self, turns, *more)
        seen.append(found.prompt)
        return found

    monkeypatch.setattr(data.Template, "render", render)
    pairs = digits(tmp_path / "rollouts", 2)
    options = {"max_steps": 1, "batch_size": 2, "chat_template_kwargs": NO}
    STAGES["train dpo"](model=thinking, data=pairs, output=tmp_path / "out", **options)
    assert seen and all(prompt.endswith(f"<|im_start|>assistant\n{EMPTY}") for prompt in seen)
    assert manifest.read(tmp_path / "out").notes["chat_template_kwargs"] == NO


YES = {"enable_thinking": True}


@pytest.mark.parametrize(
    ("model", "sampled", "trained", "refused"),
    [
        ("dcsft_hf", {}, None, False),
        ("dcsft_hf", NO, NO, False),
        ("dcsft_vllm", {}, NO, True),
        ("dcsft_hf", NO, None, True),
        ("dcsft_vllm", NO, YES, True),
        ("dcsft_hf", "adapter", None, True),
        ("dcsft_hf", "adapter", NO, False),
        ("dcsft_hf", NO, "adapter", False),
        ("dcsft_hf", YES, "adapter", True),
        ("other", {}, NO, False),
    ],
)
def test_dpo_refuses_responses_to_prompts_with_other_arguments(model, sampled, trained, refused, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    chat_template.record(adapter, NO)
    named = {"pretrained": "digits", "batch_size": 8}
    named |= (
        {"adapter": adapter} if sampled == "adapter" else {chat_template.NAME: sampled} if sampled else {}
    )
    with manifest.writing(
        "rollouts", tmp_path / "out", {"model": model, "model_args": reading.joined(named)}
    ):
        pass
    given, used = (None, adapter) if trained == "adapter" else (trained, None)
    problem = r"was sampled with chat_template_kwargs .*, but training would write prompts with \{.*\}"
    with pytest.raises(HarnessError, match=problem) if refused else contextlib.nullcontext() as caught:
        train_dpo._refuse_other_prompts(tmp_path / "out", "digits", given, used)
    if refused:
        assert "Pass --chat-template-kwargs '{" in str(caught.value)


@pytest.mark.parametrize("role", ["model", "adapter"])
def test_dpo_finds_the_folders_of_its_rollouts_from_any_directory(role, tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()
    chat_template.record(tmp_path / "trained", NO)
    named = {"pretrained": "trained"} if role == "model" else {"pretrained": "digits", "adapter": "trained"}
    config = {"model": "dcsft_hf", "model_args": reading.joined(named)}
    with manifest.writing("rollouts", tmp_path / "out", config, {role: tmp_path / "trained"}):
        pass
    monkeypatch.chdir("/")
    train_dpo._refuse_other_prompts(tmp_path / "out", "digits", NO, None)
    with pytest.raises(HarnessError, match="was sampled with chat_template_kwargs"):
        train_dpo._refuse_other_prompts(tmp_path / "out", "digits", None, None)


def test_dpo_compares_the_prompts_of_its_rollouts(thinking, tmp_path, monkeypatch):
    pairs = digits(tmp_path / "rollouts", 2)
    file = pairs / manifest.NAME
    written = json.loads(file.read_text())
    written["config"] |= {"model": "dcsft_hf", "model_args": reading.joined({chat_template.NAME: NO})}
    file.write_text(json.dumps(written))
    with pytest.raises(
        HarnessError, match="enable_thinking.*false.*, but training would write prompts with {}"
    ):
        STAGES["train dpo"](model=thinking, data=pairs, output=tmp_path / "out", max_steps=1)


def test_score_passes_template_arguments(thinking, tmp_path, monkeypatch, capsys):
    """They reach every prompt, are recorded in the results, and cannot differ between a row's tasks."""
    prompts = []
    render = base.render
    monkeypatch.setattr(base, "render", lambda *given: prompts.append(render(*given)) or prompts[-1])
    words = ["score", thinking, "--board", str(tmp_path / "board"), "--limit", "1", "--name", "row"]
    words += ["--engine", "dcsft_hf", "--suite"]
    arguments = reading.joined({chat_template.NAME: NO, "batch_size": 2})
    assert main([*words, "dcsft_digits", "--model-args", arguments]) == 0, capsys.readouterr().err
    assert prompts and all(one.endswith(f"<|im_start|>assistant\n{EMPTY}") for one in prompts)
    (found,) = [manifest.read(one.parent) for one in tmp_path.glob("board/**/scores.parquet")]
    assert json.loads(reading.named(found.config["model_args"])[chat_template.NAME]) == NO
    capsys.readouterr()
    assert main([*words, "dcsft_digits,dcsft_digits_r"]) != 0
    assert "chat_template_kwargs: " in capsys.readouterr().err
    prompts.clear()
    assert main([*words, "dcsft_digits,dcsft_digits_r", "--model-args", arguments]) == 0
    assert prompts and all(one.endswith(f"<|im_start|>assistant\n{EMPTY}") for one in prompts)


@pytest.mark.parametrize("engine", [DcsftHF, "data inspect", "sft"])
def test_an_argument_unused_by_the_template_is_refused_with_the_used_ones(thinking, tmp_path, engine, capsys):
    given = {"enable_thoughts": False}
    problem = "its chat template does not use enable_thoughts; it uses enable_thinking"
    if engine == "data inspect":
        rows = tmp_path / "mine.jsonl"
        rows.write_text('{"question": "What?", "answer": "B", "image": null}\n')
        words = [*engine.split(), str(rows), "--model", thinking, "--chat-template-kwargs", json.dumps(given)]
        assert main(words) != 0 and problem in capsys.readouterr().err
        return
    with pytest.raises(HarnessError, match=problem):
        if engine == "sft":
            config = SftConfig(max_steps=1, chat_template_kwargs=given)
            sft.train_sft(thinking, conversations(), tmp_path / "out", config)
        else:
            engine(pretrained=thinking, chat_template_kwargs=given)


def test_sampling_records_the_template_arguments(thinking, tmp_path, capsys):
    arguments = reading.joined({"chat_template_kwargs": NO, "batch_size": 2})
    words = ["sample", "--model", thinking, "--task", "dcsft_digits_pool", "--limit", "2", "--samples", "2"]
    words += ["--max-new-tokens", "2", "--output", str(tmp_path / "out")]
    assert main([*words, "--model-args", arguments]) == 0
    made = manifest.read(tmp_path / "out")
    assert json.loads(reading.named(made.config["model_args"])["chat_template_kwargs"]) == NO
    assert main([*words, "--model-args", arguments]) == 0
    other = 'chat_template_kwargs={"enable_thinking": true}'
    assert main([*words, "--model-args", other]) != 0
    assert "chat_template_kwargs" in capsys.readouterr().err
    assert main(["label", str(tmp_path / "out"), "--exact", "--output", str(tmp_path / "labels")]) == 0
