"""Uploads to a hub on localhost: what arrives, and what is refused before any work starts."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, load_file, save

from dcsft_harness import stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import hub
from tests.fixtures.artifacts import rollouts
from tests.fixtures.fake_hub import serving

SHAPE = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "/x"}
WEIGHTS = save({"lora_A.weight": torch.ones(4, 2)})


@pytest.fixture
def fake(monkeypatch):
    with serving(monkeypatch) as found:
        yield found


@pytest.fixture
def adapter(tmp_path):
    """An adapter's folder as the hub sees it, with local paths in every file that can have any."""
    config = {"learning_rate": 1e-5, "extra": {"logging_dir": "/home/jane/logs", "hub_token": "hf_secret"}}
    with manifest.writing("adapter", tmp_path / "adapter", config, finish=hub.write_card) as draft:
        draft.notes.update(base="/home/jane/models/base", data="/home/jane/data/curated", steps=3)
        given = {"base_model_name_or_path": "/home/jane/models/base", **SHAPE}
        (draft.folder / "adapter_config.json").write_text(json.dumps(given))
        (draft.folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
        (draft.folder / "checkpoint-2").mkdir()
        (draft.folder / "runs" / "Nov28_janes-machine").mkdir(parents=True)
        (draft.folder / "runs" / "Nov28_janes-machine" / "events").write_bytes(b"curve")
        (draft.folder / "checkpoint-2" / "README.md").write_text("base_model: /home/jane/models/base")
    return tmp_path / "adapter"


def test_everything_arrives_and_no_local_path_is_published(fake, adapter, tmp_path):
    before = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
    hub.check("jane/digits")
    assert hub.push(adapter, "jane/digits", private=True) == f"{fake.url}/jane/digits"
    (created,) = fake.created
    assert (created["name"], created["organization"]) == ("digits", "jane")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert set(fake.files) == set(before)
    assert fake.files["adapter_model.safetensors"] == WEIGHTS
    for name, data in fake.files.items():
        for place in (b"/home", b"hf_secret", str(tmp_path).encode()):
            assert place not in data, name
    sent = json.loads(fake.files["adapter_config.json"])
    assert sent == {"base_model_name_or_path": "base", **SHAPE}
    assert {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()} == before
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in fake.files.items():
        (copy / name).write_bytes(data)
    assert manifest.is_intact(copy)


CHECKPOINT = (
    "config.json generation_config.json model.safetensors model-00001-of-00002.safetensors "
    "model.safetensors.index.json pytorch_model.bin"
).split()
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
OTHERS = ["logo.png", "chat_template.jinja", "old/config.json", "old/model.safetensors", "my_config.json"]


@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_weights_of_an_earlier_upload_are_removed(fake, adapter, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_refuse_damaged", lambda *_: None)
    if kind == "checkpoint":
        with manifest.writing("checkpoint", tmp_path / "merged", {}, finish=hub.write_card) as draft:
            for name in ("config.json", "model.safetensors"):
                (draft.folder / name).write_text("{}")
    fake.files = dict.fromkeys([*CHECKPOINT, *ADAPTER, *OTHERS], b"earlier")
    hub.push(adapter if kind == "adapter" else tmp_path / "merged", "jane/digits")
    mine = ADAPTER if kind == "adapter" else ["config.json", "model.safetensors"]
    assert sorted(fake.removed) == sorted({*CHECKPOINT, *ADAPTER} - {*mine})


def test_repositories_are_public_by_default(fake, adapter):
    hub.push(adapter, "jane/digits")
    assert fake.created[0].get("private") is not True


@pytest.mark.parametrize("repo", ["", "a/b/c", "jane/my model", "../x", "jane/.git", "-x", "a" * 97])
def test_an_invalid_name_is_refused(repo):
    with pytest.raises(HarnessError, match="is not the name of a repository"):
        hub.check(repo)


def test_without_a_token_or_offline_nothing_starts(monkeypatch, tmp_path, capsys, fake):
    merge = stages.STAGES["merge"]
    monkeypatch.setitem(stages.STAGES, "merge", replace(merge, run=lambda *_: pytest.fail("began")))
    command = ["merge", "adapter", "--output", str(tmp_path / "out"), "--push-to-hub", "jane/digits"]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(command) == 1
    assert "there is no hub token. Run `hf auth login`" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(command) == 1
    assert "cannot push to jane/digits: HF_HUB_OFFLINE is set. Unset it" in capsys.readouterr().err


def test_a_refusal_by_the_hub_is_reported_in_one_sentence(fake, adapter):
    fake.refuse = 401
    with pytest.raises(HarnessError, match=r"refuses jane/digits \(401: .*\)\. Check that the token"):
        hub.check("jane/digits")
    fake.refuse = 500
    with pytest.raises(HarnessError, match=r"refuses jane/digits \(500"):
        hub.check("jane/digits")


def test_an_unreachable_hub_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    # This test needs the hub even if it is switched off, as in CI.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    with pytest.raises(HarnessError, match="cannot be reached for jane/digits"):
        hub.check("jane/digits")


def test_other_artifacts_are_not_uploaded(fake, adapter, tmp_path, capsys):
    rollouts(tmp_path / "rollouts", ["easy"])
    assert main(["push", str(tmp_path / "rollouts"), "jane/digits"]) == 1
    assert "holds rollouts. Pass an adapter or a checkpoint" in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert main(["push", str(adapter), "jane/digits"]) == 1
    assert "does not match manifest.json beside it" in capsys.readouterr().err
    assert fake.created == []


def test_a_pushed_folder_is_hashed_once(fake, adapter, monkeypatch):
    hashed, asked = manifest.hashed, []
    monkeypatch.setattr(manifest, "hashed", lambda paths: asked.extend(paths) or hashed(paths))
    assert main(["push", str(adapter), "jane/digits"]) == 0
    assert [path.name for path in asked].count("adapter_model.safetensors") == 1


def test_an_edited_card_is_uploaded(fake, adapter, capsys):
    (adapter / "README.md").write_text("words of one's own")
    assert main(["push", str(adapter), "jane/digits"]) == 0
    assert f"-> {fake.url}/jane/digits" in capsys.readouterr().err
    assert fake.files["README.md"] == b"words of one's own"


@pytest.mark.slow
def test_an_adapter_trained_and_merged_here_can_be_pushed(fake, tmp_path, capsys, monkeypatch):
    """The whole chain on the embedded checkpoint: curate, train, merge with upload, evaluate, card."""
    monkeypatch.chdir(tmp_path)
    drawn = ["sample", "--model-args", "pretrained=digits,batch_size=16", "--task", "dcsft_digits_pool"]
    assert main([*drawn, "--limit", "16", "--samples", "2", "--output", "rollouts"]) == 0
    assert main(["label", "rollouts", "--output", "labels"]) == 0
    assert main(["curate", "labels", "--keep", "easy,medium,hard", "--output", "curated"]) == 0
    trained = ["train", "sft", "--model", "digits", "--data", "curated", "--learning-rate", "1e-3"]
    assert main([*trained, "--max-steps", "3", "--output", "adapter"]) == 0
    assert main(["merge", "adapter", "--output", "merged", "--push-to-hub", "jane/digits"]) == 0
    said = capsys.readouterr().err
    assert "changed modules: language 28/28, vision 20/20, aligner 2/2" in said
    assert "on 2 prompts of the training set" in said and "same answers 2/2" in said
    sent = load(fake.files["model.safetensors"])
    assert all(sent[name].equal(value) for name, value in load_file("merged/model.safetensors").items())
    assert b"curated" in fake.files["README.md"] and str(tmp_path).encode() not in fake.files["README.md"]

    accuracies = []
    for name, arguments in (("unmerged", "digits,adapter=adapter"), ("alone", "merged")):
        scored = ["evaluate", "--tasks", "dcsft_digits", "--limit", "32", "--output", name]
        assert main([*scored, "--model-args", f"pretrained={arguments},batch_size=16"]) == 0
        accuracies.append(manifest.read(tmp_path / name).notes["tasks"]["dcsft_digits"]["accuracy"])
    assert accuracies[0] == accuracies[1]
    before = (tmp_path / "merged" / "manifest.json").read_bytes()
    assert main(["card", "merged", "--scores", "alone"]) == 0
    assert (tmp_path / "merged" / "manifest.json").read_bytes() == before
    assert f"{100 * accuracies[0]:.1f} %" in (tmp_path / "merged" / "README.md").read_text()
    assert main(["card", "merged", "--scores", "unmerged"]) == 1
    shutil.rmtree("curated")
    assert main(["merge", "adapter", "--output", "again", "--prompts", "2"]) == 0
    assert "on 2 prompts of dcsft_digits" in capsys.readouterr().err
