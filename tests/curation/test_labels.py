"""rollouts -> labels -> curated set, on handmade tables."""

import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from dcsft_harness import lmms, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import CurationConfig, gallery, labels
from dcsft_harness.curation.labels import _labels, count, jeffreys, label
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.page import data
from dcsft_harness.sampling import ROLLOUTS, rollout_store
from dcsft_harness.scoring import at_k
from dcsft_harness.stages import STAGES, data_inspect
from dcsft_harness.stages.train_dpo import Responses
from tests.fixtures import artifacts


def rollouts(scores: dict[str, list[float | None]]) -> pa.Table:
    rows = [
        records.Rollout(item, i, "text", score, "text", 2, "stop", 0, "task", "prompt", "answer")
        for item, values in scores.items()
        for i, score in enumerate(values)
    ]
    return pa.Table.from_pylist([vars(row) for row in rows], schema=records.schema(records.Rollout))


def labeled(scores: dict[str, list[float | None]]) -> dict[str, dict[str, object]]:
    table = _labels(count(rollouts(scores), "source"))
    return {row["item_id"]: row for row in table.to_pylist()}


def test_always_solved_is_easy_never_solved_is_hard_and_the_rest_is_medium():
    found = labeled({"a": [1.0] * 8, "b": [0.0] * 8, "c": [1.0] + [0.0] * 7})
    assert {key: row["difficulty"] for key, row in found.items()} == {"a": "easy", "b": "hard", "c": "medium"}
    assert (found["c"]["n"], found["c"]["k"], found["c"]["pass_rate"]) == (8, 1, 1 / 8)


ENTRY = {"item_id": "a", "prompt": "?", "answer": "x", "k": 1, "n": 1, "files": ()}
INSPECTED = {"count": 1, "refused": 0, "scorer": "choice"}


def settles(score):
    """Whether responses with this score and with 0 settle a label for `--stop-when-labelled`."""
    task = SimpleNamespace(config=SimpleNamespace(task="pool"), eval_docs_no_media=[{}])
    pool = rollout_store.Pool(task, [], 2, 0, {})
    pool._verdicts = {(0, "said", False): (score, "x"), (0, "wrong", False): (0.0, "x")}
    said = [SimpleNamespace(response=text, finish_reason="stop") for text in ("said", "wrong")]
    return pool.settled(SimpleNamespace(doc_id=0), said)


def paired(score):
    """Whether a response with this score is the chosen one of a DPO pair."""
    found = Responses()
    found.add("said", score, "stop")
    return bool(found.right)


@pytest.mark.parametrize(
    "judge",
    [
        lambda score: labeled({"a": [score]})["a"]["difficulty"] == "easy",
        settles,
        paired,
        lambda score: at_k.metrics(np.array([[score]])).values["pass"][0, 0] == 1.0,
        lambda score: data._difficulties(np.array([score]), np.array([0, 1]))[0] == 0,
        lambda score: "Response 1, right" in gallery._entry(ENTRY, [(0, "said", score)]),
        lambda score: (
            len(data_inspect.remarks(INSPECTED | {"rows": [{"row": "1", "verdict": {"score": score}}]})) == 1
        ),
    ],
    ids=["labels", "stopping", "pairs", "pass@k", "the page", "the gallery", "data inspect"],
)
def test_a_score_of_one_half_counts_as_right_everywhere(judge, monkeypatch):
    monkeypatch.setattr(lmms, "filtered", lambda _task, response, _doc: response)
    assert [judge(score) for score in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]


def test_unscored_responses_do_not_count_and_an_unscored_item_has_no_label():
    found = labeled({"a": [1.0, None, 1.0], "b": [None, None, None]})
    assert (found["a"]["n"], found["a"]["difficulty"]) == (2, "easy")
    assert [found["b"][key] for key in ("difficulty", "pass_rate", "low", "high")] == [None] * 4
    assert (found["b"]["n"], found["b"]["k"]) == (0, 0)


@pytest.mark.parametrize("scorers", [{"choice": 3}, {"math": 2, "mine:judge": 1}, None])
def test_labels_record_the_scorer_version_of_the_rollouts(tmp_path, scorers):
    with manifest.writing("rollouts", tmp_path / "rollouts", {}) as draft:
        draft.notes |= {"scorers": scorers} if scorers else {}
        pq.write_table(rollouts({"a": [1.0, 0.0]}), draft.folder / ROLLOUTS)
    assert label(tmp_path / "rollouts", tmp_path / "labels")["scorers"] == scorers
    assert manifest.read(tmp_path / "labels", "labels").notes["scorers"] == scorers


def test_a_repeated_sample_is_refused():
    table = rollouts({"a": [1.0, 0.0]})
    with pytest.raises(HarnessError, match="sample_index twice"):
        count(pa.concat_tables([table, table]), "source")


def test_items_with_unequal_numbers_of_samples_are_refused():
    with pytest.raises(HarnessError, match="1 samples, while others have 2"):
        count(rollouts({"a": [1.0, 0.0], "b": [1.0]}), "source")


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_interval_is_jeffreys_with_closed_ends(case):
    n, k = case
    low, high = jeffreys(np.array([k]), np.array([n]))
    expected = proportion_confint(k, n, alpha=0.05, method="jeffreys")
    assert low[0] == pytest.approx(0.0 if k == 0 else expected[0], abs=1e-9)
    assert high[0] == pytest.approx(1.0 if k == n else expected[1], abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": ("easi",)}, "Did you mean easy"),
        ({"keep": ()}, "nothing to keep: --keep and --band are missing"),
        ({"keep": ("easy", "easy")}, "twice"),
        ({"keep": ("easy",), "mix": {"hard": 1.5}}, "between 0 and 1"),
        ({"keep": ("easy",), "mix": {"easy": 0.5}}, "in --keep already"),
        ({"keep": ("easy",), "mix": {"hard": 0.5, "medium": 0.5}}, "--mix shares add up to 1"),
        ({"keep": ("easy",), "size": 0}, "--size 0"),
    ],
)
def test_invalid_settings_are_refused_by_name(arguments, said):
    with pytest.raises(HarnessError, match=said):
        CurationConfig(**arguments)


@pytest.mark.usefixtures("drawn")
class TestPictures:
    """The figures that `label` and `curate` make of a pool."""

    @pytest.fixture
    def made(self, tmp_path, capsys):
        kinds = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
        artifacts.rollouts(tmp_path / "rollouts", kinds, with_items=True)
        for verb, more in (("label", ("rollouts",)), ("curate", ("labels", "--keep", "easy,medium"))):
            output = "labels" if verb == "label" else "curated"
            given = [str(tmp_path / one) if one in ("rollouts", "labels") else one for one in more]
            assert main([verb, *given, "--output", str(tmp_path / output)]) == 0
        return tmp_path, capsys.readouterr().err

    def test_paths_are_printed(self, made):
        folder, said = made
        for name in ("labels", "curated"):
            for file in ("difficulty.png", "gallery.md"):
                assert str(folder / name / file) in said and (folder / name / file).is_file()

    def test_the_gallery_shows_items_of_each_class_with_their_responses(self, made):
        folder, _ = made
        text = (folder / "labels" / "gallery.md").read_text()
        assert text.index("## easy") < text.index("## medium") < text.index("## hard")
        assert text.count("2 of 2 right") == 2 and text.count("1 of 2 right") == 2
        assert text.count("Response 1, right") == 2 and text.count("Response 2, wrong") == 2
        # Equal responses are one text.
        assert text.count("Responses 1, 2, right") == 2 and text.count("Responses 1, 2, wrong") == 1
        pictures = re.findall(r"!\[.*?\]\((gallery/.*?)\)", text)
        assert len(pictures) == 5
        for name in pictures:
            with Image.open(folder / "labels" / name) as picture:
                picture.load()
        assert "## hard" not in (folder / "curated" / "gallery.md").read_text()

    def test_the_histogram_of_a_curated_set_shows_both_sides(self, made):
        folder, _ = made
        with Image.open(folder / "labels" / "difficulty.png") as one:
            with Image.open(folder / "curated" / "difficulty.png") as two:
                assert two.width > 1.5 * one.width

    @pytest.mark.parametrize("samples", [2, 8, 64])
    def test_bars_count_every_rated_item_once(self, samples):
        from matplotlib.figure import Figure

        rng = np.random.default_rng(0)
        k = rng.integers(0, samples + 1, 500)
        kinds = np.where(k == 0, "hard", np.where(k == samples, "easy", "medium"))
        rates = pa.array(k / samples, mask=np.arange(500) < 20)
        axes = Figure().add_subplot()
        gallery._histogram(axes, "pool", pa.table({"pass_rate": rates, "difficulty": kinds}))
        assert sum(bar.get_height() for bar in axes.patches) == 480
        assert "20 without a rate" in axes.get_title(loc="left")
        for kind, bars in zip(("easy", "medium", "hard"), axes.containers, strict=True):
            assert sum(bar.get_height() for bar in bars) == (kinds[20:] == kind).sum()

    def test_rollouts_without_items_only_have_a_histogram(self, tmp_path):
        artifacts.rollouts(tmp_path / "rollouts", [[1.0, 1.0], [0.0, 1.0]])
        notes = labels.label(tmp_path / "rollouts", tmp_path / "labels")
        assert notes["figures"] == ["difficulty.png"]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([[None, None]] * 2, "no response could be scored, so no item has a label"),
        ([[0.0, 0.0], [None, None]], "no response is right, so no item is easy or medium"),
        ([[1.0, None], [0.0, None]], "one scored response per item: none can be medium"),
    ],
)
def test_a_remark_says_why_there_is_nothing_to_curate(tmp_path, kinds, said):
    notes = label(artifacts.rollouts(tmp_path / "rollouts", kinds), tmp_path / "labels")
    assert any(remark.startswith(said) for remark in STAGES["label"].remarks(notes))
