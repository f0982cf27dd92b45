"""Summary -> plots, PNG and SVG: those whose data is there."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import charts
from .summary import Summary

PLOTS: tuple[tuple[str, str, Callable[[Summary, Any], bool]], ...] = (
    ("id_ood", "In and out of distribution", charts.id_against_ood),
    ("difficulty", "Accuracy by difficulty", charts.accuracy_by_difficulty),
    ("label_mix", "What was trained on", charts.label_mix),
    ("steps", "Performance over steps", charts.performance_over_steps),
    ("hard_ratio", "Hard items in training", charts.hard_ratio),
    ("gradient_norms", "Gradient norms", charts.gradient_norms),
    ("cost", "Cost against accuracy", charts.cost_against_ood),
)
"""File name, title and the function that draws it and says whether there was anything to draw."""


def draw(summary: Summary, folder: Path) -> list[tuple[str, list[str]]]:
    """Draws what a board has data for.

    Args:
        summary: the board's numbers.
        folder: where `plots/` goes.

    Returns:
        Title and files (PNG, SVG), relative to the folder.
    """
    found = []
    with _style() as pyplot:
        for name, title, plot in PLOTS:
            figure, axes = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
            if plot(summary, axes):
                (folder / "plots").mkdir(exist_ok=True)
                files = [f"plots/{name}.{kind}" for kind in ("png", "svg")]
                axes.set_title(title, loc="left", fontsize=11)
                # No date, and ids by a fixed salt: equal boards make equal files.
                figure.savefig(folder / files[0], dpi=144, metadata={"Software": None})
                figure.savefig(folder / files[1], metadata={"Date": None, "Creator": None})
                _without_comments(folder / files[1])
                found.append((title, files))
            pyplot.close(figure)
    return found


@contextmanager
def _style() -> Iterator[Any]:
    """Matplotlib without a display, set up so that no name is read as markup."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a name may have letters that the font lacks
    settings: dict[Any, object] = {  # keys: matplotlib lists all it has as a type
        "text.parse_math": False,
        "text.usetex": False,
        "svg.hashsalt": "dcsft",
        "svg.fonttype": "path",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 9,
        "axes.axisbelow": True,
    }
    with pyplot.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs missing from the font
        yield pyplot


def _without_comments(svg: Path) -> None:
    """Takes out the comments in which matplotlib repeats every text, names among them."""
    text = svg.read_text(encoding="utf-8")
    svg.write_text(re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL), encoding="utf-8")
