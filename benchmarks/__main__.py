"""Runs the benchmarks and rewrites docs/benchmarks.md.

    python -m benchmarks                                # all parts of the digits shape: `make bench`
    python -m benchmarks --only sampling stages
    python -m benchmarks --shape qwen2.5-vl-3b          # on CUDA; random weights at the published size
    python -m benchmarks --shape qwen2.5-vl-3b --layers 2   # on any machine: few items, one round

Each part runs in a new process. Its output is saved in docs/benchmarks.json under its machine and shape;
the page is rendered from that file, so results of other machines are kept.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, page, shapes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"

PARTS = (
    "sampling",
    "families",
    "answers",
    "stages",
    "memory",
    "growth",
    "pool_size",
    "labels",
    "scoring",
    "training",
    "board",
    "vllm_overhead",
    "rehearsal",
)
SHAPED = ("sampling", "answers", "memory", "growth", "training", "vllm_overhead", "rehearsal")
"""Parts that other shapes can be measured with."""
PUBLISHED_ALONE = ("rehearsal",)
"""Parts that do not apply to the digits shape."""


NO_VLLM = "vllm_overhead needs vLLM's environment: run `make test-vllm` once"


def command(part: str, shape: str, layers: int | None = None) -> list[str]:
    """The command that runs a part; vLLM has an environment of its own.

    Raises:
        SystemExit: vLLM's environment is missing.
    """
    python = sys.executable
    if part == "vllm_overhead":
        if not VLLM_PYTHON.exists():
            raise SystemExit(f"{NO_VLLM}, or leave it out")
        python = str(VLLM_PYTHON)
    given = ["--shape", shape] if part in SHAPED else []
    if layers:
        given += ["--layers", str(layers), *([] if part in PUBLISHED_ALONE else ["--rounds", "1"])]
    return [python, "-m", f"benchmarks.{part}", *given]


def run(part: str, shape: str, layers: int | None = None) -> dict[str, Any]:
    """One part's result: the JSON that its output ends in.

    Raises:
        SystemExit: it failed.
    """
    # vLLM on a CPU sets aside this many GB for its cache; without a number, half of the memory.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    process = subprocess.run(
        command(part, shape, layers), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    )
    if process.returncode:
        raise SystemExit(f"benchmarks.{part} failed with exit code {process.returncode}")
    text = process.stdout.strip()
    starts = [at for at in range(len(text)) if text[at] in "{[" and (at == 0 or text[at - 1] == "\n")]
    for start in starts:
        try:
            found = json.loads(text[start:])
        except ValueError:
            continue
        return found if isinstance(found, dict) else {"results": found}
    raise SystemExit(f"benchmarks.{part} printed no JSON")


def main() -> None:
    """Runs the parts asked for and writes both files after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="digits", choices=["digits", *shapes.PUBLISHED])
    parser.add_argument("--layers", type=int, help="decoder layers, for a trial of a published size")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: all that the shape has")
    given = parser.parse_args()
    if given.layers and given.shape == "digits":
        parser.error("--layers needs a published size: add --shape " + shapes.PUBLISHED[0])
    # Figures measured with fewer layers never replace those of the full model.
    kind = f"{given.shape}, {given.layers} layers{page.TRIAL}" if given.layers else given.shape
    small = [part for part in PARTS if part not in PUBLISHED_ALONE]
    for part in given.only or (small if given.shape == "digits" else SHAPED):
        if part == "vllm_overhead" and not given.only and not VLLM_PYTHON.exists():
            print(f"{part} is skipped: {NO_VLLM}", file=sys.stderr, flush=True)
            continue
        print(f"{part} ...", file=sys.stderr, flush=True)
        result = {
            **run(part, given.shape, given.layers),
            "versions": machine.versions(part == "vllm_overhead"),
        }
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        place = f"{machine.describe(given.shape)}"
        parts = known.setdefault(place, {}).setdefault(kind, {})
        notes = parts.get(part, {}).get(page.NOTES)
        parts[part] = result if notes is None else result | {page.NOTES: notes}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page.render(known), encoding="utf-8")


if __name__ == "__main__":
    main()
