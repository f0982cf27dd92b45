"""Drawing G responses per item: `dcsft_hf` against other common ways, and against the bound.

    python -m benchmarks.sampling --shape digits --rounds 5

Real digits on the checkpoint, features prepared beforehand, every response of four tokens. The last
comparison starts from lmms-eval's requests instead, images unprocessed, as its own backend does.
"""

import json
import sys
import types
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from transformers import AutoModelForImageTextToText

from benchmarks import shapes
from benchmarks.measuring import Way, median, ratio, rounds
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.engine import Prepared
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import Asked, Drawing, Item
from dcsft_harness.models.scheduler import Scheduler
from dcsft_harness.models.shared_prefix import prefill

PAPER_BATCH = 4
SIDES = {"digits": {224: 32, 448: 16}, "qwen2.5-vl-3b": {896: 16}}
"""Per shape, image sides in pixels and items per batch; 896 px are 1,024 image tokens."""


def sides(shape: str, layers: int | None) -> dict[int, int]:
    """The sides and items of a shape; small and few for a trial with fewer layers."""
    return {224: shapes.FEW} if layers else SIDES[shape]


def draw(
    model: DcsftHF,
    items: Sequence[Item],
    prepared: Sequence[Prepared],
    arguments: GenerationArguments,
    at_once: int | None = None,
) -> None:
    """The engine on prepared items.

    Args:
        model: whose engine.
        items: what is asked.
        prepared: the same, in the same order.
        arguments: how to generate.
        at_once: items at a time; None all.
    """
    known = {item.doc_id: one for item, one in zip(items, prepared, strict=True)}
    queue = deque((Drawing(item), replace(item, arguments=arguments)) for item in items)

    def refuse(asked: Asked, error: HarnessError) -> None:
        raise error

    rows = shapes.SAMPLES * (at_once or len(items))
    stream = Scheduler(
        model._engine, queue, lambda asked: known[asked[1].doc_id], refuse, seed=0, rows=rows, hold=False
    )
    for _ in stream:
        pass


class Peer:
    """The same checkpoint as transformers loads and runs it."""

    def __init__(self, model: DcsftHF, tokens: int = shapes.NEW_TOKENS) -> None:
        """Loads it next to `model`, to draw responses of this number of tokens."""
        self.tokens = tokens
        dtype = model._model.dtype
        self.model = AutoModelForImageTextToText.from_pretrained(model.settings.pretrained, dtype=dtype)
        self.model = self.model.to(model.device).eval()
        self.batch = model._engine._batch

    def draw(self, prepared: Sequence[Prepared], batch: int, returned: int) -> None:
        """Sampling by transformers, `returned` responses per item."""
        for start in range(0, len(prepared), batch):
            self.model.generate(
                **self.batch(prepared[start : start + batch]),
                do_sample=True,
                temperature=shapes.ARGUMENTS.temperature,
                top_k=shapes.ARGUMENTS.top_k,
                max_new_tokens=self.tokens,
                min_new_tokens=self.tokens,
                num_return_sequences=returned,
            )

    def passes(self, prepared: Sequence[Prepared], batch: int) -> None:
        """The paper's protocol: one pass over the whole pool per sample."""
        for _ in range(shapes.SAMPLES):
            self.draw(prepared, batch, 1)


def ways(model: DcsftHF, number: int) -> dict[str, Way]:
    """The ways that are compared, by name."""
    items = shapes.items(model, number)
    prepared = shapes.prepare(model, items)
    peer = Peer(model)
    batch = peer.batch(prepared)
    return {
        "engine": lambda: draw(model, items, prepared, shapes.ARGUMENTS),
        "prefill of the same batch": lambda: prefill(peer.model, batch),
        "own prefill": lambda: model._engine.prefill(prepared),
        "generate(num_return_sequences=8)": lambda: peer.draw(prepared, number, shapes.SAMPLES),
        "8 passes, same batch": lambda: peer.passes(prepared, number),
        "8 passes, batch 4": lambda: peer.passes(prepared, PAPER_BATCH),
    }


def parity(model: DcsftHF, prepared: Sequence[Prepared]) -> dict[str, Any]:
    """Difference in logits between single rows and the same rows in one batch, padded to one length."""
    answers = [list(range(20, 20 + at)) for at in range(len(prepared))]
    alone = [model._engine.forced([one], [said])[0] for one, said in zip(prepared, answers, strict=True)]
    pairs = list(zip(alone, model._engine.forced(prepared, answers), strict=True))
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
    return {
        "rows": len(pairs),
        "dtype": str(model._model.dtype).removeprefix("torch."),
        "same first choice": round(float(same.float().mean()), 4),
        "largest difference over the spread": round(
            max(float((a.float() - b.float()).abs().max() / a.float().std()) for a, b in pairs), 4
        ),
    }


def requests(model: lmms, number: int) -> list[Instance]:
    """The requests that lmms-eval makes with `repeats: 8`."""
    from dcsft_harness.data.digits import suite

    model.task_dict["bench"] = {"test": suite.load("dcsft_digits_pool")}
    given = {"max_new_tokens": shapes.NEW_TOKENS, "temperature": 0.9, "top_k": 50, "do_sample": True}
    rows = []
    for doc_id in range(number):
        row = Instance(
            request_type="generate_until",
            arguments=("", shapes.to_messages, given, doc_id, "bench", "test"),
            idx=0,
            metadata={"task": "bench", "doc_id": doc_id, "repeats": shapes.SAMPLES},
        )
        rows += [row] * shapes.SAMPLES
    return rows


def backends(shape: str, side: int, number: int, layers: int | None = None) -> dict[str, Way]:
    """`generate_until` of lmms-eval's own backend and of ours, from requests to responses."""
    # The backend imports decord, for videos, which has no wheel for every machine; images do without.
    sys.modules.setdefault("decord", types.ModuleType("decord"))
    from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL

    pixels, device = side**2, shapes.device_of(shape)
    ours = shapes.load(shape, side, layers, batch_size=number)
    found: dict[str, Way] = {"engine": lambda: ours.generate_until(requests(ours, number))}
    for batch in (1, number):
        theirs = Qwen2_5_VL(
            pretrained=shapes.folder(shape, layers),
            device=device,
            device_map=device,
            batch_size=batch,
            min_pixels=pixels,
            max_pixels=pixels,
        )
        theirs._model = theirs._model.to(ours._model.dtype)  # it loads bfloat16, which is slow on a CPU

        def work(model: lmms = theirs) -> None:
            model.generate_until(requests(model, number))

        found[f"lmms-eval's qwen2_5_vl, batch {batch}"] = work
    return found


def report(name: str, side: int, found: dict[str, list[float]]) -> dict[str, Any]:
    """Seconds and ratios of one comparison."""
    return {
        "comparison": name,
        "side": side,
        "seconds": {way: round(median(found, way), 4) for way in found},
        "over the engine": {way: round(ratio(found, way, "engine"), 2) for way in found if way != "engine"},
    }


def main() -> None:
    """Measures and prints JSON."""
    given = shapes.parser().parse_args()
    sized = sides(given.shape, given.layers)
    results = []
    with torch.inference_mode():
        for side, number in sized.items():
            model = shapes.load(given.shape, side, given.layers)
            found = rounds(ways(model, number), given.rounds)
            results.append(report(f"{number} items, features prepared", side, found))
        side, number = next(iter(sized.items()))
        found = rounds(backends(given.shape, side, number, given.layers), given.rounds)
        results.append(report(f"{number} items, from lmms-eval's requests", side, found))
        equal = parity(model, shapes.prepare(model, shapes.items(model, shapes.SAMPLES)))
    print(json.dumps({"results": results, "parity": equal}))


if __name__ == "__main__":
    main()
