"""Drawing G responses an item: `dcsft_hf` against the ways that others take, and against the bound.

    python benchmarks/sampling.py --side 224 --items 32 --rounds 5
    python benchmarks/sampling.py --side 112 --items 16 --long 256
    python benchmarks/sampling.py --side 224 --items 32 --peak

Real digits at `side` x `side` pixels on the embedded checkpoint, features prepared beforehand. In
each round every way runs once, in turn, and figures are medians over the rounds of the time
relative to the engine's in the same round, so that a busy machine slows all of them alike.
Prints one JSON object.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText

from dcsft_harness.digits import checkpoint, suite
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models import flight
from dcsft_harness.models.engine import Prepared
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.prefill import prefill
from dcsft_harness.models.requests import Item
from dcsft_harness.models.rounds import Drawing
from dcsft_harness.models.stream import Stream

SAMPLES = 8
PAPER_BATCH = 4
# The paper's sampling; every response has exactly NEW_TOKENS tokens, so that all ways do equal work.
NEW_TOKENS = 4
ARGUMENTS = GenerationArguments(
    max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, temperature=0.9, top_k=50
)

# The processor's own time, of one thread, does not count what else runs on a shared machine.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = CLOCKS["wall"]


def prepare(model: DcsftHF, items: int) -> list[Prepared]:
    """Digits of the pool, through the model's processor."""
    model.task_dict["bench"] = {"test": suite.load("dcsft_digits_pool")}

    def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["prompt"]}]
        return [{"role": "user", "content": content}]

    wanted = list(range(SAMPLES))
    return [
        model._prepare(Item("bench", "test", number, ARGUMENTS, "", to_messages, wanted, wanted))
        for number in range(items)
    ]


class Peer:
    """The same checkpoint as transformers loads and runs it."""

    def __init__(self, model: DcsftHF) -> None:
        """Loads it beside `model`."""
        dtype = model._model.dtype
        self.model = AutoModelForImageTextToText.from_pretrained(model.settings.pretrained, dtype=dtype)
        self.model = self.model.to(model.device).eval()
        self.batch = model._engine._batch


def plain(peer: Peer, prepared: Sequence[Prepared], batch: int, returned: int) -> None:
    """transformers' own sampling, `returned` responses an item."""
    for start in range(0, len(prepared), batch):
        peer.model.generate(
            **peer.batch([one.features for one in prepared[start : start + batch]]),
            do_sample=True,
            temperature=ARGUMENTS.temperature,
            top_k=ARGUMENTS.top_k,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            num_return_sequences=returned,
        )


def passes(peer: Peer, prepared: Sequence[Prepared], batch: int) -> None:
    """The paper's protocol: the whole pool once for every sample."""
    for _ in range(SAMPLES):
        plain(peer, prepared, batch, 1)


def ways(model: DcsftHF, prepared: list[Prepared]) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""
    peer = Peer(model)
    batch = peer.batch([one.features for one in prepared])
    return {
        "engine": lambda: model._engine.complete(prepared, ARGUMENTS, 0),
        "bound": lambda: prefill(peer.model, batch),
        "own_bound": lambda: prefill(model._model, batch),
        "num_return_sequences": lambda: plain(peer, prepared, len(prepared), SAMPLES),
        "passes": lambda: passes(peer, prepared, len(prepared)),
        "passes_of_4": lambda: passes(peer, prepared, PAPER_BATCH),
    }


def seconds(work: Callable[[], Any]) -> float:
    """Seconds on `CLOCK`, the device's included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = CLOCK()
    with torch.inference_mode():
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCK() - start


def compare(compared: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Per way the median seconds, and the median of its time over the engine's in the same round."""
    for work in compared.values():
        seconds(work)
    measured = [{name: seconds(work) for name, work in compared.items()} for _ in range(rounds)]
    return {
        name: {
            "seconds": round(statistics.median(one[name] for one in measured), 4),
            "over_engine": round(statistics.median(one[name] / one["engine"] for one in measured), 2),
            "engine_over_it": round(statistics.median(one["engine"] / one[name] for one in measured), 3),
        }
        for name in compared
    }


def long_answers(model: DcsftHF, prepared: list[Prepared], rounds: int, longest: int) -> dict[str, Any]:
    """Ragged responses against the same number of tokens in rows of one length.

    Row lengths are uniform between 1 and `longest`, forced upon the engine by where a row ends;
    the ideal batch has as many rows, all of the mean length.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (len(prepared) * SAMPLES,), generator=generator).tolist()
    mean = round(statistics.mean(lengths))
    arguments = replace(ARGUMENTS, max_new_tokens=longest, min_new_tokens=longest)
    compared = {
        "engine": lambda: _with_lengths(model, prepared, arguments, lengths),
        "ideal": lambda: _with_lengths(model, prepared, arguments, [mean] * len(lengths)),
    }
    return {"mean_length": mean, **compare(compared, rounds)}


def _with_lengths(
    model: DcsftHF, prepared: list[Prepared], arguments: GenerationArguments, lengths: list[int]
) -> None:
    from dcsft_harness.models.decoding import StopTexts

    see = StopTexts.see

    def end(self: StopTexts, row: int, tokens: list[int], length: int) -> bool:
        return length >= lengths[row]

    StopTexts.see = end  # type: ignore[method-assign]
    try:
        model._engine.complete(prepared, arguments, 0)
    finally:
        StopTexts.see = see  # type: ignore[method-assign]


def one_sample(model: DcsftHF, prepared: list[Prepared]) -> dict[str, Callable[[], Any]]:
    """Ways whose memory is compared, by name."""
    peer = Peer(model)
    return {
        "engine": lambda: model._engine.complete(prepared, ARGUMENTS, 0),
        "one_sample": lambda: plain(peer, prepared, len(prepared), 1),
    }


def peak(way: str, given: argparse.Namespace) -> float:
    """The most memory that a way takes beside weights and features, in MB; for a fresh process."""
    model = load(given)
    prepared = prepare(model, given.items)
    # Libraries' own buffers are there from the first call on.
    one_sample(model, prepared[:1])[way]()
    work = one_sample(model, prepared)[way]
    if given.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Linux: writing 5 resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return (_resident("VmHWM") - before) / 1e3


def _resident(name: str) -> int:
    """A line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def peaks(given: argparse.Namespace) -> dict[str, float]:
    """Peak memory of G samples an item and of one, each in a process of its own."""
    measured = {}
    for way in ("engine", "one_sample"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured[way] = pool.apply(peak, (way, given))
    return {**measured, "engine_over_one_sample": measured["engine"] / measured["one_sample"]}


def load(given: argparse.Namespace) -> DcsftHF:
    """The model, with images of one size."""
    pixels = given.side**2
    return DcsftHF(pretrained=given.model, device=given.device, min_pixels=pixels, max_pixels=pixels)


def main() -> None:
    """Runs the comparison that the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(checkpoint.path()))
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--long", type=int, default=0, help="longest response of the ragged comparison")
    parser.add_argument("--peak", action="store_true", help="compare peak memory instead")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu is for one thread on a busy machine"
    )
    given = parser.parse_args()
    global CLOCK
    CLOCK = CLOCKS[given.clock]
    model = load(given)
    prepared = prepare(model, given.items)
    if given.peak:
        results: dict[str, Any] = peaks(given)
    elif given.long:
        results = long_answers(model, prepared, given.rounds, given.long)
    else:
        results = compare(
            {name: work for name, work in ways(model, prepared).items() if name != "one_sample"}, given.rounds
        )
    machine = {"threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    tokens = int(prepared[0].features["input_ids"].shape[1])
    print(json.dumps({**vars(given), "prompt_tokens": tokens, **machine, **versions, "results": results}))


if __name__ == "__main__":
    main()
