"""Bands of the pass rate and weights, against counting by hand."""

import click
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dcsft_harness import records
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.cli.running import command_of
from dcsft_harness.curation import choose, rules
from dcsft_harness.curation.rules import WEIGHTS, CurationConfig, qualifying, weighed
from dcsft_harness.errors import HarnessError
from tests.fixtures.artifacts import rollouts

counts = st.integers(1, 64).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
some_counts = st.lists(counts, min_size=1, max_size=30)


def labels(pairs, censored=()):
    """Label rows of items with k of n right, in order; items at `censored` have no pass rate."""
    rows = []
    for number, (k, n) in enumerate(pairs):
        kind = None if n == 0 else "hard" if k == 0 else "easy" if k == n else "medium"
        stopped = number in censored
        rate = None if stopped or n == 0 else k / n
        rows.append(records.Label(f"i{number:03}", n, k, rate, None, None, kind, "pool", stopped))
    return pa.Table.from_pylist([vars(row) for row in rows], schema=records.schema(records.Label))


EIGHTHS = [(k, 8) for k in range(9)]


def right_ones(table, **config):
    """How many responses were right for each chosen item, in order."""
    return sorted(choose(table, CurationConfig(**config))["k"].to_pylist())


class TestBand:
    def test_includes_both_ends(self):
        assert right_ones(labels(EIGHTHS), band=(1 / 8, 6 / 8)) == [1, 2, 3, 4, 5, 6]
        assert right_ones(labels(EIGHTHS), band=(0.126, 0.749)) == [2, 3, 4, 5]
        assert right_ones(labels(EIGHTHS), band=(0.1, 0.9)) == [1, 2, 3, 4, 5, 6, 7]
        assert right_ones(labels(EIGHTHS), band=(0.0, 1.0)) == list(range(9))

    @given(
        st.sampled_from([10, 20, 50, 100, 1000]).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
    )
    def test_written_in_decimals_includes_the_rate_it_names(self, pair):
        k, n = pair
        written = f"{k * (1000 // n) / 1000:.3f}"
        band = rules.parse_band(f"{written},{written}")
        assert qualifying(labels([pair]), CurationConfig(band=band)).all()

    @given(some_counts, st.floats(0, 1), st.floats(0, 1))
    def test_keeps_exactly_the_items_inside_it(self, pairs, one, other):
        band = (min(one, other), max(one, other))
        inside = [band[0] <= k / n <= band[1] for k, n in pairs]
        assert qualifying(labels(pairs), CurationConfig(band=band)).tolist() == inside

    def test_never_holds_an_unscored_item(self):
        assert right_ones(labels([(0, 0), (3, 8)]), band=(0.0, 1.0)) == [3]

    def test_refuses_items_without_a_pass_rate_and_names_the_remedy(self):
        table = labels(EIGHTHS, censored=[3, 4])
        with pytest.raises(HarnessError, match=r"--band .* 2 of 9 have none: .*without --stop-when-labelled"):
            choose(table, CurationConfig(band=(0.1, 0.9)))
        assert right_ones(table, keep=("medium",)) == [1, 2, 3, 4, 5, 6, 7]

    def test_and_a_mix_never_select_an_item_twice(self):
        pairs = EIGHTHS * 4
        table = labels(pairs)
        chosen = choose(table, CurationConfig(band=(0.5, 1.0), mix={"medium": 0.25}, size=16))
        keys = chosen["item_id"].to_pylist()
        assert len(set(keys)) == 16
        assert sum(rate < 0.5 for rate in chosen["pass_rate"].to_pylist()) == 4

    def test_without_items_is_refused(self):
        with pytest.raises(HarnessError, match=r"no item is solved in a share from 0.3 to 0.4 .* 1 medium"):
            choose(labels([(4, 8), (0, 8)]), CurationConfig(band=(0.3, 0.4)))

    @pytest.mark.parametrize("text", ["0.1", "0.1,0.5,0.9", "low,high", "", "nan,1", "0.1;0.9"])
    def test_of_anything_but_two_numbers_is_refused(self, text):
        with pytest.raises(HarnessError, match="is not LOW,HIGH"):
            rules.parse_band(text)

    def test_may_be_a_list_in_a_recipe(self):
        assert CurationConfig.from_options({"band": [0.1, 0.9]}) == CurationConfig(band=(0.1, 0.9))


class TestWeights:
    def test_of_p_1_minus_p_have_mean_one(self):
        chosen = choose(labels([(k, 8) for k in (0, 2, 4, 6, 8)]), CurationConfig(weight="p(1-p)"))
        # 3/16, 4/16 and 3/16 have the mean 10/48.
        assert dict(zip(chosen["k"].to_pylist(), chosen["weight"].to_pylist(), strict=True)) == {
            2: pytest.approx(0.9),
            4: pytest.approx(1.2),
            6: pytest.approx(0.9),
        }
        assert chosen.schema.field("weight").type == pa.float64()

    @given(some_counts, st.sampled_from(sorted(WEIGHTS)), st.integers(0, 3))
    def test_have_mean_one_over_the_set_in_the_proportions_of_the_rule(self, pairs, name, seed):
        config, table = CurationConfig(weight=name, seed=seed), labels(pairs)
        if not (weighed(table, config) > 0).any():
            with pytest.raises(HarnessError, match="with a weight above 0"):
                choose(table, config)
            return
        chosen = choose(table, config)
        weights = chosen["weight"].to_numpy()
        assert weights.mean() == pytest.approx(1)
        assert (weights > 0).all()
        raw = weighed(chosen.drop_columns("weight"), config)
        assert weights / weights[0] == pytest.approx(raw / raw[0])

    @given(counts)
    def test_p_1_minus_p_is_the_mean_squared_advantage_of_grpo(self, pair):
        k, n = pair
        rewards = np.array([1.0] * k + [0.0] * (n - k))
        advantages = rewards - rewards.mean()  # before division by the standard deviation
        found = weighed(labels([pair]), CurationConfig(weight="p(1-p)"))
        assert found[0] == pytest.approx(np.mean(advantages**2))

    @given(counts)
    def test_posterior_is_the_mean_of_p_1_minus_p_under_the_jeffreys_posterior(self, pair):
        k, n = pair
        posterior = stats.beta(k + 0.5, n - k + 0.5)
        found = weighed(labels([pair]), CurationConfig(weight="posterior"))
        assert found[0] == pytest.approx(posterior.mean() - posterior.moment(2))
        assert found[0] > 0

    def test_posterior_keeps_every_labeled_item(self):
        assert right_ones(labels([*EIGHTHS, (0, 0)]), weight="posterior") == list(range(9))

    def test_have_mean_one_over_the_selected_items(self):
        for more in ({"keep": ("easy", "medium")}, {"band": (0.5, 1.0)}, {"size": 3}):
            chosen = choose(labels(EIGHTHS * 2), CurationConfig(weight="p(1-p)", **more))
            assert chosen["weight"].to_numpy().mean() == pytest.approx(1)
            assert "easy" not in chosen["difficulty"].to_pylist()

    def test_are_written_only_on_request(self):
        assert "weight" not in choose(labels(EIGHTHS), CurationConfig(keep=("medium",))).column_names

    def test_refuse_items_without_a_pass_rate(self):
        with pytest.raises(HarnessError, match="--weight needs every item's pass rate, but 1 of 9"):
            choose(labels(EIGHTHS, censored=[2]), CurationConfig(weight="posterior"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing to keep: --keep and --band are missing"),
        ({"suspect": 0.75}, "nothing to keep: --keep and --band are missing"),
        ({"keep": ("easy",), "band": (0.1, 0.9)}, "cannot be combined"),
        ({"band": (0.9, 0.1)}, "not a range of pass rates"),
        ({"band": (-0.1, 0.5)}, "not a range of pass rates"),
        ({"band": (0.5, 1.5)}, "not a range of pass rates"),
        ({"weight": "p(1-q)"}, r"Did you mean p\(1-p\)"),
        ({"keep": ("easy",), "suspect": 0.5}, "--suspect 0.5 is out of range"),
        ({"keep": ("easy",), "suspect": 1.1}, "--suspect 1.1 is out of range"),
        ({"keep": ("easy",), "suspect": True}, "--suspect true is not a number"),
        ({"weight": "p(1-p)", "mix": {"hard": 0.1}}, "kept already"),
        ({"keep": ("medium",), "weight": "p(1-p)", "mix": {"hard": 0.1}}, "hard items have the weight 0"),
    ],
)
def test_invalid_rules_are_refused_by_name(given, said):
    with pytest.raises(HarnessError, match=said):
        CurationConfig(**given)


def test_an_unknown_option_is_refused_with_the_nearest_one():
    with pytest.raises(HarnessError, match="unknown option 'bnad'. Did you mean band"):
        CurationConfig.from_options({"bnad": "0.1,0.9"})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    kinds = [[1.0] * k + [0.0] * (4 - k) for k in (0, 1, 2, 3, 4)] + [[None] * 4]
    rollouts(folder / "rollouts", kinds, with_items=True)
    assert main(["label", str(folder / "rollouts"), "--output", str(folder / "labels")]) == 0
    return folder / "labels"


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                ["--band", "0.25,0.5"],
                "curate: 2 items: 0 easy, 2 medium, 0 hard (1 of the pool unlabeled, 3 outside the band)",
            ),
            (
                ["--weight", "p(1-p)"],
                "curate: 3 items: 0 easy, 3 medium, 0 hard (1 of the pool unlabeled, 2 with a weight of 0)",
            ),
            (
                ["--band", "0.5,1", "--weight", "p(1-p)"],
                "curate: 2 items: 0 easy, 2 medium, 0 hard (1 of the pool unlabeled, 2 outside the band,"
                " 1 with a weight of 0)",
            ),
            (
                ["--weight", "posterior"],
                "curate: 5 items: 1 easy, 3 medium, 1 hard (1 of the pool unlabeled)",
            ),
            (
                ["--band", "0.25,0.5", "--mix", "hard=0.34"],
                "curate: 3 items: 0 easy, 2 medium, 1 hard (1 of the pool unlabeled, 2 outside the band)",
            ),
            (
                ["--keep", "easy,medium", "--size", "3"],
                "curate: 3 items: EASY easy, MEDIUM medium, 0 hard (1 of the pool unlabeled,"
                " 1 of difficulties not kept, 1 not drawn)",
            ),
            (
                ["--keep", "medium", "--mix", "hard=0.34", "--size", "3"],
                "curate: 3 items: 0 easy, 2 medium, 1 hard (1 of the pool unlabeled,"
                " 1 of difficulties not kept, 1 not drawn)",
            ),
        ],
    )
    def test_prints_each_omitted_item_under_one_reason(self, source, tmp_path, capsys, options, said):
        assert main(["curate", str(source), *options, "--output", str(tmp_path / "out")]) == 0
        notes = manifest.read(tmp_path / "out").notes
        said = said.replace("EASY", str(notes["easy"])).replace("MEDIUM", str(notes["medium"]))
        assert f"{said} (" in capsys.readouterr().err
        reasons = (
            "excluded",
            "dropped",
            "suspects",
            "unlabelled",
            "outside",
            "others",
            "weightless",
            "undrawn",
        )
        assert sum(notes[name] for name in ("items", *reasons)) == 6

    @pytest.mark.parametrize("weighted", [True, False])
    def test_writes_the_weights_as_a_column_on_request(self, source, tmp_path, weighted):
        from datasets import load_from_disk

        options = ["--weight", "p(1-p)"] if weighted else ["--keep", "medium"]
        assert main(["curate", str(source), *options, "--output", str(tmp_path / "out")]) == 0
        rows = load_from_disk(str(tmp_path / "out" / "data"))
        columns = ["messages", "images", "item_id", "difficulty", "pass_rate"]
        assert rows.column_names == columns + ["weight"] * weighted
        if weighted:
            # 3/16, 4/16 and 3/16.
            found = sorted(zip(rows["pass_rate"], rows["weight"], strict=True))
            assert found == [
                (0.25, pytest.approx(0.9)),
                (0.5, pytest.approx(1.2)),
                (0.75, pytest.approx(0.9)),
            ]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ([], "nothing to keep: --keep and --band are missing"),
            (["--keep", ","], "unknown --keep value ','"),
            (["--keep", "easy", "--band", "0,1"], "--keep and --band cannot be combined"),
        ],
    )
    def test_needs_either_keep_or_band(self, source, tmp_path, capsys, options, said):
        assert main(["curate", str(source), *options, "--output", str(tmp_path / "out")]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_offers_every_weight(self):
        command = command_of("curate")
        (option,) = (one for one in command.get_params(click.Context(command)) if one.name == "weight")
        assert list(option.type.choices) == list(WEIGHTS)
