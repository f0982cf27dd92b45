"""leaderboard.json: its schema, and that it holds the board's figures."""

import json
import shutil

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import placeless
from dcsft_harness.leaderboard import build, document, load, schema, summarize
from dcsft_harness.leaderboard.report import text
from dcsft_harness.leaderboard.summary import published
from tests.leaderboard.test_leaderboard import ID, OOD_A, OOD_R, scores_folder

VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.fixture
def three(tmp_path):
    """A baseline with one unscored response, an adapter, and a row with one external task."""
    return [
        scores_folder(
            tmp_path / "in" / "base", "base", {ID: [1, 1, 1, 0], OOD_R: [1, 0, 0, None], OOD_A: [0, 0, 0, 1]}
        ),
        scores_folder(
            tmp_path / "in" / "m", "SFT-M", {ID: [1, 1, 1, 1], OOD_R: [1, 1, 1, 0], OOD_A: [0, 1, 1, 1]}
        ),
        scores_folder(tmp_path / "in" / "x", "x", {"mmmu": [1, 0]}),
    ]


def read(folders, output, **options):
    build(folders, output, **options)
    found = json.loads((output / "leaderboard.json").read_text(encoding="utf-8"))
    VALIDATOR.validate(found)
    return found


def test_the_schema_is_valid_and_rejects_other_documents():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert not VALIDATOR.is_valid({})
    assert not VALIDATOR.is_valid([])


def test_a_board_is_written_in_full(three, tmp_path):
    found = read(three, tmp_path / "board", baseline="base")
    assert [task["name"] for task in found["tasks"]] == [ID, OOD_R, OOD_A, "mmmu"]
    assert [column["label"] for column in found["columns"]] == [ID, OOD_R, OOD_A, "OOD mean", "mmmu"]
    assert found["columns"][3]["tasks"] == [1, 2] and found["overall"] == {"id": 0, "ood": 3}
    base, sft, other = found["rows"]
    assert (base["is_baseline"], sft["is_baseline"], found["baseline"]) == (True, False, "base")
    cell = base["cells"][1]
    assert (cell["n"], cell["unscored"], cell["unanswered"]) == (3, 1, 0)
    assert cell["accuracy"]["value"] == pytest.approx(1 / 3)
    assert other["cells"][:4] == [None] * 4
    # OOD means (2/3... over scored items): base (1/3 + 1/4) / 2, SFT-M 3/4; ID 3/4 and 1.
    assert base["ood_retention"]["value"] == pytest.approx((1 / 3 + 1 / 4) / 2 / 0.75)
    assert sft["ood_retention"]["value"] == pytest.approx(0.75)
    assert sft["worst_task"] == {"task": OOD_R, "accuracy": 0.75}
    assert (sft["rank"]["rank"], sft["rank"]["of"], base["rank"]["rank"]) == (1, 2, 2)
    assert (sft["pareto"]["on"], base["pareto"]["on"], other["pareto"]) == (True, False, None)
    assert found["tasks"][0]["conditions"]["task version"] == 1


def test_comparisons_refer_to_rows_and_columns_by_index(three, tmp_path):
    found = read(three, tmp_path / "board", baseline="base")
    against = [one for one in found["comparisons"] if one["family"].startswith("baseline")]
    assert {(one["row"], one["other"]) for one in against} == {(1, 0)}
    assert {(one["family"], one["column"]) for one in against} == {
        ("baseline", 0),
        ("baseline", 3),
        ("baseline by task", 1),
        ("baseline by task", 2),
    }
    one = next(one for one in against if one["column"] == 2)
    # Two items better, none worse: 2 * (1/2)^2; two tests by task, and the other one has p = .5 too.
    assert (one["better"], one["worse"], one["p"], one["method"]) == (2, 0, 0.5, "McNemar, exact")
    assert one["p_holm"] == 1.0
    # The row that shares no task with them adds nothing to "pairs".
    assert len([one for one in found["comparisons"] if one["family"].startswith("pairs")]) == 4


def test_folders_are_relative_and_no_local_path_is_published(three, tmp_path):
    adapter = tmp_path / "secret" / "adapter"
    with manifest.writing("adapter", adapter, {"learning_rate": 1e-3, "model": "/home/me/base"}) as draft:
        draft.notes |= {
            "ledger": {
                "steps": 20,
                "generated": 160,
                "flops": 1.5e12,
                "seconds": 3.5,
                "other": 1,
                "prompts": None,
            }
        }
        (draft.folder / "training_log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    tuned = scores_folder(tmp_path / "in" / "t", "t", {ID: [1, 0, 1, 1]}, inputs={"adapter": adapter})
    found = read([three[0], tuned], tmp_path / "board", baseline="base")
    (part,) = found["rows"][1]["provenance"]
    assert part["folder"] == "../in/t"
    assert part["training"]["folder"] == "../secret/adapter"
    assert part["training"]["settings"] == {"learning_rate": 1e-3, "model": "base"}
    assert part["training"]["steps_logged"] == 1
    assert found["rows"][1]["cost"] == {"steps": 20, "generated": 160, "flops": 1.5e12, "seconds": 3.5}
    assert str(tmp_path) not in (tmp_path / "board" / "leaderboard.json").read_text()


def trained(folder, kind, steps, inputs=None):
    with manifest.writing(kind, folder, {"method": "sft"}, inputs) as draft:
        draft.notes["ledger"] = {"steps": steps, "seconds": float(steps)}
    return folder


LOST = {
    "moved": lambda adapter: adapter.rename(adapter.with_name("elsewhere")),
    "changed": lambda adapter: (adapter / manifest.NAME).write_text(
        (adapter / manifest.NAME).read_text().replace('"seconds": 40.0', '"seconds": 41.0')
    ),
    "removed": shutil.rmtree,
}


@pytest.mark.parametrize("how", ["kept", *LOST, "of the hub"])
def test_a_bases_cost_is_never_attributed_to_an_adapter(tmp_path, how):
    cold = trained(tmp_path / "cold", "checkpoint", 25)
    adapter = trained(tmp_path / "adapter", "adapter", 40, {"model": cold})
    inputs = {"model": cold} if how == "of the hub" else {"model": cold, "adapter": adapter}
    settings = {"name": "t", "model_args": "pretrained=cold,adapter=org/one"}
    scores = scores_folder(tmp_path / "t", "t", {ID: [1, 0, 1, 1]}, inputs=inputs, config=settings)
    LOST.get(how, lambda adapter: None)(adapter)
    (row,) = load([scores]).rows
    found = row.provenance[0].training
    assert (found and found.ledger["steps"]) == (40 if how == "kept" else None)


def test_a_merged_checkpoint_costs_as_much_as_its_adapter(tmp_path):
    cold = trained(tmp_path / "cold", "checkpoint", 25)
    adapter = trained(tmp_path / "adapter", "adapter", 40, {"model": cold})
    with manifest.writing("checkpoint", tmp_path / "merged", {}, {"model": cold, "adapter": adapter}):
        pass
    scores = scores_folder(tmp_path / "t", "t", {ID: [1, 0]}, inputs={"model": tmp_path / "merged"})
    found = load([scores]).rows[0].provenance[0].training
    assert (found.folder, found.ledger) == (adapter.resolve(), {"steps": 40.0, "seconds": 40.0})


@pytest.mark.parametrize("what", ["adapter", "set"])
def test_a_row_made_by_a_newer_version_is_refused(tmp_path, what):
    curated = trained(tmp_path / "set", "curated set", 0)
    adapter = trained(tmp_path / "adapter", "adapter", 40, {"data": curated})
    scores = scores_folder(tmp_path / "t", "t", {ID: [1, 0, 1, 1]}, inputs={"adapter": adapter})
    path = tmp_path / what / manifest.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(manifest.NewerFormatError):
        load([scores])


@pytest.mark.parametrize(
    ("given_text", "told"),
    [
        ("pretrained=/home/me/ckpt,batch_size=8", "pretrained=ckpt,batch_size=8"),
        ("pretrained=org/model,adapter=~/runs/a", "pretrained=org/model,adapter=a"),
        ("/abs/path", "path"),
        (r"pretrained=C:\Users\me\ckpt", "pretrained=ckpt"),
        ("relative/path", "relative/path"),
        ("1/2", "1/2"),
        ("/home/my name/ckpt", "ckpt"),
        ("pretrained=../me/ckpt", "pretrained=ckpt"),
        ("pretrained=org/model,api_key=sk-1,max_tokens=8", "pretrained=org/model,api_key=...,max_tokens=8"),
    ],
)
def test_absolute_paths_are_reduced_to_their_last_name(given_text, told):
    assert placeless(given_text) == told
    assert placeless({"a": [given_text], "api_key": "k"}) == {"a": [told], "api_key": "..."}


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        (
            "/home/me/a.parquet is not what /srv/b/manifest.json says",
            "a.parquet is not what manifest.json says",
        ),
        ("its items, in '/home/me/in/x', and/or 1/2", "its items, in 'x', and/or 1/2"),
        (r"C:\Users\me\a.json is damaged", "a.json is damaged"),
        ("see https://host/a/b or runs/a", "see https://host/a/b or runs/a"),
    ],
)
def test_a_sentence_keeps_its_words_around_a_path(sentence, shown):
    assert placeless(sentence, sentence=True) == shown


@given(st.dictionaries(st.text(), st.text()))
def test_the_text_cannot_end_a_script_and_can_be_parsed(values):
    said = text({"x": values})
    assert not set(said) & set("<>&\u2028\u2029")
    assert json.loads(said) == {"x": values}


def test_quoted_rows_are_written_with_their_source(three, tmp_path):
    found = document(summarize(load(three), quoted=published()), tmp_path)
    VALIDATOR.validate(found)
    table = {
        one["name"]: one
        for one in found["quoted"]
        if one["setting"] == "600 steps" and one["cells"] and one["mean_over"] and one["model"].endswith("7B")
    }
    assert {name: one["follows"] for name, one in table.items()} == {
        "SFT": True,
        "GRPO": True,
        "SFT-M": True,
        "SFT-EM": False,
    }
    assert table["SFT-EM"]["recomputed"] == pytest.approx(0.61095)
    assert all(one["source"] for one in found["quoted"])
