"""`dcsft merge`: Merge an adapter into its base: adapter -> checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.settings import option
from dcsft_harness.stages.stage import Notes, Progress, Stage, percent
from dcsft_harness.training.merging import MergeConfig


class MergeOptions(MergeConfig):
    """What to merge, and how to check the result."""

    adapter: Path = option(about="The adapter.", positional=True, reads="artifact")
    base: str | None = option(
        None,
        "The base; by default the one that the adapter was trained on.",
        metavar="CKPT",
        reads="checkpoint",
    )


def run(options: MergeOptions, output: Path, progress: Progress | None) -> Notes:
    """Merges."""
    from dcsft_harness.data.digits import resolve
    from dcsft_harness.training import merging

    base = None if options.base is None else resolve(options.base)
    return merging.merge(options.adapter, output, base, options.part(MergeConfig))


def summary(notes: Mapping[str, Any]) -> str:
    """The merged modules by part, and the difference between the merged model and base plus adapter."""
    parts = ", ".join(
        f"{part} {notes['changed'][part]}/{count}" for part, count in notes["adapted"].items() if count
    )
    parity = notes["parity"]
    said = [
        f"{notes['dtype']}, changed modules: {parts}",
        f"on {parity['prompts']} prompts of {parity['source']} logits differ by at most "
        f"{parity['in_deviations']:.1g} standard deviations (the adapter's effect: {parity['effect']:.2g})",
        f"same arg-max {percent(parity['same_argmax'])}",
        f"same answers {parity['same_answers']}/{parity['prompts']}",
    ]
    if parity["rounded_away"]:
        said.append(f"{len(parity['rounded_away'])} modules' updates are too small for {notes['dtype']}")
    if notes["trained_on"] is False:
        said.append("another base than the adapter was trained on")
    return "; ".join(said)


STAGE = Stage(
    verb="merge",
    options=MergeOptions,
    run=run,
    summary=summary,
    writes="checkpoint",
    about="The checkpoint is read back and compared with base and adapter on real prompts with images,"
    " and kept only if they agree. The report is parity.json.",
    example="dcsft merge adapter --output merged",
    pushes=True,
    light=None,
)
