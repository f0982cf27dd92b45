"""Peak memory of G samples per item against one sample per item, in the same batch.

python -m benchmarks.memory
"""

import json
import multiprocessing
from pathlib import Path

import torch

from benchmarks import shapes
from benchmarks.sampling import Peer, draw, sides


def peak(way: str, shape: str, side: int, number: int, layers: int | None = None) -> float:
    """Peak memory of a way beyond weights and features, in MB; for a fresh process."""
    model = shapes.load(shape, side, layers)
    items = shapes.items(model, number)
    prepared = shapes.prepare(model, items)
    peer = Peer(model)

    def work(count: int) -> None:
        if way == "engine":
            draw(model, items[:count], prepared[:count], shapes.ARGUMENTS)
        else:
            peer.draw(prepared[:count], count, 1)

    work(1)  # library buffers are allocated by the first call
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(number)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Linux: writing 5 resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    resident = _resident("VmRSS")
    work(number)
    return (_resident("VmHWM") - resident) / 1e3


def _resident(name: str) -> int:
    """A line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    """Measures, each way in a new process, and prints JSON."""
    given = shapes.parser().parse_args()
    results = []
    for side, number in sides(given.shape, given.layers).items():
        found = {}
        for way in ("engine", "one sample"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[way] = pool.apply(peak, (way, given.shape, side, number, given.layers))
        # Too small for the kernel to have counted a page: a trial.
        ratio = round(found["engine"] / found["one sample"], 2) if found["one sample"] else None
        results.append({"side": side, "MB": found, "ratio": ratio})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
