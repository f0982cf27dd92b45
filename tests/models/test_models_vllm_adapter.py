"""Adapters of `dcsft_vllm`: which become LoRA requests, and that a merge has the same effect."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcsft_harness import ranks
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import merging, vllm
from dcsft_harness.models.hf import DcsftHF
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import checkpoint, documents
from tests.models.test_merging import plain
from tests.models.test_models_hf import GREEDY, load, texts
from tests.models.test_models_vllm import SAMPLED, drawn, model

LANGUAGE = r".*language_model.*\.(q_proj|v_proj|up_proj)"
BOTH = r".*\.(qkv|q_proj|v_proj|fc1|down_proj)"


@pytest.fixture
def fake(monkeypatch):
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Makes a random adapter of a kind."""

    def make(target=LANGUAGE, family="qwen2_5_vl", **options):
        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        return str(plain(folder, checkpoint(family), target, **options))

    return make


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_plain_lora_on_the_language_model_is_a_request(family, adapter, fake, temporary, caplog):
    target = LANGUAGE if family == "qwen2_5_vl" else r".*language_model.*\.(o_proj|gate_proj)"
    folder = adapter(target, family)
    drawn(model(pretrained=checkpoint(family), adapter=folder), documents()[:1], SAMPLED)
    options = fake.opened[0]
    assert options["model"] == checkpoint(family)
    assert (options["enable_lora"], options["max_lora_rank"]) == (True, 8)
    assert fake.last.calls[0][2] == ("adapter", 1, folder)
    assert not list(temporary.glob("dcsft_merged*")) and "merged" not in caplog.text


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (BOTH, {}),
        (LANGUAGE, {"use_dora": True}),
        (LANGUAGE, {"rank_pattern": {"q_proj": 2}}),
        (LANGUAGE, {"bias": "lora_only"}),
        (r".*embed_tokens|.*q_proj", {}),
        (LANGUAGE, {"modules_to_save": ["lm_head"]}),
    ],
)
def test_other_adapters_are_merged_and_the_merge_answers_like_the_adapter(
    target, options, adapter, fake, temporary, caplog
):
    folder = adapter(target, **options)
    one = model(adapter=folder)
    drawn(one, documents()[:1], SAMPLED)
    assert f"adapter {folder} is merged into a temporary checkpoint first" in caplog.text
    merged = Path(fake.opened[0]["model"])
    assert "enable_lora" not in fake.opened[0]
    assert fake.last.calls[0][2] is None
    assert merged.parent.parent == temporary
    assert {"model.safetensors", "chat_template.jinja", "processor_config.json"} <= {
        path.name for path in merged.iterdir()
    }
    unmerged = load(adapter=folder, batch_size=8)
    docs = documents()[:4]
    assert texts(DcsftHF(pretrained=str(merged), device="cpu", batch_size=8), docs, GREEDY) == texts(
        unmerged, docs, GREEDY
    )
    one.clean()
    assert not merged.exists()


@pytest.mark.parametrize(("rank", "machine", "made"), [(0, 0, True), (1, 0, False), (1, 1, False)])
def test_ranks_on_a_machine_share_one_merge(rank, machine, made, adapter, fake, temporary, monkeypatch):
    """Others wait for the first rank's merge, and leave its removal to it."""
    one = model(adapter=adapter(), merge_adapter=True)
    folders = {"0": "/first", "1": "/second"}
    for name, value in {"WORLD_SIZE": 4, "RANK": 2 * machine + rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GROUP_RANK", str(machine))
    monkeypatch.setattr(ranks, "agreed", contextlib.nullcontext)
    monkeypatch.setattr(ranks, "gathered", lambda value: [value, *folders.items(), ("0", None)])
    monkeypatch.setattr(vllm, "merge", lambda base, adapter, folder, *more: SimpleNamespace(in_deviations=0))
    found = one._adapted.checkpoint(dict)
    assert (str(temporary) in found) == made
    assert made or found == folders[str(machine)]
    assert len(list(temporary.iterdir())) == made
    one._adapted.remove()
    assert not list(temporary.iterdir())


def test_a_rank_with_lmms_evals_cache_waits_for_no_other(adapter, fake, temporary, monkeypatch):
    """All of the other rank's responses may be cached; then it is not asked."""
    one = model(adapter=adapter(), merge_adapter=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("agreed", "gathered"):
        monkeypatch.setattr(ranks, name, lambda *given: pytest.fail("waits"))
    one.alone = True
    drawn(one, documents()[:1], SAMPLED)
    assert str(temporary) in fake.opened[0]["model"]
    one.clean()
    assert not list(temporary.iterdir())


def test_one_merge_serves_engines_of_several_sizes(adapter, fake, temporary):
    one = model(adapter=adapter(), merge_adapter=True)
    drawn(one, documents()[:1], SAMPLED)
    drawn(one, documents()[:1], {"max_new_tokens": 500})
    assert len(fake.opened) == 2
    assert fake.opened[0]["model"] == fake.opened[1]["model"] != checkpoint("qwen2_5_vl")
    one.clean()
    assert not list(temporary.iterdir())


def test_a_merge_with_other_answers_is_refused(adapter, fake, temporary, monkeypatch):
    load_again = merging._load

    def damaged(path, *given):
        loaded = load_again(path, *given)
        if Path(path).parent.parent == temporary:
            loaded.get_input_embeddings().weight.data.mul_(1.5)
        return loaded

    monkeypatch.setattr(merging, "_load", damaged)
    with pytest.raises(HarnessError, match="cannot be merged into .* logits change by"):
        drawn(model(adapter=adapter(BOTH)), documents()[:1], SAMPLED)
    assert not fake.opened
    assert not list(temporary.iterdir())


def test_no_room_for_the_merge_is_reported_in_one_sentence(adapter, fake, temporary, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "_copy", full)
    with pytest.raises(HarnessError, match="No space left on device.*TMPDIR"):
        drawn(model(adapter=adapter(BOTH)), documents()[:1], SAMPLED)
    assert not list(temporary.iterdir())
