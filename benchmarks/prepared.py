"""Memory and time to prepare published data, and the time that a prepared task adds to a start.

    python -m benchmarks.prepared memory [IMAGES ...]     # peak memory of `dcsft data prepare`, by size
    python -m benchmarks.prepared start                   # seconds from the task's name to its requests

Made-up copies replace the real Ref-L4: five rows per image, images of 320 kB in one archive.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROWS_AN_IMAGE = 5
SIDE = {"memory": 460, "start": 16}
"""Side of the noise images in pixels: about 320 kB as JPEG, and next to nothing."""


def make(folder: Path, images: int, side: int) -> Path:
    """A download of Ref-L4 with this number of images."""
    import numpy as np
    from datasets import Dataset, disable_progress_bars
    from PIL import Image

    disable_progress_bars()
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.PCG64(0))
    rows = [
        {
            "id": number,
            "caption": f"expression {number}, " + "which has two dozen words on the average, " * 3,
            "bbox": [1.0, 1.0, 9.0, 9.0],
            "ori_category_id": f"o365_{number % 365 + 1}",
            "height": side,
            "width": side,
            "file_name": f"image_{number // ROWS_AN_IMAGE}.jpg",
        }
        for number in range(images * ROWS_AN_IMAGE)
    ]
    half = len(rows) // 2
    for split, part in (("val", rows[:half]), ("test", rows[half:])):
        Dataset.from_list(part).to_parquet(str(folder / f"ref-l4-{split}.parquet"))
    with tarfile.open(folder / "images.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(images):
            data = io.BytesIO()
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(data, "JPEG", quality=92)
            member = tarfile.TarInfo(f"image_{number}.jpg")
            member.size = len(data.getvalue())
            archive.addfile(member, io.BytesIO(data.getvalue()))
    return folder


PREPARE = """
import resource, sys
from dcsft_harness.cli import main
options = ["--source", sys.argv[1], "--data-root", sys.argv[2], "--any-count"]
code = main(["data", "prepare", "dcsft_ref_l4", *options])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

START = """
import sys, time
started = time.perf_counter()
from dcsft_harness import lmms
from lmms_eval.tasks import TaskManager
known = lmms.task_index([sys.argv[1]])
imported = time.perf_counter()
task = lmms.open_tasks([sys.argv[1]])[sys.argv[1]]
opened = time.perf_counter()
task.build_all_requests(limit=None, rank=0, world_size=1)
print(len(task.eval_docs), opened - imported, time.perf_counter() - opened)
"""


def _python(code: str, *arguments: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.split()


def memory(sizes: list[int]) -> None:
    """Prints a row per number of images."""
    print("images  rows  archive MB  seconds  peak MB")
    for images in sizes:
        with tempfile.TemporaryDirectory() as place:
            source = make(Path(place) / "source", images, SIDE["memory"])
            started = time.perf_counter()
            code, peak = _python(PREPARE, str(source), str(Path(place) / "data"))
            if code != "0":
                raise SystemExit("it failed")
            size = (source / "images.tar.gz").stat().st_size / 2**20
            taken = time.perf_counter() - started
            print(f"{images:6} {images * ROWS_AN_IMAGE:5} {size:11.0f} {taken:8.1f} {peak:>8}", flush=True)


def start() -> None:
    """Prints the seconds to open a task of 45,000 rows, next to those for a task of 300."""
    with tempfile.TemporaryDirectory() as place:
        source = make(Path(place) / "source", 9_000, SIDE["start"])
        data = str(Path(place) / "data")
        _python(PREPARE, str(source), data)
        print("task  documents  seconds to open  seconds to make its requests")
        for task in ("dcsft_digits", "dcsft_ref_l4", "dcsft_ref_l4_val"):
            for _ in range(3):
                count, opened, requests = _python(START, task, DCSFT_DATA=data)
                print(f"{task} {count} {float(opened):.2f} {float(requests):.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory", "start"])
    parser.add_argument("images", nargs="*", type=int, default=[500, 1_000, 2_000])
    options = parser.parse_args()
    memory(options.images) if options.what == "memory" else start()
