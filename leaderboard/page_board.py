"""leaderboard.json -> the first data file of its page: columns, and no names as keys.

Names come from outside. A key like "__proto__" would not be a key in a JavaScript literal, so whatever
is named becomes a list of pairs.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .packing import Json

DIGITS = 7
"""Significant digits of what a page shows rounded anyway; leaderboard.json has all of them."""
DEGREES = (*range(1, 31), 35, 40, 50, 60, 80, 100, 150, 200, 400, 1000, 10_000, 1_000_000)
_ESTIMATE = ("value", "low", "high", "n")


def boards(document: Mapping[str, Any]) -> list[Json]:
    """The board and those kept apart, as columns."""
    apart = [(without_folders(one["reason"]), one["board"]) for one in document["apart"]]
    return [_board(reason, board) for reason, board in [(None, document), *apart]]


def _board(reason: str | None, board: Mapping[str, Any]) -> Json:
    return {
        "reason": reason,
        **{key: board[key] for key in ("baseline", "ranked_by", "overall")},
        "remarks": [without_folders(remark) for remark in board["remarks"]],
        "columns": board["columns"],
        "tasks": [{**task, "conditions": list(task["conditions"].items())} for task in board["tasks"]],
        "rows": [_row(row) for row in board["rows"]],
        "cells": _cells(board["rows"]),
        "comparisons": _comparisons(board["comparisons"]),
    }


def _row(row: Mapping[str, Any]) -> Json:
    kept = ("name", "kind", "group", "members", "is_baseline", "worst_task", "rank", "pareto")
    told = {key: row[key] for key in kept}
    told["retention"] = _rounded(row["ood_retention"])
    told["difficulty"] = [
        [kind, _rounded(found)] for kind, found in (row["by_difficulty"] or {}).items()
    ] or None
    told["cost"] = list((row["cost"] or {}).items())
    told["details"] = [_details(part) for part in row["provenance"]]
    return told


def _details(part: Mapping[str, Any]) -> list[list[str]]:
    """What a row was made from, as pairs of a name and a text."""
    pairs = [("made by", part["kind"]), ("created", part["created"]), *part["model"].items()]
    pairs += [(f"setting {key}", value) for key, value in part["settings"].items()]
    training = part["training"]
    if training is not None:
        pairs += [(f"training {key}", value) for key, value in training["settings"].items()]
        pairs += [(f"{kind} items trained on", count) for kind, count in training["mix"].items()]
    return [[str(key), without_folders(str(value))[:300]] for key, value in pairs if value is not None]


def _cells(rows: Sequence[Mapping[str, Any]]) -> Json:
    """Row by row, one entry a column; null where a row lacks it."""
    cells = [cell or {} for row in rows for cell in row["cells"]]
    found: Json = {key: [cell.get(key) for cell in cells] for key in ("n", "unscored", "unanswered")}
    found["deviation"] = [rounded(cell.get("seed_deviation")) for cell in cells]
    for key in ("accuracy", "difference"):
        estimates = [cell.get(key) or {} for cell in cells]
        found[key] = [[rounded(one.get(part)) for one in estimates] for part in _ESTIMATE[:3]]
    return found


def _comparisons(made: Sequence[Mapping[str, Any]]) -> Json:
    families = list(dict.fromkeys(one["family"] for one in made))
    methods = list(dict.fromkeys(one["method"] for one in made))
    found: Json = {key: [one[key] for one in made] for key in ("row", "other", "column", "better", "worse")}
    found |= {key: [rounded(one[key]) for one in made] for key in ("p", "p_holm")}
    found |= {key: [rounded(one["difference"][key]) for one in made] for key in _ESTIMATE[:3]}
    found["n"] = [one["difference"]["n"] for one in made]
    found |= {"families": families, "family": [families.index(one["family"]) for one in made]}
    found |= {"methods": methods, "method": [methods.index(one["method"]) for one in made]}
    return found


def _rounded(estimate: Mapping[str, Any] | None) -> list[Any] | None:
    return None if estimate is None else [rounded(estimate[part]) for part in _ESTIMATE]


def rounded(value: float | None) -> float | None:
    """A number to `DIGITS` significant digits."""
    if value is None or value == 0 or isinstance(value, int):
        return value
    return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))


def quantiles(degrees: Iterable[int] = DEGREES) -> list[list[float]]:
    """Student's t at 97.5 % as [1 / degrees of freedom, quantile], for intervals that a page works out."""
    from scipy.special import stdtrit

    return [[1 / d, float(stdtrit(d, 0.975))] for d in degrees]


_FOLDERS = re.compile(r"(?<![\w.<])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()]+[/\\])+")


def without_folders(text: str) -> str:
    """A sentence in which absolute paths are cut to their last part: a page is passed on to others."""
    return _FOLDERS.sub("", text)
