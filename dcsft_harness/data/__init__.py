"""Data: the paper's benchmarks, the embedded digits suite, and the options of a user's own rows."""

from pathlib import Path

from dcsft_harness.scoring import SCORERS, ScorerName
from dcsft_harness.settings import Settings, option


class OwnRows(Settings):
    """How to read a user's own rows."""

    SECTION = "Own data"

    scorer: ScorerName | None = option(
        None,
        f"For your own rows: the scorer: {', '.join(SCORERS)}, or your package.module:function.",
    )
    image_root: Path | None = option(
        None, "For your own rows: the folder that relative image paths start from; by default the file's."
    )
    allow_outside_root: bool = option(
        False, "For your own rows: allow images outside the image root (absolute paths, .., links)."
    )


class OwnPart(OwnRows):
    """The part of a user's own rows that a stage reads."""

    held_out: float | None = option(
        None,
        "For your own rows: the share to hold out, such as 0.1. Sampling and training leave these rows out;"
        " evaluation reads only these. Content decides which rows: give every command the same share.",
        gt=0,
        lt=1,
    )
