"""We-Math's four-dimensional scores (Qiao et al., ACL 2025, section 3.2; `evaluation/` of its repository).

A problem is asked as a whole and step by step, and is one of four kinds:

    IK  insufficient knowledge     a step is wrong, the whole is wrong
    IG  inadequate generalization  every step is right, the whole is wrong
    CM  complete mastery           every step is right, the whole is right    (loose: any step is right)
    RM  rote memorization          a step is wrong, the whole is right        (loose: every step is wrong)

    score = (N - IG / 2 - RM - IK) / N        rate of RM = RM / (CM + RM), of the others: share of N

N counts the problems whose rows were all asked (525 in a full run; fewer under --limit). Values that would be
computed from no problem are NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dcsft_harness.data.benchmarks.reasoning import WEMATH_WHOLE

Item = Mapping[str, Any]
"""One row's place and outcome: problem, steps, step ("1" or "multi"), right."""

NAN = float("nan")


class Count(NamedTuple):
    """The number of problems, in total and of each kind."""

    problems: int
    ik: int
    ig: int
    cm_strict: int
    cm_loose: int
    rm_strict: int
    rm_loose: int


def count(items: Sequence[Item]) -> Count:
    """The kinds of the problems whose rows are all present."""
    problems: dict[str, dict[str, bool]] = {}
    steps: dict[str, int] = {}
    for item in items:
        problems.setdefault(item["problem"], {})[item["step"]] = item["right"]
        steps[item["problem"]] = item["steps"]
    kinds = []
    for name, found in problems.items():
        if len(found) == steps[name] + 1:
            whole = found.pop(WEMATH_WHOLE)
            kinds.append(_kinds(whole, list(found.values())))
    return Count(len(kinds), *map(sum, zip(*kinds, strict=True))) if kinds else Count(0, 0, 0, 0, 0, 0, 0)


def _kinds(whole: bool, steps: Sequence[bool]) -> tuple[bool, ...]:
    """Whether a problem is IK, IG, strict CM, loose CM, strict RM, loose RM."""
    every, some = all(steps), any(steps)
    return (
        not whole and not every,
        not whole and every,
        whole and every,
        whole and some,
        whole and not every,
        whole and not some,
    )


def strict(items: Sequence[Item]) -> float:
    """The strict score, We-Math's headline: at most 1, and negative where RM and IK outweigh."""
    counts = count(items)
    return _score(counts, counts.rm_strict)


def loose(items: Sequence[Item]) -> float:
    """The loose score: a right whole is rote only if every step is wrong."""
    counts = count(items)
    return _score(counts, counts.rm_loose)


def _score(counts: Count, rote: int) -> float:
    return _share(counts.problems - counts.ig / 2 - rote - counts.ik, counts.problems)


def _share(some: float, all_of_them: int) -> float:
    return some / all_of_them if all_of_them else NAN


def _rate(kind: Callable[[Count], int], among: Callable[[Count], int]) -> Callable[[Sequence[Item]], float]:
    """A metric in [0, 1]: the share of a kind of problem; NaN among none."""

    def rate(items: Sequence[Item]) -> float:
        counts = count(items)
        return _share(kind(counts), among(counts))

    return rate


insufficient_knowledge = _rate(lambda one: one.ik, lambda one: one.problems)
inadequate_generalisation = _rate(lambda one: one.ig, lambda one: one.problems)
complete_mastery_strict = _rate(lambda one: one.cm_strict, lambda one: one.problems)
complete_mastery_loose = _rate(lambda one: one.cm_loose, lambda one: one.problems)
# Of the right wholes.
rote_memorisation_strict = _rate(lambda one: one.rm_strict, lambda one: one.cm_strict + one.rm_strict)
rote_memorisation_loose = _rate(lambda one: one.rm_loose, lambda one: one.cm_loose + one.rm_loose)
