"""The verdict on each claim, and the page that shows it, from boards with a known outcome."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy.stats import t, ttest_1samp, ttest_rel

from benchmarks import claims as design
from dcsft_harness import recipes
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build, load, summarize
from dcsft_harness.leaderboard.stats import Estimate
from dcsft_harness.recipes import results
from dcsft_harness.recipes.results import (
    CLAIMS,
    POOLS,
    Claim,
    Finding,
    board_of,
    decided,
    findings,
    judge,
    over_seeds,
    verdict_of,
)
from dcsft_harness.records import DIFFICULTIES
from tests.fixtures.lmms_eval_logs import line, log_folder
from tests.fixtures.study import adapter, answers, curated
from tests.leaderboard.test_leaderboard import ID, OOD_A, OOD_R, scores_folder

BOARD = "classification-paradigms"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three seeds of GRPO, SFT and SFT-EM: SFT-EM far ahead out of distribution, GRPO no better than SFT."""
    folder = tmp_path_factory.mktemp("run")
    shares = {"SFT": (0.9, 0.4, 0.4), "GRPO": (0.9, 0.4, 0.4), "SFT-EM": (0.9, 0.8, 0.8)}
    made = []
    for seed in range(3):
        data = curated(folder / f"set-{seed}", 50, 50, 0, keep=DIFFICULTIES)  # no labels, which have a cost
        for name, wanted in shares.items():
            rng = np.random.default_rng([seed, len(name)])
            tasks = {t: answers(rng, 150, p) for t, p in zip((ID, OOD_R, OOD_A), wanted, strict=True)}
            expensive = 20.0 if name == "GRPO" else 1.0
            trained = adapter(
                folder / f"{name}-{seed}",
                data,
                seconds=(60 + seed) * expensive,
                flops=1e12 * expensive,
                scale=1 + seed,
            )
            place = folder / f"scores-{name}-{seed}"
            made.append(scores_folder(place, f"{name} (seed {seed})", tasks, inputs={"adapter": trained}))
    build(made, folder / BOARD, "SFT")
    (folder / "recipe.json").write_text(json.dumps({"recipe": "paradigms", "scale": "digits", "stages": {}}))
    return folder


@pytest.mark.slow
def test_a_claim_without_a_significant_difference_is_inconclusive(run):
    findings = {finding.said: finding for finding in judge(results.read_boards(run))}
    ahead = findings["SFT-EM generalizes better than SFT on all data (classification)"]
    assert (ahead.verdict, ahead.seeds) == ("supported", 3)
    assert ahead.value.value == pytest.approx(0.4, abs=0.06) and ahead.value.low > 0.2
    equal = findings["GRPO generalizes better than SFT on all data (classification)"]
    assert equal.verdict == "inconclusive"
    assert equal.value.low < 0 < equal.value.high
    # Claims about missing boards are left out.
    assert not any("second architecture" in said for said in findings)


@pytest.mark.slow
def test_a_single_seed_is_always_inconclusive(run, tmp_path):
    made = [run / f"scores-{name}-1" for name in ("SFT", "GRPO", "SFT-EM")]
    build(made, tmp_path / BOARD, "SFT (seed 1)")
    (tmp_path / "recipe.json").write_text((run / "recipe.json").read_text())
    found = {finding.said: finding for finding in judge(results.read_boards(tmp_path))}
    ahead = found["SFT-EM generalizes better than SFT on all data (classification)"]
    assert (ahead.verdict, ahead.p, ahead.alone, ahead.seeds) == ("inconclusive", None, None, 1)
    assert ahead.value.value > 0.2


def corrected_by_hand(alone):
    order, worst, found = sorted(range(len(alone)), key=alone.__getitem__), 0.0, [0.0] * len(alone)
    for rank, at in enumerate(order):
        worst = max(worst, min(1.0, alone[at] * (len(alone) - rank)))
        found[at] = worst
    return found


def finding(source, p, unit="points"):
    return Finding(source, "", "", Estimate(0.1, 0.0, 0.2, 9), None, unit, alone=p)


def test_p_values_are_corrected_over_the_papers_claims_separately_from_others():
    paper = [finding("Table 2", p) for p in (0.01, 0.04, 0.03)]
    beyond = [finding("beyond", p) for p in (0.02, 0.2)]
    found = decided([*paper, finding("Table 4", None), finding("Figure 4", 0.02, "ratio"), *beyond])
    by_hand = corrected_by_hand([0.01, 0.04, 0.03, 0.02])
    assert [one.p for one in found[:3]] + [found[4].p] == pytest.approx(by_hand)
    assert [one.p for one in found[5:]] == pytest.approx([0.04, 0.2])
    assert (found[3].p, found[3].verdict) == (None, "inconclusive")


HERE = {  # interval in points, corrected p, test -> verdict
    "ahead": ((2.0, 0.5, 3.5), 0.01, "superiority", "supported"),
    "behind": ((-2.0, -3.5, -0.5), 0.01, "superiority", "contradicted"),
    "wide": ((1.0, -1.0, 3.0), 0.3, "superiority", "inconclusive"),
    "narrow and near zero": ((0.2, -0.4, 0.8), 0.5, "superiority", "not supported"),
    "narrow up to the margin": ((0.2, -0.6, 1.0), 0.5, "superiority", "inconclusive"),
    "untested": ((0.2, None, None), None, "superiority", "inconclusive"),
    "equal": ((0.0, -0.6, 0.6), 0.001, "match", "supported"),
    "slightly behind": ((-0.3, -0.9, 0.3), 0.01, "match", "supported"),
    "wide around zero": ((0.0, -2.0, 2.0), 0.2, "match", "inconclusive"),
    "clearly behind": ((-3.0, -4.0, -2.0), 1.0, "match", "contradicted"),
    "behind by about the margin": ((-1.5, -2.5, -0.5), 0.9, "match", "inconclusive"),
}


@pytest.mark.parametrize(("points", "p", "test", "verdict"), HERE.values(), ids=HERE)
def test_a_verdict_depends_on_p_interval_and_margin(points, p, test, verdict):
    value = Estimate(*(None if one is None else one / 100 for one in points), 100)
    assert verdict_of(value, p, test) == verdict


def test_a_match_is_tested_one_sided_against_the_margin(run):
    boards = results.read_boards(run)
    claim = Claim("Table 2", "matches", BOARD, "SFT-EM", "GRPO", "ood", "match")
    better, worse = (judge(boards, [one])[0] for one in (claim, replace(claim, row="GRPO", other="SFT-EM")))
    assert (better.verdict, worse.verdict) == ("supported", "contradicted")
    assert better.alone < 0.01 and worse.alone > 0.99


def test_the_design_simulates_the_claims_of_core_alone():
    made = {stage.name for stage in recipes.load("core").stages if stage.verb == "leaderboard build"}
    tested = [(one, pool) for one in CLAIMS for pool in POOLS if board_of(one.board, pool) in made]
    papers = {one for one, _ in tested if one.source.startswith(("Table", "Figure"))}
    assert papers == set(design.papers())


@pytest.mark.slow
def test_if_all_claims_are_untrue_one_run_in_twenty_decides_one():
    """The whole procedure on the design of recipe `core`: paired seeds, one- and two-sided tests, Holm."""
    small = design.Design("a tenth of the items", ((60, 2), (20, 4)), 10)
    found = design.errors(small, design.Components(), rounds=400, seed=21)
    assert 0.02 <= found["decided"] <= 0.08  # 400 rounds: two standard errors more than 3.5 and 6.5 %


@pytest.mark.slow
def test_a_larger_design_detects_more_and_the_documented_powers_hold():
    family, parts = design.family_size(), design.Components()
    small, large = (
        design.power(one, parts, rounds=150, seed=3, family=family) for one in (design.FORMER, design.CORE)
    )
    assert large["half_width"] == pytest.approx(0.0075, abs=0.0015)
    assert small["half_width"] == pytest.approx(0.0135, abs=0.003)
    for name, alone in large["alone"].items():
        assert large["corrected"][name] <= alone
        if name != "0 points":
            assert alone >= small["alone"][name]
    assert large["alone"]["0 points"] < 0.1


def test_variance_components_are_estimated_from_differences():
    parts = design.Components(item=0.08, drawing=0.1, digit=0.04, seed=0.02)
    wide = design.Design("wide", ((400, 5), (300, 6)), 20)
    rng = np.random.default_rng(5)
    found = [design.arm(rng, wide, parts, share=1.0) for _ in range(3)]
    measured = [
        design.components([np.stack([seed[task] for seed in one]) for task in (0, 1)], wide.clusters)
        for one in found
    ]
    for name, tolerance in (("item", 0.004), ("drawing", 0.02), ("digit", 0.02), ("seed", 0.006)):
        values = [getattr(one, name) for one in measured]
        assert np.mean(values) == pytest.approx(getattr(parts, name), abs=tolerance), name


def test_figures_of_runs_are_compared_by_a_paired_t_test_over_seeds():
    pairs = [(8.0, 4.0), (9.0, 4.1), (7.0, 3.9)]
    found = over_seeds("Figure 6", "larger", pairs)
    test = ttest_rel(np.log([one for one, _ in pairs]), np.log([other for _, other in pairs]))
    assert found.p == pytest.approx(test.pvalue) and found.verdict == "supported"
    assert found.value.low == pytest.approx(test.confidence_interval(0.95).low)
    assert over_seeds("x", "y", [(other, one) for one, other in pairs]).verdict == "contradicted"
    single = over_seeds("x", "y", pairs[:1])
    assert (single.p, single.verdict) == (None, "inconclusive")
    assert over_seeds("x", "y", []) is None


def test_costs_are_compared_from_the_runs_ledgers(run):
    found = {one.said: one for one in findings(results.read_boards(run))}
    for what in ("operations", "wall-clock time"):
        finding = found[f"GRPO takes more {what} than SFT-EM with its labeling"]
        assert np.exp(finding.value.value) == pytest.approx(20)


def test_a_cost_without_its_lost_labels_is_unknown(tmp_path):
    with manifest.writing("rollouts", tmp_path / "rollouts", {}) as draft:
        draft.notes["ledger"] = {"flops": 9e12, "seconds": 1.0, "prompts": 1, "generated": 8}
    with manifest.writing("labels", tmp_path / "labels", {}, {"rollouts": tmp_path / "rollouts"}):
        pass
    data = curated(tmp_path / "set", 5, 5, 0, inputs={"labels": tmp_path / "labels"})
    trained = adapter(tmp_path / "run", data, flops=1e12)
    scores = scores_folder(tmp_path / "scores", "SFT-EM", {ID: [1, 0]}, inputs={"adapter": trained})
    (line,) = summarize(load([scores])).lines
    assert results._cost("flops")(line, 0) == 1e13
    shutil.rmtree(tmp_path / "rollouts")
    assert results._cost("flops")(line, 0) is None


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((-0.0004, -0.005, 0.004), "+0.0 [-0.5, +0.4] points"),
        ((0.0, -0.0001, None), "+0.0 [+0.0, +0.0] points"),
    ],
)
def test_a_figure_that_rounds_to_zero_has_no_minus_sign(ends, said):
    assert results._value(replace(finding("Table 2", 0.5), value=Estimate(*ends, 9))) == said


@pytest.mark.parametrize("kind", ["logs", "scores"])
def test_rows_of_a_board_keep_their_names(kind, tmp_path):
    """A log by itself has its model's name, not its folder's; equal names get what distinguishes them."""
    for name in ("base", "tuned"):
        if kind == "logs":
            log_folder(tmp_path / "in" / name, {ID: [line(0, 1.0), line(1, 0.0)]})
        else:
            config = {"model": "dcsft_hf", "model_args": f"pretrained={name}"}
            scores_folder(tmp_path / "in" / name, "same", {ID: [1, 0]}, config=config)
    below = sorted((tmp_path / "in").iterdir()) if kind == "logs" else [tmp_path / "in"]
    baseline = "base" if kind == "logs" else "same (pretrained=base)"
    chosen = Options(baseline=baseline, page=False, plots=False)
    built = build(below, tmp_path / "x-arms", options=chosen).summary
    (tmp_path / "recipe.json").write_text("{}")
    read = results.read_boards(tmp_path)["x-arms"]
    assert [line.name for line in read.lines] == [line.name for line in built.lines]
    assert read.lines[0].name == baseline


def test_the_page_has_a_table_and_a_figure_for_each_board(run, tmp_path):
    page = tmp_path / "results-digits.md"
    assert results.write([run], page) | {"boards": 1} == results.write([run], page)
    text = page.read_text()
    assert "| SFT-EM |" in text and "**supported**" in text and "**inconclusive**" in text
    assert (tmp_path / "results-digits" / f"{BOARD}-id_ood.png").is_file()
    assert f"(results-digits/{BOARD}-id_ood.png)" in text
    assert str(run) not in text
    told = json.loads((tmp_path / "results-digits" / "claims.json").read_text())
    assert {one["verdict"] for one in told} >= {"supported", "inconclusive"}


@pytest.mark.parametrize("name", ["my results (1)", "é%20", "results-digits"])
def test_links_to_figures_work_for_any_name(run, tmp_path, name):
    results.write([run], tmp_path / f"{name}.md")
    tokens = MarkdownIt().parse((tmp_path / f"{name}.md").read_text())
    parts = [part for token in tokens for part in token.children or ()]
    links = [part.attrs["src"] for part in parts if part.type == "image"]
    assert links and all((tmp_path / unquote(link)).is_file() for link in links)


def test_a_foreign_folder_with_the_pages_name_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(HarnessError, match=r"mine\.md would write its images to .*holds manifest\.json"):
        results.write([run], tmp_path / "mine.md")
    with pytest.raises(HarnessError, match="mine has no suffix"):
        results.write([run], tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "manifest.json"]


def test_a_folder_without_a_run_is_refused(run, tmp_path):
    with pytest.raises(HarnessError, match="is not an output folder of `dcsft run`"):
        results.write([tmp_path], tmp_path / "page.md")
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(HarnessError, match="has no finished leaderboard"):
        results.write([tmp_path], tmp_path / "page.md")
    with pytest.raises(HarnessError, match=f"both have {BOARD}"):
        results.write([run, run], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


@pytest.mark.slow
def test_both_pools_share_a_row_and_a_correction(run, tmp_path):
    for seed in range(3):
        for name in ("SFT", "GRPO", "SFT-EM"):
            (tmp_path / f"scores-{name}-{seed}").symlink_to(run / f"scores-{name}-{seed}")
    (tmp_path / "recipe.json").write_text((run / "recipe.json").read_text())
    made = [run / f"scores-{name}-{seed}" for seed in range(3) for name in ("SFT", "GRPO", "SFT-EM")]
    for board in (BOARD, "classification-noisy-paradigms"):
        build(made, tmp_path / board, "SFT")
    boards = results.read_boards(tmp_path)
    found = judge(boards)
    claimed = {pool: [one for one in found if one.pool == pool] for pool in POOLS}
    assert [one.said for one in claimed["clean"]] == [one.said for one in claimed["noisy"]]
    alone = [one.alone for one in found if one.alone is not None]
    assert [one.p for one in found if one.alone is not None] == pytest.approx(corrected_by_hand(alone))
    results.write([tmp_path], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    row = next(line for line in text.splitlines() if "| SFT-EM generalizes better" in line)
    assert row.count("**supported**") == 2 and "6 % wrong labels: verdict" in text
    heads = [line for line in text.splitlines() if line.startswith("## Table 2")]
    assert len(heads) == 2 and heads[1] == f"{heads[0][:-1]}, 6 % wrong labels)"
    # What held and what did not comes before the table, and so does the power behind it.
    order = [
        text.index(part) for part in ("**Held**", "**Did not hold", "**Open**", "## Verdicts", "## Power")
    ]
    assert order == sorted(order)
    untested = text[text.index("**Not tested") : text.index("## Verdicts")]
    assert "- Table 2: GRPO generalizes better than SFT on all data (grounding)." in untested
    assert "SFT-EM generalizes better than SFT on all data (classification)" not in untested


def test_a_run_without_a_board_of_a_claim_says_so():
    assert "The paper's claims. This run has no board for any of them.\n" in results._held([])


@pytest.mark.parametrize("pools", [("clean",), ("noisy",), ("clean", "noisy")])
def test_pools_are_named_but_for_the_clean_one_alone(pools):
    found = [
        replace(finding(source, 0.5), said="it helps", verdict="not supported", pool=pool)
        for source in ("Table 2", "test time")
        for pool in pools
    ]
    text = results._held(found) + results._claims(found)
    named = pools != ("clean",)
    name = {"clean": "clean pool", "noisy": "6 % wrong labels"}[pools[0]]
    assert (f"claims by pool. {name}: 0 supported" in text) == named
    assert ("The paper's claims. 0 supported, 0 contradicted, 1 not supported" in text) != named
    assert (f"- Table 2: it helps. {name.capitalize()}: +10.0" in text) == named
    assert ("- Table 2: it helps: +10.0" in text) != named
    assert ("the paper's claims on both pools; the rules" in text) == (len(pools) > 1)
    assert "any effect in favor is smaller than 1 point" in text


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("paradigms", "shipped recipes: 1 stages"),
        ("paradigms+test-time", "shipped recipes: 1 stages"),
        ("mine", "your own recipe: 1 stages"),
        ("paradigms+mine", "your own recipe: 1 stages"),
    ],
)
def test_the_opening_asserts_nothing_about_other_recipes(recipe, said, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe, "scale": None, "stages": {}}))
    with manifest.writing("labels", tmp_path / "labels", {}):
        pass
    text = results._opening([tmp_path])
    assert said in text
    assert ("trainings of a table take the same number of steps" in text) == ("shipped" in said)


def test_the_opening_names_every_machine_and_version(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": "core", "scale": "digits", "stages": {}}))
    for name, cores in (("a", 2), ("b", 8), ("c", 2)):
        with manifest.writing("labels", tmp_path / name, {}):
            pass
        path = tmp_path / name / manifest.NAME
        own = {"hardware": {"cores": cores, "machine": "x86_64"}, "packages": {"torch": f"2.{cores}"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    text = results._opening([tmp_path])
    assert "on 2 cores (x86_64) and 8 cores (x86_64)." in text or "on 8 cores (x86_64) and 2 cores" in text
    assert "torch 2.2 and 2.8." in text or "torch 2.8 and 2.2." in text


def test_a_boards_name_gives_its_kind_family_and_pool():
    assert results._named("classification-noisy-full-parameters") == (
        "full-parameters",
        "classification",
        "noisy",
    )
    assert results._named("large-noisy-difficulty") == ("difficulty", "large", "noisy")
    assert results._named("grounding-paradigms") == ("paradigms", "grounding", "clean")
    assert results._named("own-mine") == ("mine", "own", "clean")
    for board in {claim.board for claim in CLAIMS}:
        for pool in POOLS:
            assert results._named(board_of(board, pool))[2] == pool


def test_the_power_follows_from_the_interval_widths():
    """By simulation: 10 seeds whose differences have the standard error that the intervals show."""
    half, seeds = 0.006, 10
    found = [
        replace(finding("Table 2", 0.5), value=Estimate(0.0, -half, half, 9), seeds=seeds, test=test)
        for test in ("superiority", "match")
    ]
    said = results._power(found)
    rng, error = np.random.default_rng(5), half / t.ppf(0.975, seeds - 1)
    drawn = rng.normal(0.01, error * np.sqrt(seeds), (20_000, seeds))
    beats = (ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    matches = (ttest_1samp(drawn, 0, axis=1, alternative="greater").pvalue < 0.05).mean()
    assert "0.6 points" in said and "10 seeds" in said
    first, match = (
        int(number) for number in re.search(r"in (\d+) / .*? match within 1 point in (\d+) %", said).groups()
    )
    assert (first, match) == pytest.approx((100 * beats, 100 * matches), abs=1.5)
    assert results._power([replace(one, seeds=1) for one in found]) == ""


def test_every_claim_is_about_rows_of_a_shipped_recipe():
    rows: dict[str, set[str]] = {}
    for name in recipes.shipped():
        stages = {stage.name: stage for stage in recipes.load(name).stages}
        for stage in stages.values():
            if stage.verb == "leaderboard build":
                named = (stages[one.removeprefix("@")].options["name"] for one in stage.options["results"])
                rows.setdefault(stage.name, set()).update(row.split(" (seed")[0] for row in named)
    for claim in CLAIMS:
        for board in {claim.board, board_of(claim.board, "noisy")} & rows.keys():
            assert {claim.row, claim.other} <= rows[board], claim
        assert claim.board in rows
        # Everything about classification is run on both pools.
        if claim.board.startswith(("classification", "large", "qwen3")):
            assert board_of(claim.board, "noisy") in rows


SETTINGS = {
    "sides": {"distributions": {OOD_R: "id"}},
    "names": {"names": {"SFT": "ours, lr=1e-3 (seed 1)", "base (x)": "SFT"}},
    "metrics": {"metrics": {ID: "acc"}},
    "apart": {"apart": True},
    "none": {},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_page_has_the_boards_own_settings(kind, tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for name, other in (("SFT", {}), ("base", {}), ("third", {"apart": "another"})):
        tasks = {task: answers(rng, 20, 0.5) for task in (ID, OOD_R, OOD_A)}
        notes = {task: {"prompt_sha256": other.get(kind, "p")} for task in tasks}
        made.append(scores_folder(tmp_path / f"scores-{name}", name, tasks, notes=notes))
    made[1] = f"base (x)={made[1]}"
    given = dict(SETTINGS[kind])
    if "names" in given:
        given["names"] = tmp_path / "names.yaml"
        given["names"].write_text(json.dumps(SETTINGS[kind]["names"]))
    chosen = Options(baseline="SFT", strict=True, page=False, plots=False, items=False, **given)
    built = build([Path(one) for one in made], tmp_path / "x-paradigms", options=chosen).summary
    (tmp_path / "recipe.json").write_text("{}")
    read = results.read_boards(tmp_path)["x-paradigms"]
    assert [line.name for line in read.lines] == [line.name for line in built.lines]
    assert [line.entries for line in read.lines] == [line.entries for line in built.lines]
    assert [(one.label, one.distribution) for one in read.columns] == [
        (one.label, one.distribution) for one in built.columns
    ]
