"""The rules of a curated set: the items that qualify, the number to draw, and their weights."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from dcsft_harness import records
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.settings import Settings, option


class CurationConfig(Settings):
    """Which items to keep."""

    keep: tuple[records.Difficulty, ...] = option(
        (), "Difficulties to keep, comma-separated: easy,medium.", metavar="NAME,..."
    )
    band: tuple[float, float] | None = option(
        None, "Instead of keep: pass rates to keep, both ends included, such as 0.1,0.9.", metavar="LOW,HIGH"
    )
    mix: Mapping[records.Difficulty, float] = option(
        about="Share of another difficulty in the curated set, in (0, 1): hard=0.05.",
        repeated=True,
        metavar="NAME=SHARE",
        default_factory=dict,
    )
    size: int | None = option(None, "Items in the curated set; by default all that qualify.", ge=1)
    weight: Literal["p(1-p)", "posterior"] | None = option(
        None,
        "Add a column weight: p(1-p) of the pass rate, or its mean under the Jeffreys posterior. Without"
        " --keep and --band, every item is kept.",
    )
    suspect: float | None = option(
        None,
        "Leave out likely wrong labels: items never solved that got the same answer in at least this share of"
        " their samples. In (0.5, 1]; 0.75 if no share is given. suspects.jsonl lists them.",
        metavar="[SHARE]",
        bare=0.75,
        gt=0.5,
        le=1,
    )
    seed: int = option(0, "Seed that decides which items are drawn, and their order.", ge=0)

    @field_validator("mix", mode="before")
    @classmethod
    def _read_mix(cls, given: object) -> object:
        return parse_mix(given) if isinstance(given, list | tuple) else given

    @field_validator("band", mode="before")
    @classmethod
    def _read_band(cls, given: object) -> object:
        return None if given is None else parse_band(given)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if len(set(self.keep)) != len(self.keep):
            raise HarnessError(f"--keep {','.join(self.keep)} names a difficulty twice", "Name each once")
        if self.keep and self.band:
            raise HarnessError("--keep and --band cannot be combined", "Use only one of them")
        if not self.keep and not self.band and not self.weight:
            raise HarnessError(
                "nothing to keep: --keep and --band are missing",
                f"Pass --keep with some of {','.join(records.DIFFICULTIES)}, or --band LOW,HIGH",
            )
        if self.band and not 0 <= self.band[0] <= self.band[1] <= 1:
            raise HarnessError(
                f"--band {self.band[0]},{self.band[1]} is not a range of pass rates",
                "Use LOW,HIGH with 0 <= LOW <= HIGH <= 1",
            )
        return self

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        for name, share in self.mix.items():
            if not 0 < share < 1:
                raise HarnessError(f"--mix {name}={share} is out of range", "A share lies between 0 and 1")
            if name in self.keep or not (self.keep or self.band):
                kept = "in --keep already" if self.keep else "kept already: --weight alone keeps all"
                raise HarnessError(f"--mix {name}={share}: {name} is {kept}", "Name it in one of them")
            if self.weight == EMPIRICAL and name != "medium":
                raise HarnessError(
                    f"--mix {name}={share}: {name} items have the weight 0 by {EMPIRICAL}",
                    f"Use --weight {POSTERIOR}, or leave --mix out",
                )
        if sum(self.mix.values()) >= 1:
            raise HarnessError(f"--mix shares add up to {sum(self.mix.values())}", "They must stay below 1")
        return self

    def asked(self) -> str:
        """The condition for keeping an item, as the end of "no item ..."."""
        what = " or ".join(self.keep)
        if self.band:
            what = f"solved in a share from {self.band[0]:g} to {self.band[1]:g} of its samples"
        return f"is {what or 'labeled'}{' with a weight above 0' if self.weight else ''}"


def parse_mix(texts: Sequence[str]) -> dict[str, float]:
    """Reads `name=share` options; an error in another form."""
    mix: dict[str, float] = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=(\d+\.?\d*|\.\d+)", str(text))
        if match is None or match[1] not in records.DIFFICULTIES:
            raise HarnessError(
                f"--mix {cut(text, 80)!r} is not difficulty=share", "Write for example hard=0.05"
            )
        if match[1] in mix:
            raise HarnessError(f"--mix names {match[1]} twice", "Name each difficulty once")
        mix[match[1]] = float(match[2])
    return mix


def parse_band(given: object) -> tuple[float, float]:
    """Reads the two ends of a band; an error unless they are finite numbers."""
    parts = given if isinstance(given, list | tuple) else str(given).split(",")
    try:
        low, high = map(float, parts)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        said = cut(",".join(map(str, parts)), 80)
        raise HarnessError(f"--band {said} is not LOW,HIGH", "Write for example 0.1,0.9")
    return low, high


def qualifying(labels: pa.Table, config: CurationConfig) -> NDArray[np.bool_]:
    """The label rows that --keep, --band or neither selects; a band or weights need pass rates.

    Raises:
        HarnessError: a labeled item has no pass rate, and a band or weights need one.
    """
    labeled: NDArray[np.bool_] = np.array(pc.is_valid(labels["difficulty"]))
    if config.band or config.weight:
        unknown = int((labeled & np.asarray(pc.is_null(labels["pass_rate"]))).sum())
        if unknown:
            needing = "--band" if config.band else "--weight"
            raise HarnessError(
                f"{needing} needs every item's pass rate, but {unknown} of {labels.num_rows} have none: their"
                " sampling stopped once they were labeled",
                "Sample the pool again without --stop-when-labelled, or use --keep alone",
            )
    if config.band:
        # Both k / n and a parsed end are rounded to the nearest double, so equal values stay equal.
        low, high = config.band
        rate = pc.fill_null(labels["pass_rate"], -1.0).to_numpy()
        labeled &= (low <= rate) & (rate <= high)
    elif config.keep:
        labeled &= np.asarray(pc.is_in(labels["difficulty"], value_set=pa.array(config.keep)))
    return labeled


def weighed(labels: pa.Table, config: CurationConfig) -> NDArray[np.float64]:
    """Label rows' weights before normalization, 1 without weighting; arbitrary for unlabeled rows."""
    if config.weight is None:
        return np.ones(labels.num_rows)
    n, k = labels["n"].to_numpy(), labels["k"].to_numpy()
    return WEIGHTS[config.weight](k, np.maximum(n, 1))


def equal(names: pa.ChunkedArray, name: str) -> NDArray[np.bool_]:
    """Where a column equals this name; an empty cell does not."""
    found: NDArray[np.bool_] = pc.fill_null(pc.equal(names, name), False).to_numpy()
    return found


def mix(labels: pa.Table) -> dict[str, int]:
    """The number of label rows of each difficulty."""
    return {name: int(equal(labels["difficulty"], name).sum()) for name in records.DIFFICULTIES}


EMPIRICAL, POSTERIOR = "p(1-p)", "posterior"
WEIGHTS: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]] = {
    EMPIRICAL: lambda k, n: k / n * ((n - k) / n),
    # E[p(1-p)] for p of Beta(a, b), a = k + 1/2 and b = n - k + 1/2, is ab / ((a + b)(a + b + 1)).
    POSTERIOR: lambda k, n: (k + 0.5) * (n - k + 0.5) / ((n + 1.0) * (n + 2.0)),
}
"""Name -> an item's weight by right responses k of n: p(1-p) at p = k/n, or its mean under the Jeffreys
posterior of p, which is never 0."""
