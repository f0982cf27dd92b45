"""`dcsft curate`: Choose what to train on: labels -> curated set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.curation.rules import CurationConfig
from dcsft_harness.settings import option
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


class CurateOptions(CurationConfig):
    """What to curate, and which items to keep."""

    labels: Path = option(about="The labels.", positional=True, reads="artifact")
    exclude: Path | None = option(
        None, "Leave out the items in this folder of `dcsft data overlap`.", reads="artifact"
    )
    reviewed: Path | None = option(None, "A suspects.jsonl with the verdicts keep or drop.", reads="file")


def run(options: CurateOptions, output: Path, progress: Progress | None) -> Notes:
    """Curates."""
    from dcsft_harness import curation

    config = options.part(CurationConfig)
    notes = curation.curate(options.labels, output, config, options.exclude, options.reviewed)
    return with_paths(notes, output)


def summary(notes: Mapping[str, Any]) -> str:
    """The number of items of each difficulty, and the reasons why others were left out."""
    words = {
        "unlabelled": "of the pool unlabeled",
        "excluded": "excluded for overlap with an evaluation",
        "dropped": "dropped in review",
        "suspects": "suspected of a wrong label: see suspects.jsonl",
        "unshown": "of these not in suspects.md",
        "unjudged": "never solved, with too few answers to judge",
        "outside": "outside the band",
        "others": "of difficulties not kept",
        "weightless": "with a weight of 0",
        "undrawn": "not drawn",
    }
    parts = counted(notes, words)
    return difficulties(notes) + (f" ({', '.join(parts)})" if parts else "")


def against_known(notes: Mapping[str, Any]) -> str:
    """Precision and recall of the suspects and of all hard items, if the pool lists its wrong labels."""
    found = notes.get("known_wrong")
    if not found:
        return ""
    parts = [
        f"{one['items']} {name}, {one['found']} of them wrong (precision {percent(one['precision'])}, recall "
        f"{percent(one['recall'])})"
        for name, one in (("suspects", found["suspects"]), ("hard items", found["hard"]))
    ]
    return f"The pool lists {found['wrong']} wrong labels: {'; '.join(parts)}.\n"


STAGE = Stage(
    verb="curate",
    options=CurateOptions,
    run=run,
    summary=summary,
    writes="curated set",
    example="""dcsft curate labels --keep easy,medium --output curated
dcsft curate labels --keep easy,medium --mix hard=0.05 --size 500 --output curated
dcsft curate labels --band 0.1,0.9 --output curated
dcsft curate labels --weight "p(1-p)" --output curated
dcsft curate labels --keep easy,medium,hard --suspect 0.75 --output curated""",
    show=against_known,
    remarks=figure_paths,
    then="dcsft train sft --model CKPT --data {output} --output adapter",
    light=(0.22e9, 1.0),
)
