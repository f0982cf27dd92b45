"""Cards contain what manifests contain, as text, in the hub's format, and without local paths."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dcsft_harness import curation
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import labels
from dcsft_harness.errors import HarnessError, placeless
from dcsft_harness.training import hub
from dcsft_harness.training.hub import escaped, table
from tests.fixtures.artifacts import rollouts

LEDGER = {
    "steps": 600,
    "prompts": 1200,
    "generated": 9600,
    "prompt_tokens": 123456,
    "completion_tokens": 7890,
    "flops": 1.5e15,
    "seconds": 321.5,
    "peak_memory_bytes": 2_000_000_000,
}
MARKDOWN = MarkdownIt("commonmark").enable("table")


def base_of(folder, front=""):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(f"---\n{front}---\n\n# A base\n" if front else "# A base\n")
    return folder


def adapter_of(folder, inputs=None, config=None, **notes):
    config = {"learning_rate": 1e-5, "lora_rank": 32, "extra": {}} | (config or {})
    notes = {"adapted": {"language": 28, "vision": 20, "aligner": 2}, "ledger": LEDGER} | notes
    with manifest.writing("adapter", folder, config, inputs, finish=hub.write_card) as draft:
        draft.notes.update(notes)
        (draft.folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def scores_of(folder, inputs, **accuracies):
    with manifest.writing("scores", folder, {"name": "x"}, inputs) as draft:
        draft.notes["tasks"] = {
            task: {"accuracy": accuracy, "n": 64, "distribution": "ood", "limit": None}
            for task, accuracy in accuracies.items()
        }
    return folder


@pytest.fixture
def chain(tmp_path):
    """A folder with base, rollouts, labels, curated set and an adapter, each made from the one before."""
    base = base_of(tmp_path / "base", "license: other\nlicense_name: research\nlicense_link: LICENSE\n")
    rollouts(tmp_path / "rollouts", ["easy", "medium", "medium", "hard"], with_items=True)
    labels.label(tmp_path / "rollouts", tmp_path / "labels")
    curation.curate(
        tmp_path / "labels", tmp_path / "curated", curation.CurationConfig(keep=("easy", "medium"))
    )
    adapter_of(tmp_path / "adapter", {"model": base, "data": tmp_path / "curated"})
    return tmp_path


def read(folder):
    """A card's metadata and body, as the hub's own reader parses them."""
    found = ModelCard((folder / "README.md").read_text())
    return found.data.to_dict(), found.text


def test_an_adapters_card_shows_its_origin_and_its_cost(chain):
    data, text = read(chain / "adapter")
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "image-text-to-text"
    license = {"license": "other", "license_name": "research", "license_link": "LICENSE"}
    assert {name: data[name] for name in license} == license
    assert "model-index" not in data and "base_model" not in data
    for name in ("base", "curated", "labels", "rollouts"):
        digest = manifest.fingerprint(chain / name)
        assert f"| {name} |" in text and digest[:16] in text
    assert "3 items: 1 easy, 2 medium, 0 hard; kept easy, medium" in text
    assert "4 items: 1 easy, 2 medium, 1 hard" in text
    for name, value in LEDGER.items():
        assert (
            f"| {escaped(name)} | {json.dumps(value) if isinstance(value, int) else f'{value:.6g}'} |" in text
        )
    for part in ("| language | 28 |", "| vision | 20 |", "| aligner | 2 |", "| lora\\_rank | 32 |"):
        assert part in text
    for way in ("dcsft evaluate", "PeftModel.from_pretrained", "vllm serve", "Not evaluated yet"):
        assert way in text


def test_missing_or_changed_inputs_are_reported_and_not_fatal(chain):
    shutil.rmtree(chain / "labels")
    (chain / "rollouts" / "manifest.json").write_text("{}")
    hub.write_card(chain / "adapter")
    text = read(chain / "adapter")[1]
    assert "| labels | labels | - | no longer where it was |" in text
    assert "| rollouts | rollouts | - | changed since |" in text
    shutil.rmtree(chain / "curated")
    shutil.rmtree(chain / "base")
    hub.write_card(chain / "adapter")
    data, text = read(chain / "adapter")
    assert "| data | curated | - | no longer where it was |" in text
    assert data["license"] == "unknown" and "license is not known" in text


@pytest.mark.parametrize(
    "front",
    [
        "license: mit\ntitle: My model: v2\n",
        "license:\tmit\n\ttags: x\n",
        "- mit\n",
        "license: [mit]\n",
        "Some text\n",
    ],
)
def test_a_base_without_card_metadata_has_an_unknown_license(tmp_path, front):
    data, text = read(adapter_of(tmp_path / "adapter", {"model": base_of(tmp_path / "base", front)}))
    assert data["license"] == "unknown" and "license is not known" in text


def test_an_artifact_is_kept_if_its_card_cannot_be_written(tmp_path, monkeypatch, caplog):
    def broken(*given):
        raise TypeError("no such metadata")

    with monkeypatch.context() as patched:
        patched.setattr(hub, "_metadata", broken)
        adapter = adapter_of(tmp_path / "adapter", {"model": base_of(tmp_path / "base")})
    assert manifest.is_intact(adapter) and not (adapter / "README.md").exists()
    assert "TypeError: no such metadata" in caplog.text and f"dcsft card {adapter}" in caplog.text
    hub.write_card(adapter)
    read(adapter)


def test_scores_are_added_and_the_artifact_is_unchanged(chain, capsys):
    adapter, base = chain / "adapter", chain / "base"
    scores_of(chain / "after", {"model": base, "adapter": adapter}, dcsft_digits=0.75, other=None)
    scores_of(chain / "before", {"model": base}, dcsft_digits=0.5)
    sealed = (adapter / "manifest.json").read_bytes()
    folders = ["--scores", str(chain / "after"), "--scores", str(chain / "before")]
    assert main(["card", str(adapter), *folders]) == 0
    assert "card: 2 folders of scores" in capsys.readouterr().err
    data, text = read(adapter)
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "adapter" and result["dataset"]["type"] == "dcsft_digits"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert "| dcsft\\_digits | ood | base | 50.0 % | 64 | - |" in text
    assert "| dcsft\\_digits | ood | this | 75.0 % | 64 | - |" in text
    assert (adapter / "manifest.json").read_bytes() == sealed and manifest.is_intact(adapter)
    # Scores and merges that were made from it still find it unchanged.
    assert manifest.read(chain / "after").input_folder("adapter") == adapter.resolve()


@pytest.mark.parametrize(
    ("noted", "told", "shown"),
    [
        ({}, "accuracy", "75.0 %"),
        ({"metric": None}, "accuracy", "75.0 %"),
        ({"metric": "acc"}, "accuracy", "75.0 %"),
        ({"metric": "f1"}, "f1", "75.0 % (f1)"),
        ({"metric": "acc", "samples": 8}, "avg@8", "75.0 % (avg@8)"),  # sampled, and no greedy accuracy
        ({"metric": "f1", "samples": 8}, "f1 avg@8", "75.0 % (f1 avg@8)"),
    ],
)
def test_a_score_is_named_after_its_metric(chain, noted, told, shown):
    folder = scores_of(chain / "after", {"model": chain / "base", "adapter": chain / "adapter"}, vqa=0.75)
    path = folder / "manifest.json"
    made = json.loads(path.read_text())
    made["notes"]["tasks"]["vqa"] |= noted
    path.write_text(json.dumps(made))
    hub.write_card(chain / "adapter", [folder])
    data, text = read(chain / "adapter")
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": told, "value": 0.75}]
    assert f"| vqa | ood | this | {shown} | 64 | - |" in text


@pytest.mark.parametrize("changed", ["adapter", "after"])
def test_artifacts_edited_after_they_were_written_get_no_card(chain, changed):
    scores_of(chain / "after", {"model": chain / "base", "adapter": chain / "adapter"}, dcsft_digits=0.75)
    data = json.loads((chain / changed / "manifest.json").read_text())
    data["files"]["lost.json"] = "0" * 64
    (chain / changed / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(HarnessError, match=r"lost\.json does not match|of another model"):
        hub.write_card(chain / "adapter", [chain / "after"])


def test_scores_of_another_model_are_refused(chain, tmp_path):
    other = adapter_of(tmp_path / "other", {"model": chain / "base"})
    ours = scores_of(chain / "ours", {"model": chain / "base", "adapter": chain / "adapter"}, a=0.5)
    theirs = scores_of(chain / "theirs", {"model": chain / "base", "adapter": other}, a=0.5)
    silent = scores_of(chain / "silent", {}, a=0.5)
    of_hub = chain / "of hub"
    args = {"model_args": "pretrained=base,adapter=org/one"}
    with manifest.writing("scores", of_hub, args, {"model": chain / "base"}) as draft:
        draft.notes["tasks"] = manifest.read(ours).notes["tasks"]
    before = (chain / "adapter" / "README.md").read_text()
    for wrong in (theirs, silent, of_hub):
        with pytest.raises(HarnessError, match="are of another model than .*adapter=.*adapter"):
            hub.write_card(chain / "adapter", [wrong])
    shutil.copytree(ours, chain / "twice")
    with pytest.raises(HarnessError, match="both have scores of a. Use only one of them"):
        hub.write_card(chain / "adapter", [ours, chain / "twice"])
    with pytest.raises(HarnessError, match="holds labels, which has no card. Pass an adapter or"):
        hub.write_card(chain / "labels")
    assert (chain / "adapter" / "README.md").read_text() == before


def test_a_card_can_be_written_before_its_folder_is_in_place(chain, tmp_path):
    draft = tmp_path / "deep" / "er" / "draft"
    shutil.copytree(chain / "adapter", draft)
    hub.write_card(draft, place=chain / "adapter")
    assert (draft / "README.md").read_bytes() == (chain / "adapter" / "README.md").read_bytes()


def test_a_continued_adapters_card_shows_its_own_settings(chain):
    inputs = {"model": chain / "base", "adapter": chain / "adapter", "data": chain / "curated"}
    text = read(adapter_of(chain / "second", inputs, {"learning_rate": 0.25}))[1]
    assert "# LoRA adapter" in text and "| learning\\_rate | 0.25 |" in text
    assert "| adapter | adapter | adapter |" in text


def test_a_base_from_the_hub_is_named_in_everything_made_from_it(tmp_path):
    with manifest.writing("checkpoint", tmp_path / "cold", {"model": "Qwen/Qwen2.5-VL-3B"}) as draft:
        draft.notes["base"] = "Qwen/Qwen2.5-VL-3B"
    adapter = adapter_of(tmp_path / "adapter", {"model": tmp_path / "cold"})
    data, text = read(adapter)
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen2.5-VL-3B", "adapter")
    assert "Base: cold (from Qwen/Qwen2.5-VL-3B)" in text
    inputs = {"adapter": adapter, "model": tmp_path / "cold"}
    with manifest.writing("checkpoint", tmp_path / "merged", {"prompts": 4}, inputs, hub.write_card) as draft:
        draft.notes.update(adapted={"vision": 2}, changed={"vision": 1}, parity={"in_deviations": 3e-6})
    data, text = read(tmp_path / "merged")
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen2.5-VL-3B", "finetune")
    assert data["library_name"] == "transformers" and "# Merged checkpoint" in text
    assert "| vision | 2 | 1 |" in text and "| in\\_deviations | 3e-06 |" in text
    assert "| steps | 600 |" in text and "| learning\\_rate | 1e-05 |" in text  # the adapter's own


def test_no_path_and_no_secret_is_published(chain, tmp_path):
    hidden = tmp_path / "home" / "jane doe"
    hidden.mkdir(parents=True)
    extra = {"logging_dir": str(hidden / "logs"), "hub_token": "hf_secret", "list": ["~/x/y", "../../a/b"]}
    adapter = adapter_of(
        hidden / "adapter",
        {"model": chain / "base", "data": chain / "curated"},
        {"extra": extra, "args": f"pretrained={hidden}/cold,adapter=C:\\Users\\jane\\run"},
        base=str(hidden / "base"),
        data=str(hidden / "curated"),
        cache=f"file://{hidden}/cache",
    )
    text = (adapter / "README.md").read_text()
    for word in (str(tmp_path), "jane", "hf_secret", "~/x", "../"):
        assert word not in text
    for word in ("logs", "cold", "run", "cache"):
        assert word in text


HOSTILE = "`a`|b|\n# head\n---\n<script>alert(1)</script>![x](http://y)*z*_w_ [l](u) $m$ ~~s~~ &amp;"


def test_hostile_names_are_shown_as_text(tmp_path):
    name = HOSTILE.replace("/", "")[:80]
    base = base_of(tmp_path / name)
    adapter = adapter_of(tmp_path / f"a{name}", {"model": base}, {HOSTILE: HOSTILE}, **{HOSTILE: [HOSTILE]})
    scored = scores_of(tmp_path / "scores", {"model": base, "adapter": adapter}, **{"task`|x": 0.5})
    hub.write_card(adapter, [scored])
    data, text = read(adapter)
    assert data["model-index"][0]["name"] == adapter.name
    html = MARKDOWN.render(text)
    for tag in ("<script", "<img", "<em>", "<a ", "<del>", "<hr", "<h3"):
        assert tag not in html
    assert html.count("<h1>") == 1 and "<code>a</code>" not in html
    for line in html.split("</tr>"):
        assert line.count("<td") in (0, 2, 6)
    assert "&lt;script&gt;alert(1)&lt;" in html and "`a`|b|" in html


@given(st.text(max_size=60))
def test_any_text_stays_in_its_cell_and_keeps_its_content(text):
    html = MARKDOWN.render("\n".join(table(("one", "two"), [(text, "end")])))
    assert html.count("<td>") == 2 and html.count("<tr>") == 2 and "<td>end</td>" in html
    (shown,) = MARKDOWN.parseInline(f"x{escaped(text)}x")[0].children or [None]
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    assert shown.type == "text" and shown.content == f"x{plain}x"


@given(st.lists(st.text("abc de/\\.~", min_size=1, max_size=8), min_size=1, max_size=5))
def test_an_absolute_path_is_reduced_to_its_last_name(names):
    path = "/" + "/".join(names)
    assert "/" not in placeless(path)
    assert placeless({path: [path, 1, None, True]}) == {placeless(path): [placeless(path), 1, None, True]}


def test_hub_names_numbers_and_relative_paths_are_unchanged():
    given = {
        "model": "Qwen/Qwen2.5-VL-3B",
        "rate": 1e-5,
        "data": "runs/cold",
        "prompt_tokens": 5,
        "none": None,
    }
    assert placeless(given) == given
