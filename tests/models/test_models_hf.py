"""Batches of `dcsft_hf` against transformers itself, and the handling of its arguments."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AddedToken, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from dcsft_harness.coordinates import declared
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.decoding import Endings, SpecialTokens
from dcsft_harness.models.engine import Row, decode
from dcsft_harness.models.hf import DcsftHF
from tests.fixtures.tiny_checkpoints import FAMILIES, checkpoint, documents, requests_for, to_messages

GREEDY = {"max_new_tokens": 12, "do_sample": False}
SAMPLED = {"max_new_tokens": 8, "temperature": 1.0}


def load(family="qwen2_5_vl", **given):
    return DcsftHF(**{"pretrained": checkpoint(family), "device": "cpu", **given})


def texts(model, docs, given, repeats=1):
    return [result.text for result in model.generate_until(requests_for(model, docs, given, repeats))]


def by_generate(folder, doc, **given):
    """The response of transformers' `generate` to a document, with the checkpoint's settings in force."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    messages = to_messages(doc)
    messages[0]["content"][0] = {"type": "image", "image": doc["image"]}
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False, **given)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def by_transformers(family, doc, **given):
    """The same without the checkpoint's generation settings."""
    return by_generate(checkpoint(family), doc, **({"repetition_penalty": 1.0} | given))


@pytest.mark.few(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_the_responses_of_transformers_one_by_one(family):
    docs = documents()
    alone = texts(load(family), docs, GREEDY)
    together = texts(load(family, batch_size="8"), docs, GREEDY)
    assert together == alone
    # A model that ignores its input would pass the line above.
    assert len(set(alone)) == len(alone)
    assert alone[1] == by_transformers(family, docs[1])
    assert alone[3] == by_transformers(family, docs[3])


def test_the_image_changes_the_response():
    docs = documents()[:2]
    swapped = [docs[0] | {"image": docs[1]["image"]}, docs[1] | {"image": docs[0]["image"]}]
    model = load(batch_size=2)
    for before, after in zip(texts(model, docs, GREEDY), texts(model, swapped, GREEDY), strict=True):
        assert before != after


def test_prompts_with_and_without_an_image_share_a_call():
    docs = documents()[:3]
    docs[1]["image"] = None
    model = load("idefics3", batch_size=3)
    assert texts(model, docs, GREEDY) == texts(load("idefics3"), docs, GREEDY)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_several_images_of_one_prompt_stay_with_it_when_sampled(family):
    docs = documents()

    def two_images(doc):
        turn = to_messages(doc)
        turn[0]["content"].insert(0, {"type": "image", "url": docs[(doc["n"] + 1) % 10]["image"]})
        return turn

    def run(size):
        model = load(family, batch_size=size)
        rows = requests_for(model, [doc | {"n": n} for n, doc in enumerate(docs[:3])], SAMPLED, 2)
        for row in rows:
            row.arguments = (row.args[0], two_images, *row.args[2:])
        return [result.text for result in model.generate_until(rows)]

    assert run(1) == run(3)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"min_new_tokens": 12}, {"min_new_tokens": 12}),
    ],
)
def test_penalties_equal_those_of_transformers(given, reference):
    docs = documents()
    together = texts(load(batch_size=8), docs, GREEDY | given)
    assert together == texts(load(), docs, GREEDY | given)
    assert together[2] == by_transformers("qwen2_5_vl", docs[2], **reference)


def test_the_penalty_changes_outputs_and_the_checkpoints_own_is_ignored():
    docs = documents()
    model = load(batch_size=8)
    assert texts(model, docs, GREEDY | {"repetition_penalty": 1.4}) != texts(model, docs, GREEDY)
    # The checkpoint's own file asks for 1.3, which would show somewhere in these.
    penalised = [by_transformers("qwen2_5_vl", doc, repetition_penalty=1.3) for doc in docs[:6]]
    assert penalised != texts(model, docs[:6], GREEDY)


def test_stop_texts_cut_the_response_and_end_its_row():
    docs = documents()
    model = load(batch_size=8)
    seen = []
    model.on_batch = seen.extend
    whole = texts(model, docs, GREEDY)
    stop = whole[0][3:5]
    seen.clear()
    cut = texts(model, docs, GREEDY | {"until": [stop, "never ever"]})
    assert cut == [text.split(stop)[0] for text in whole]
    seen.sort(key=lambda generation: generation.doc_id)
    assert seen[0].finish_reason == "stop"
    assert seen[0].n_tokens < 12
    assert seen[1].n_tokens == 12 or stop in whole[1]


def test_end_tokens_of_tokenizer_and_generation_config_end_a_row():
    model = load(batch_size=8)
    assert model._tokens.eos == (2, 0)
    seen = []
    model.on_batch = seen.extend
    whole = texts(model, documents(), {"max_new_tokens": 150, "skip_special_tokens": False})
    seen.sort(key=lambda generation: generation.doc_id)
    ended = [generation for generation in seen if generation.finish_reason == "stop"]
    assert ended
    for generation in ended:
        # Rows that continue do not count on, and the end token is counted but not shown.
        assert generation.n_tokens < 150
        assert not {"<|im_end|>", "<|endoftext|>"} & set(model.tokenizer.tokenize(generation.response))
    assert all(seen[at].response == whole[at] for at in range(len(whole)))


def test_a_special_token_can_be_a_stop_text():
    model = load()
    stop = model._tokens.stopping_at(model.tokenizer, ("<|im_start|>", "plain"))
    assert stop.eos == (*model._tokens.eos, model.tokenizer.convert_tokens_to_ids("<|im_start|>"))
    model.tokenizer.add_tokens([AddedToken("<|mine|>", special=True)])
    assert "<|mine|>" not in model.tokenizer.all_special_tokens
    stop = model._tokens.stopping_at(model.tokenizer, ("<|mine|>",))
    assert stop.eos == (*model._tokens.eos, model.tokenizer.convert_tokens_to_ids("<|mine|>"))


@pytest.mark.parametrize("inside", [True, False])
def test_an_end_token_named_only_in_the_configuration_ends_a_row(inside):
    """An ordinary token there is a class default from another vocabulary."""
    tokenizer = AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl")).tokenizer
    start, ordinary = tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.encode("a")[0]
    named = SimpleNamespace(eos_token_id=[start, ordinary])
    outer = SimpleNamespace(get_text_config=lambda: named) if inside else named
    named.get_text_config = lambda: SimpleNamespace()
    without = SpecialTokens.of(tokenizer, GenerationConfig(eos_token_id=2)).eos
    assert SpecialTokens.of(tokenizer, GenerationConfig(eos_token_id=2), outer).eos == (*without, start)


def test_an_idle_row_with_non_finite_logits_stops_nothing():
    """It has finished, and its last token is meaningless."""
    rows = [Row(n, n) for n in range(8)]
    table = torch.eye(16)

    def step(chosen):
        logits = torch.nn.functional.embedding(chosen, table)
        logits[0] = torch.nan
        return logits

    prompts = SimpleNamespace(tokens=torch.zeros((8, 1), dtype=torch.int64), attention_mask=None)
    forked = SimpleNamespace(prompts=prompts, item_of_row=torch.arange(8), logits=table[1:9], step=step)
    arguments = GenerationArguments(max_new_tokens=4)
    tokenizer = AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl")).tokenizer
    decode(forked, rows, arguments, Endings(tokenizer, arguments, SpecialTokens(0, None, (1,))))
    assert [row.tokens for row in rows] == [[1], *([n] * 4 for n in range(2, 9))]


def test_results_have_token_counts_and_progress_counts_items():
    docs = documents()[:3]
    model = load(batch_size=2)
    progress, batches = [], []
    model.on_progress = lambda done, total: progress.append((done, total))
    model.on_batch = batches.append
    results = model.generate_until(requests_for(model, docs, GREEDY, repeats=4))
    assert progress == [(2, 3), (3, 3)]
    assert [len(batch) for batch in batches] == [8, 4]
    assert [generation.sample_index for generation in batches[1]] == [0, 1, 2, 3]
    first = batches[0][0]
    assert results[0].token_counts.to_dict() == {
        "input_tokens": first.n_prompt_tokens,
        "output_tokens": first.n_tokens,
        "prompt_settings": {},
    }
    assert (first.task, first.doc_id, first.seed) == ("tiny", 0, 0)


def test_rank_padding_is_not_generated():
    model = load()
    seen = []
    model.on_batch = seen.extend
    rows = requests_for(model, documents()[:2], GREEDY)
    rows[1].metadata["__padding_only__"] = True
    assert model.generate_until(rows)[1].text == ""
    assert [generation.doc_id for generation in seen] == [0]


def test_pixel_limits_reach_the_processor_and_the_convention():
    docs = documents()[:1]
    small, large = load(max_pixels=56 * 56, min_pixels="784"), load()
    tokens = [
        m.generate_until(requests_for(m, docs, GREEDY))[0].token_counts.input_tokens for m in (small, large)
    ]
    assert tokens[0] < tokens[1]
    assert small.box_convention.resized_size((60, 90)) == (28, 56)
    assert large.box_convention.resized_size((60, 90)) == (56, 84)
    image = docs[0]["image"].resize((640, 480))
    grid = small.processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
    assert small.box_convention.resized_size((640, 480)) == (int(grid[2]) * 14, int(grid[1]) * 14)
    assert declared() is large.box_convention  # which was opened later: the declaration precedes generation
    small.generate_until([])
    assert declared() is small.box_convention


def test_a_checkpoint_trained_on_other_boxes_can_declare_them():
    """VLM-R1, and so the paper, trains Qwen2.5-VL on boxes in pixels of the original image."""
    assert load().box_convention.space == "resized"
    assert load(box_space="pixel").box_convention.space == declared().space == "pixel"
    with pytest.raises(HarnessError, match="box_space value 'norm100'. Did you mean norm1000"):
        load(box_space="norm100")


def test_unreadable_images_name_their_document(tmp_path):
    damaged = tmp_path / "damaged.png"
    whole = tmp_path / "whole.png"
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(whole)
    damaged.write_bytes(whole.read_bytes()[:20])
    model = load()
    for image in (str(damaged), str(tmp_path / "missing.png"), 7):
        docs = [{"image": str(whole), "text": "fine"}, {"image": image, "text": "not fine"}]
        with pytest.raises(HarnessError, match="'tiny', doc_id 1"):
            model.generate_until(requests_for(model, docs, GREEDY))


def test_a_system_prompt_is_part_of_the_prompt():
    docs = documents()[:1]
    plain, told = load(), load(system_prompt="Answer with one word.")
    counts = [
        m.generate_until(requests_for(m, docs, GREEDY))[0].token_counts.to_dict() for m in (plain, told)
    ]
    assert counts[0]["input_tokens"] < counts[1]["input_tokens"]
    digest = hashlib.sha256(b"Answer with one word.").hexdigest()
    assert counts[1]["prompt_settings"] == {"system_prompt_sha256": digest} and not plain.prompt_settings
    assert counts[0]["prompt_settings"] == {}


@pytest.mark.parametrize("value", ["prompts/system", "/data/prompts/system", "system.txt", "system.md"])
def test_a_system_prompt_that_looks_like_a_missing_file_is_refused(value):
    with pytest.raises(HarnessError, match=f"system_prompt={value}: the file does not exist"):
        load(system_prompt=value)


@pytest.mark.parametrize("value", ["/no_think", "Think.", "Write yes/no.", r"yes/no\nor.txt"])
def test_other_system_prompts_are_used_literally(value):
    assert load(system_prompt=value)._system_prompt == value.replace("\\n", "\n")


def test_weights_are_reloaded_after_lmms_eval_cleans_up():
    model = load()
    before = texts(model, documents()[:1], GREEDY)
    model.clean()
    assert not hasattr(model, "_model")
    assert texts(model, documents()[:1], GREEDY) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": 4}, "batch_size"),
        ({"batch_size": "most"}, "batch_size='most'"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "gpu"}, "'gpu' is not a device"),
        ({"max_pixels": 100}, "max_pixels=100"),
        ({"seed": "-1"}, "seed"),
        ({"trust_remote_code": "maybe"}, "trust_remote_code"),
        ({"adapter": "/nowhere"}, "/nowhere"),
        ({"pretrained": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_bad_arguments_are_refused_before_weights_are_loaded(given, message, monkeypatch):
    monkeypatch.setattr("dcsft_harness.models.checkpoint.open_weights", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(HarnessError, match=message):
        DcsftHF(**({"pretrained": checkpoint("qwen2_5_vl"), "device": "cpu"} | given))


def test_other_request_types_name_the_supported_one():
    model = load()
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="generate_until"):
            method([])


def test_a_prompt_that_is_too_long_is_refused_with_its_item():
    model = DcsftHF(pretrained=checkpoint("qwen2_5_vl"), device="cpu", batch_size=2)
    docs = [{**documents()[0], "text": "goose " * 5000}, documents()[1]]
    requests = requests_for(model, docs, {"max_new_tokens": 2})
    with pytest.raises(
        HarnessError, match=r"task 'tiny', doc_id 0: a prompt of \d+ tokens, but the model takes 4096"
    ):
        model.generate_until(requests)
    model.refused = {}
    assert [bool(one.text) for one in model.generate_until(requests)] == [False, True]
