"""The child process of the math scorer: `python -m dcsft_harness.scoring.math_worker`.

Prints "ready", then reads one JSON line `[response, answer]` at a time and prints two: the
expression found (a string or null, or {"error": "gold"}), then whether it equals the answer. Two
lines, because the first must be known even if the comparison exhausts the budget and ends the
process.
"""

import json
import logging
import re
import sys
from functools import lru_cache
from typing import Any

CPU_SECONDS = 5
"""CPU time for one item; beyond it the kernel ends the process (RLIMIT_CPU)."""

MEMORY_BYTES = 4 * 2**30
"""Address space of the process; beyond it sympy fails with MemoryError and the item is wrong."""


# math-verify would read "goose" between dollar signs as the product g*o*o*s*e. Words of three letters
# and fewer cannot be told from products of variables, and those in \text{} are symbols of their own.
_PROSE = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z\s,.;:!?'\u2019-]+", re.DOTALL)
_WRAPPED = re.compile(r"\$+(.*)\$+|\\boxed\{(.*)\}", re.DOTALL)


def _grant_budget() -> None:
    """Allow this process CPU_SECONDS more than it has used; no-op where there are no such limits."""
    if sys.platform == "win32":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _bound_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@lru_cache(maxsize=1024)
def _gold(answer: str) -> tuple[Any, ...]:
    r"""What the answer may be read as; LaTeX first, as bare "2\sqrt{3}" would else be read as 2."""
    from math_verify import parse

    plain = answer.strip()
    while wrapped := _WRAPPED.fullmatch(plain):
        plain = (wrapped[1] or wrapped[2] or "").strip()
    if _PROSE.fullmatch(plain):
        return ()
    anchored = answer if "$" in answer or "\\boxed" in answer else f"${answer}$"
    found = parse(anchored, parsing_timeout=None) or parse(answer, parsing_timeout=None)
    # Texts alone: math-verify made no expression of them, and would compare them letter by letter.
    return () if all(isinstance(one, str) for one in found) else tuple(found)


def _reply(value: object) -> None:
    print(json.dumps(value), flush=True)


def _judge(response: str, answer: str) -> None:
    from math_verify import parse, verify

    gold = _gold(answer)
    if not gold:
        _reply({"error": "gold"})
        _reply(False)
        return
    found = parse(response, parsing_timeout=None)
    # The last element is the text that the expression was read from.
    _reply(str(found[-1]) if found else None)
    _reply(bool(found) and bool(verify(list(gold), found, timeout_seconds=None)))


def main() -> None:
    """Serve items until the input ends."""
    # Else math-verify warns that its own time limit is off, which is the point of this process.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # noqa: F401  (a failed import must show before "ready")

    _bound_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        _grant_budget()
        _judge(*json.loads(line))


if __name__ == "__main__":
    main()
