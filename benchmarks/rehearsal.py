"""The whole chain at a published size: `dcsft rehearse`, at two layers and at all of them.

python -m benchmarks.rehearsal --shape qwen2.5-vl-3b
python -m benchmarks.rehearsal --saved runs/rehearsal other/rehearsal    # of finished rehearsals
"""

import argparse
import json
import tempfile
from pathlib import Path

from dcsft_harness import reading
from dcsft_harness.recipes import rehearsal


def main() -> None:
    """Runs the rehearsals, or reads finished ones, and prints them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen2.5-vl-3b", choices=rehearsal.SHAPES)
    parser.add_argument("--layers", type=int, help="that many alone, instead of two and all")
    parser.add_argument("--saved", nargs="+", type=Path)
    given = parser.parse_args()
    if given.saved:
        runs = [reading.json_file(folder / rehearsal.RESULT) for folder in given.saved]
    else:
        with tempfile.TemporaryDirectory(prefix="dcsft-bench-") as home:
            runs = [
                rehearsal.rehearse(given.shape, Path(home) / str(layers), layers=layers)
                for layers in ((given.layers,) if given.layers else (2, None))
            ]
    print(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()
