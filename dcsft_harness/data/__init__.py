"""Data: the paper's benchmarks, the embedded digits suite, and the options of a user's own rows."""

from pathlib import Path

from dcsft_harness.scoring import SCORERS, ScorerName
from dcsft_harness.settings import Settings, option


class OwnRows(Settings):
    """How to read a user's own rows."""

    SECTION = "Own data"

    scorer: ScorerName | None = option(
        None,
        f"With rows of your own: how answers are judged: {', '.join(SCORERS)}, or your"
        " package.module:function.",
    )
    image_root: Path | None = option(
        None, "With rows of your own: where relative image paths start, by default their file's folder."
    )
    allow_outside_root: bool = option(
        False, "With rows of your own: images may also lie outside the image root: absolute paths, .., links."
    )


class OwnPart(OwnRows):
    """The part of a user's own rows that a stage reads."""

    held_out: float | None = option(
        None,
        "With rows of your own: the share of them to hold out, such as 0.1. Sampling and training leave these"
        " rows out; evaluation reads these alone. Content decides which: give the same share everywhere.",
        gt=0,
        lt=1,
    )
