"""Generation arguments: each is applied or refused, none is dropped."""

import logging
from pathlib import Path

import pytest

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.arguments import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerationArguments,
    ModelSettings,
    VLLMSettings,
)
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.stages import STAGES, opening
from dcsft_harness.stages.evaluate import EvaluateOptions
from dcsft_harness.training.config import SftConfig


def parse(**given):
    return GenerationArguments.parse(given, "some_task")


def test_the_defaults_are_greedy_and_neutral():
    assert parse() == GenerationArguments()
    assert parse(temperature=None, until=None, top_p="None") == GenerationArguments()
    assert GenerationArguments().greedy
    assert GenerationArguments().max_new_tokens == DEFAULT_MAX_NEW_TOKENS


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"max_new_tokens": "16"}, "max_new_tokens", 16),
        ({"max_gen_toks": 16}, "max_new_tokens", 16),
        ({"max_new_tokens": 16.0}, "max_new_tokens", 16),
        ({"max_gen_toks": 16, "max_new_tokens": 16}, "max_new_tokens", 16),
        ({"min_new_tokens": 2}, "min_new_tokens", 2),
        ({"skip_special_tokens": " False "}, "skip_special_tokens", False),
        ({"temperature": "0.9"}, "temperature", 0.9),
        ({"do_sample": True}, "temperature", 1.0),
        ({"do_sample": "True", "temperature": 0.5}, "temperature", 0.5),
        ({"do_sample": True, "temperature": 0}, "temperature", 0.0),
        ({"do_sample": False, "temperature": 0.0, "top_p": 0.9}, "top_p", 0.9),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": "50"}, "top_k", 50),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"repetition_penalty": 1.05}, "repetition_penalty", 1.05),
        ({"until": "###"}, "stop", ("###",)),
        ({"until": ["a", "", None, "b", "a"]}, "stop", ("a", "b")),
        ({"until": [None]}, "stop", ()),
        ({"until": ["Q:", "\n\n"]}, "stop", ("Q:", "\n\n")),
        ({"until": ["a"], "stop": "b"}, "stop", ("a", "b")),
        ({"stop": ["\n\n"]}, "stop", ("\n\n",)),
        ({"seed": "3"}, "seed", 3),
        ({"skip_special_tokens": "false"}, "skip_special_tokens", False),
        ({"use_cache": False}, "use_cache", False),
    ],
)
def test_each_argument_is_read(given, field, value):
    assert getattr(parse(**given), field) == value


@pytest.mark.parametrize(
    "given",
    [{"num_beams": 1}, {"num_beams": "1"}, {"length_penalty": 1.0}, {"num_return_sequences": 1}, {"n": None}]
    + [{"image_aspect_ratio": "original"}, {"early_stopping": False}, {"frequency_penalty": 0.0}],
)
def test_neutral_values_of_unsupported_arguments_are_accepted(given):
    assert parse(**given) == GenerationArguments()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"num_return_sequences": 8}, "num_return_sequences=8"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
        ({"visual_cot": True}, "visual_cot"),
        ({"frequency_penalty": 0.3}, "frequency_penalty"),
        ({"temprature": 1.0}, "Did you mean temperature"),
        ({"top_n_sigma": 1.0}, "top_n_sigma"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_k": True}, "top_k=True"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"until": 7}, "until=7 is not a text or a list of texts"),
        ({"stop": ["a", 7]}, "stop=['a', 7] is not a text or a list of texts"),
        ({"do_sample": "perhaps"}, "do_sample='perhaps'"),
        ({"max_gen_toks": 8, "max_new_tokens": 16}, "disagrees"),
        ({"do_sample": False, "temperature": 0.7}, "contradicts temperature=0.7"),
    ],
)
def test_everything_else_is_refused_by_name_and_task(given, message):
    with pytest.raises(HarnessError, match="some_task") as caught:
        parse(**given)
    assert message in str(caught.value)


def test_the_stop_text_filled_in_by_lmms_eval_is_ignored_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert GenerationArguments.parse({"until": ["\n\n"]}, "filled_in") == GenerationArguments()
    assert sum("filled_in" in record.getMessage() for record in caplog.records) == 1


def test_equal_arguments_share_a_batch():
    assert len({parse(temperature=1), parse(do_sample=True), parse(temperature="1.0")}) == 1


THOUGHTS = {"enable_thinking": False, "budget": [1, 2], "style": "a, b"}
OBJECT = '{"budget": [1, 2], "enable_thinking": false, "style": "a, b"}'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", {}),
        ("batch_size=8,,dtype=float32", {"batch_size": "8", "dtype": "float32"}),
        (f"chat_template_kwargs={OBJECT},batch_size=8", {"chat_template_kwargs": OBJECT, "batch_size": "8"}),
        ('chat_template_kwargs={"a":true}', {"chat_template_kwargs": '{"a": true}'}),
        ('k={"a": "}", "b": "\\"{"},n=1', {"k": '{"a": "}", "b": "\\"{"}', "n": "1"}),
        ("system_prompt=a {b},n=1", {"system_prompt": "a {b}", "n": "1"}),
        ("k={broken,n=1", {"k": "{broken,n=1"}),
        (" batch_size=8 , dtype=float32, ", {"batch_size": "8", "dtype": "float32"}),
    ],
)
def test_model_arguments_are_split_at_commas_outside_objects(text, named):
    assert reading.named(text) == named


@pytest.mark.parametrize(
    "text",
    ["batch_size=8,{}", "batch_size=8, {}", " {} , batch_size=8", "{}, ", "{},", " , {}", "{0[0]} ={0[1]}"],
)
@pytest.mark.parametrize("key", ["pretrained", "adapter"])
def test_white_space_around_model_arguments_is_ignored(tmp_path, key, text):
    split = "{0[0]}" in text
    given = text.format([key, str(tmp_path)] if split else f"{key}={tmp_path}")
    reading.refuse_malformed("--model-args", given)
    arguments, inputs = opening.model_arguments(given)
    assert f"{key}={tmp_path}" in arguments.split(",")
    assert inputs == {"model" if key == "pretrained" else key: tmp_path}
    assert reading.named(given)[key] == str(tmp_path)


def test_the_embedded_checkpoint_is_resolved_after_white_space():
    arguments, inputs = opening.model_arguments("batch_size=8, pretrained=digits")
    assert arguments == f"batch_size=8,pretrained={inputs['model']}"


@pytest.mark.parametrize("settings", [ModelSettings, VLLMSettings])
def test_chat_template_arguments_may_be_json_or_a_dictionary(settings):
    text = reading.joined({"pretrained": "p", "chat_template_kwargs": THOUGHTS})
    for given in (reading.named(text), {"pretrained": "p", "chat_template_kwargs": THOUGHTS}):
        assert settings(**given).chat_template_kwargs == THOUGHTS
    assert settings(pretrained="p").chat_template_kwargs is None
    options = EvaluateOptions(model_args={"chat_template_kwargs": THOUGHTS, "batch_size": 2})
    assert reading.named(options.model_args) == {"chat_template_kwargs": OBJECT, "batch_size": "2"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_pixels": "1e6"}, None),
        ({"max_pixels": 8.0, "dtype": "None", "batch_size": "auto"}, None),
        ({"max_pixles": None}, "unknown model argument 'max_pixles'. Did you mean max_pixels"),
        ({"max_pixels": "8.5"}, "max_pixels='8.5' is not a whole number"),
        ({"max_pixels": 0}, "max_pixels=0 is out of range. It must be at least 1"),
        ({"max_pixels": True}, "max_pixels=True is not a whole number"),
        ({"memory_gb": "-1"}, "memory_gb='-1' is out of range. It must be at least 0"),
        ({"dtype": "float23"}, "unknown model argument dtype value 'float23'. Did you mean float32"),
        ({"attn_implementation": "spda"}, "unknown attn_implementation 'spda'. Did you mean sdpa"),
        ({"pretrained": "none"}, "model argument pretrained is missing"),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels=9 exceeds max_pixels=8"),
    ],
)
def test_model_arguments_are_parsed_from_text_or_refused_by_name(given, said):
    if said is None:
        ModelSettings.from_options({"pretrained": "p", **given})
        return
    with pytest.raises(HarnessError) as caught:
        ModelSettings.from_options({"pretrained": "p", **given})
    assert said in str(caught.value)


@pytest.mark.parametrize("value", ["{enable_thinking: false}", "[1]", "false", 3, {1: 2}])
def test_other_values_are_refused_in_one_sentence(value):
    with pytest.raises(HarnessError, match="chat_template_kwargs=.* is not (JSON|an object)"):
        ModelSettings(pretrained="p", chat_template_kwargs=value)
    with pytest.raises(HarnessError, match="chat-template-kwargs=.* is not (JSON|an object)"):
        SftConfig(chat_template_kwargs=value)


def test_a_recipes_dictionary_becomes_model_arguments_on_the_command_line():
    words = STAGES["sample"].command({"model_args": {"n": 1, "chat_template_kwargs": {"a": True}}}, Path("o"))
    assert words[2:4] == ["--model-args", 'n=1,chat_template_kwargs={"a": true}']


@pytest.mark.parametrize("settings", [ModelSettings, VLLMSettings])
def test_digits_means_the_embedded_checkpoint_in_lmms_eval_too(settings):
    from dcsft_harness.data import digits

    assert settings.from_options({"pretrained": "digits"}).pretrained == str(digits.path())
    assert settings.from_options({"pretrained": "OWNER/digits"}).pretrained == "OWNER/digits"


@pytest.mark.parametrize(
    ("given", "more", "size"),
    [
        ("default=x", {"batch_size": 1, "max_batch_size": None, "device": None}, 1),
        ("default=x,batch_size=4", {"batch_size": 1, "max_batch_size": 8, "device": None}, 4),
    ],
)
def test_model_arguments_take_precedence_over_lmms_evals_own_options(given, more, size):
    assert DcsftStub.create_from_arg_string(given, more).batch_size == size


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("default=x,nonsense", "'nonsense' is not key=value"),
        ("default=a b,c,d=e", "'c' is not key=value"),
        ("nonsense", "'nonsense' is not key=value"),
        # The last one would silently count.
        ("default=a,default=b", "gives default twice. Pass it once"),
        ('default=a,chat_template_kwargs={"a": 1, "b": 2}, default=a', "gives default twice"),
    ],
)
def test_malformed_arguments_are_named(given, said):
    with pytest.raises(HarnessError, match=said):
        DcsftStub.create_from_arg_string(given)
    with pytest.raises(HarnessError, match=said):
        reading.refuse_malformed("--model-args", given)
