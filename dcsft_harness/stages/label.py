"""`dcsft label`: Label every item easy, medium or hard: rollouts -> labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import interrupts
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import ScorerName
from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.opening import OwnTasks
from dcsft_harness.stages.stage import (
    Notes,
    Progress,
    Stage,
    counted,
    difficulties,
    figure_paths,
    percent,
    with_paths,
)


class LabelOptions(OwnTasks):
    """What to label."""

    SECTION = Settings.SECTION

    rollouts: Path = option(
        about="The rollouts; or one run of `lmms-eval -n G --log_samples`, as FOLDER or FOLDER/RUN.",
        positional=True,
        reads="artifact",
    )
    task: str | None = option(None, "For a log with several tasks: the one to label.")
    scorer: ScorerName | None = option(
        None, "For a log: score responses with this against the logged gold; by default the task scores them."
    )
    box_space: BoxSpace | None = option(None, "For a log: the coordinate space of the responses' boxes.")
    exact: bool = option(
        False,
        "Also compute each item's exact pass rate, the probability that one response is right, from the model"
        " that was sampled: one forward pass per item. Needs responses scored by exact_word.",
    )


def run(options: LabelOptions, output: Path, progress: Progress | None) -> Notes:
    """Labels."""
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.curation import labels

    given = options.task, options.scorer, options.box_space, options.include_path
    rollouts, is_log = options.rollouts, False
    if not (rollouts / manifest.NAME).is_file():
        from dcsft_harness.evaluation import logged

        is_log = logged.holds_logs(rollouts)
    if is_log and options.exact:
        raise HarnessError(
            f"--exact needs rollouts of `dcsft sample`, but {rollouts} is an lmms-eval log",
            "Leave it out, or sample the pool with `dcsft sample`",
        )
    if is_log:
        rollouts = output.with_name(f"{output.name}-rollouts")
        logged.rollouts_of_logs(options.rollouts, rollouts, *given, progress=progress)
    elif any(given):
        raise HarnessError(
            f"--task, --scorer, --box-space and --include-path need lmms-eval logs, but {rollouts} holds"
            " none",
            "Leave them out, or check the path",
        )
    with interrupts.noting(lambda: is_log):  # whose rollouts are finished
        return with_paths(labels.label(rollouts, output, options.exact, progress), output)


def summary(notes: Mapping[str, Any]) -> str:
    """The number of items of each difficulty."""
    words = {"unlabelled": "unlabeled", "censored": "settled early, without a pass rate"}
    return ", ".join([difficulties(notes), *counted(notes, words)])


def shown(notes: Mapping[str, Any]) -> str:
    """The table of `at_fewer_samples` and the labels' noise."""
    return at_fewer_samples(notes) + exact(notes) + noise(notes)


def exact(notes: Mapping[str, Any]) -> str:
    """The mean of the exact pass rates, and their agreement with the responses."""
    found = notes.get("exact")
    if not found:
        return ""
    return (
        f"Exact pass rates: mean {percent(found['mean'])}, at most {found['uncounted']:.1g} too low. Against"
        f" the responses: chi-squared {found['chi_squared']:.0f} on {found['chi_squared_items']} items "
        f"({found['chi_squared_deviations']:+.1f} standard deviations).\n"
    )


def noise(notes: Mapping[str, Any]) -> str:
    """How noisy the labels are, as a sentence; see `curation.pass_rates`."""
    found = notes.get("noise")
    if not found:
        return ""
    source = {"exact": "from the exact pass rates", "counts": "estimated from the counts"}[found["source"]]
    return (
        f"Another labeling of {found['samples']} responses is expected to change the class of "
        f"{percent(found['changed'])} of the items. {percent(found['misplaced'])} are misplaced: not in the "
        f"class that they get most often ({source}).\n"
    )


def at_fewer_samples(notes: Mapping[str, Any]) -> str:
    """A table for a terminal: pass@g and shares of difficulties at g = 1, 2, 4, ... responses per item.

    With the number of items if it differs, because some responses could not be scored.
    """
    found = notes.get("at_g")
    if not found:
        return ""
    chosen = sorted({len(found), *(1 << power for power in range(len(found).bit_length()))})
    fewer = len({row.get("items") for row in found}) > 1
    lines = [f"{'g':>4} {'pass@g':>8} {'easy':>8} {'medium':>8} {'hard':>8}" + (f" {'items':>8}" * fewer)]
    for g in chosen:
        shares = (found[g - 1][name] for name in ("pass", "easy", "medium", "hard"))
        items = f" {found[g - 1]['items']:>8,}" if fewer else ""
        lines.append(f"{g:>4} " + " ".join(f"{percent(share):>8}" for share in shares) + items)
    return "\n".join(["Expected labels from g of the responses:", *lines, ""])


def remarks(notes: Mapping[str, Any]) -> list[str]:
    """The images' location, and warnings if no item can be medium or all items are hard."""
    from dcsft_harness.sampling.rollout_store import ALL_WRONG

    found = figure_paths(notes)
    if not any_solved(notes) and not notes.get("hard"):
        found.insert(0, "no response could be scored, so no item has a label: nothing to curate")
    elif not any_solved(notes):
        found.insert(
            0, f"no response is right, so no item is easy or medium: nothing to curate. {ALL_WRONG}."
        )
    elif len(notes.get("at_g") or ()) == 1:
        found.insert(0, "one scored response per item: none can be medium. Sample more, such as --samples 8")
    if notes.get("same_texts"):
        found.insert(
            0,
            "all responses to an item are the same text, as if greedy: the labels hold one response each."
            " Sample with `dcsft sample`, or `lmms-eval -n G --gen_kwargs do_sample=True,temperature=0.9`",
        )
    return found


def any_solved(notes: Mapping[str, Any]) -> bool:
    """Whether some item is easy or medium."""
    return bool(notes.get("easy") or notes.get("medium"))


def curatable(notes: Mapping[str, Any]) -> bool:
    """Whether `dcsft curate` has something to keep; labels of a log by `--scorer` have no items."""
    return any_solved(notes) and "gallery.md" in notes.get("figures", ())


STAGE = Stage(
    verb="label",
    options=LabelOptions,
    run=run,
    summary=summary,
    writes="labels",
    example="""dcsft label rollouts --output labels
dcsft label rollouts --exact --output labels
dcsft label lmms-eval-output --output labels""",
    about="Prints the pool's pass@g, the labels that g of the responses would give, and how many items a"
    " second labeling would place in another class."
    " Also takes a run of `lmms-eval -n G --log_samples`, whose responses are scored again and written to the"
    " folder OUTPUT-rollouts. For tasks outside the suite, the run also needs --reasoning_tags none, or its"
    " log has only the first response. Labels by --scorer cannot be curated, because a log has no images.",
    show=shown,
    remarks=remarks,
    then="dcsft curate {output} --keep easy,medium --output curated",
    leads=curatable,
    light=(0.21e9, 0.0),
)
