"""What a curated set is to be: which items qualify, how many are drawn, and what each of them weighs."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import records
from dcsft_harness.errors import HarnessError, unknown_name


@dataclass(frozen=True)
class CurationConfig:
    """Which items to keep.

    Attributes:
        keep: the difficulties to keep; empty with `band`, or with `weight`, which keeps all.
        mix: difficulty -> its share of the curated set, in (0, 1), beside what is kept.
        size: number of items of the curated set; None keeps all that qualify.
        seed: decides which items are drawn where not all fit, and their order.
        band: the lowest and the highest pass rate to keep, both included, in [0, 1]; instead of `keep`.
        weight: a key of `WEIGHTS`; None gives the set no column weight.
        suspect: never-solved items with one answer in this share of their samples or more are left out
            as likely wrong labels; in (0.5, 1]. None suspects none.
    """

    keep: tuple[records.Difficulty, ...] = ()
    mix: Mapping[records.Difficulty, float] = field(default_factory=dict)
    size: int | None = None
    seed: int = 0
    band: tuple[float, float] | None = None
    weight: str | None = None
    suspect: float | None = None

    def __post_init__(self) -> None:
        """Checks names, shares and size.

        Raises:
            HarnessError: names the option and the value.
        """
        for name in (*self.keep, *self.mix):
            if name not in records.DIFFICULTIES:
                raise unknown_name("difficulty", name, records.DIFFICULTIES)
        if len(set(self.keep)) != len(self.keep):
            raise HarnessError(f"--keep {','.join(self.keep)} names a difficulty twice", "Name each once")
        self._check_rules()
        self._check_mix()
        if self.size is not None and self.size < 1:
            raise HarnessError(f"--size {self.size} is out of range", "It must be at least 1")
        if self.seed < 0:
            raise HarnessError(f"--seed {self.seed} is out of range", "It must be at least 0")

    def _check_rules(self) -> None:
        if self.keep and self.band:
            raise HarnessError("--keep and --band exclude each other", "Give one of them")
        if not self.keep and not self.band and not self.weight:
            raise HarnessError(
                "neither --keep nor --band says what to keep",
                f"Give --keep with some of {','.join(records.DIFFICULTIES)}, or --band LOW,HIGH",
            )
        if self.band and not 0 <= self.band[0] <= self.band[1] <= 1:
            raise HarnessError(
                f"--band {self.band[0]},{self.band[1]} is no range of pass rates",
                "Give LOW,HIGH with 0 <= LOW <= HIGH <= 1",
            )
        if self.weight is not None and self.weight not in WEIGHTS:
            raise unknown_name("--weight", self.weight, WEIGHTS)
        if self.suspect is not None and (self.suspect is True or not 0.5 < self.suspect <= 1):
            raise HarnessError(
                f"--suspect {self.suspect} is out of range",
                "Give a share above 0.5, so that there is one voice, and at most 1",
            )

    def _check_mix(self) -> None:
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

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "CurationConfig":
        """Reads the options of the command line and of recipes.

        Args:
            options: the fields' names; `band` and `mix` as `parse_band` and `parse_mix` take them.

        Raises:
            HarnessError: an option is unknown, or a value makes no sense.
        """
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("curation option", name, known)
        given = dict(options)
        given["keep"] = tuple(given.get("keep") or ())
        given["mix"] = cls.parse_mix(given.get("mix") or ())
        if given.get("band") is not None:
            given["band"] = cls.parse_band(given["band"])
        return cls(**given)

    @staticmethod
    def parse_mix(texts: Sequence[str]) -> dict[records.Difficulty, float]:
        """Reads `name=share` options.

        Raises:
            HarnessError: not of that form.
        """
        mix: dict[records.Difficulty, float] = {}
        for text in texts:
            match = re.fullmatch(r"(\w+)=(\d+\.?\d*|\.\d+)", text)
            if match is None or match[1] not in records.DIFFICULTIES:
                raise HarnessError(f"--mix {text!r} is not difficulty=share", "Write for example hard=0.05")
            if match[1] in mix:
                raise HarnessError(f"--mix names {match[1]} twice", "Name each difficulty once")
            mix[match[1]] = float(match[2])
        return mix

    @staticmethod
    def parse_band(given: str | Sequence[float]) -> tuple[float, float]:
        """Reads `LOW,HIGH`, or a recipe's list of the two.

        Raises:
            HarnessError: not two finite numbers.
        """
        parts = given.split(",") if isinstance(given, str) else given
        try:
            low, high = map(float, parts)
        except (TypeError, ValueError):
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high)):
            raise HarnessError(f"--band {given!r} is not LOW,HIGH", "Write for example 0.1,0.9")
        return low, high

    def asked(self) -> str:
        """What an item has to be to be kept, as the end of "no item ..."."""
        what = " or ".join(self.keep)
        if self.band:
            what = f"solved in a share from {self.band[0]:g} to {self.band[1]:g} of its samples"
        return f"is {what or 'labelled'}{' with a weight above 0' if self.weight else ''}"


def qualifying(labels: pa.Table, config: CurationConfig) -> NDArray[np.bool_]:
    """Which label rows --keep, --band or neither lets in.

    Raises:
        HarnessError: a labelled item has no pass rate, and a band or weights need one.
    """
    labelled: NDArray[np.bool_] = np.array(pc.is_valid(labels["difficulty"]))
    if config.band or config.weight:
        unknown = int((labelled & np.asarray(pc.is_null(labels["pass_rate"]))).sum())
        if unknown:
            option = "--band" if config.band else "--weight"
            raise HarnessError(
                f"{option} needs every item's pass rate, and {unknown} of {labels.num_rows} have none: their"
                " sampling stopped once they were labelled",
                "Sample the pool again without --stop-when-labelled, or use --keep alone",
            )
    if config.band:
        # Both k / n and an end as it is written are rounded to the nearest double, so equal ones are equal.
        low, high = config.band
        rate = pc.fill_null(labels["pass_rate"], -1.0).to_numpy()
        labelled &= (low <= rate) & (rate <= high)
    elif config.keep:
        labelled &= np.asarray(pc.is_in(labels["difficulty"], value_set=pa.array(config.keep)))
    return labelled


def weighed(labels: pa.Table, config: CurationConfig) -> NDArray[np.float64]:
    """Label rows' weights before they are normalised, 1 if none are asked for; unlabelled rows have any."""
    if config.weight is None:
        return np.ones(labels.num_rows)
    n, k = labels["n"].to_numpy(), labels["k"].to_numpy()
    return WEIGHTS[config.weight](k, np.maximum(n, 1))


def equal(names: pa.ChunkedArray, name: str) -> NDArray[np.bool_]:
    """Where a column is this name; an empty cell is none."""
    found: NDArray[np.bool_] = pc.fill_null(pc.equal(names, name), False).to_numpy()
    return found


def _empirical(k: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    return k / n * ((n - k) / n)


def _posterior(k: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """E[p(1-p)] for p of Beta(a, b), a = k + 1/2 and b = n - k + 1/2, is ab / ((a + b)(a + b + 1))."""
    return (k + 0.5) * (n - k + 0.5) / ((n + 1.0) * (n + 2.0))


EMPIRICAL, POSTERIOR = "p(1-p)", "posterior"
WEIGHTS: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]] = {
    EMPIRICAL: _empirical,
    POSTERIOR: _posterior,
}
"""Name -> an item's weight by right responses k of n: p(1-p) at p = k/n, or its mean under the Jeffreys
posterior of p, which is never 0."""
