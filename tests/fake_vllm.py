"""Engines that answer by rule, for tests of `dcsft_vllm` without vLLM."""

import sys
import types

import pytest
from transformers import AutoImageProcessor


class VLLMError(Exception):
    """As vLLM's: of no kind that Python has."""


class EngineDeadError(VLLMError):
    """As vLLM's."""


BLOCK = 16
"""Tokens of a block: a prompt's whole blocks are shared by its samples."""


class FakeLLM:
    """`vllm.LLM` as far as `dcsft_vllm` uses it: a response is its seed's digits, then the end token."""

    opened: list[dict] = []
    keeps_own_limits = False

    def __init__(self, model, **options):
        self.options = {"model": model, **options}
        self.calls = []
        self.closed = False
        self.prompt_tokens = self.hits = 0
        FakeLLM.opened.append(self.options)
        FakeLLM.last = self
        core = types.SimpleNamespace(shutdown=lambda: setattr(self, "closed", True))
        self.llm_engine = types.SimpleNamespace(engine_core=core)

    def generate(self, prompts, params, lora_request, use_tqdm):
        self.calls.append((prompts, params, lora_request))
        outputs = [self.output(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        for output in outputs:
            tokens, samples = len(output.prompt_token_ids), len(output.outputs)
            self.prompt_tokens += samples * tokens
            self.hits += (samples - 1) * (tokens - tokens % BLOCK)
        return outputs

    def get_metrics(self):
        """Sums so far, one metric for each; and one of another kind."""
        assert self.options["disable_log_stats"] is False  # as vLLM asserts it
        sums = {"vllm:prompt_tokens": self.prompt_tokens, "vllm:prefix_cache_hits": self.hits}
        counters = [types.SimpleNamespace(name=name, value=value) for name, value in sums.items()]
        return [*counters, types.SimpleNamespace(name="vllm:time_to_first_token_seconds", count=1, sum=0.5)]

    def output(self, prompt, params):
        rows = [
            self.row(prompt, params, None if params.seed is None else params.seed + n)
            for n in range(params.n)
        ]
        outputs = [types.SimpleNamespace(token_ids=tuple(row)) for row in rows]
        return types.SimpleNamespace(prompt_token_ids=self.expanded(prompt), outputs=outputs)

    def expanded(self, prompt):
        """The prompt with the tokens that the checkpoint's processor makes of its images."""
        ids, images = prompt["prompt_token_ids"], prompt.get("multi_modal_data", {}).get("image") or []
        if not images:
            return ids
        processor = AutoImageProcessor.from_pretrained(self.options["model"])
        limits = {} if FakeLLM.keeps_own_limits else self.options.get("mm_processor_kwargs") or {}
        grids = processor(images, return_tensors="pt", **limits).get("image_grid_thw")
        more = 0 if grids is None else int(grids.prod(-1).sum()) // processor.merge_size**2 - len(images)
        return [*ids, *[0] * more]

    def row(self, prompt, params, seed):
        number = len(prompt["prompt_token_ids"]) if seed is None else seed
        return [40 + int(digit) for digit in str(number)][: params.max_tokens - 1] + [
            params.stop_token_ids[0]
        ]


def install(patch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """Puts a `vllm` that is made of fakes where imports find it."""
    names = ("vllm", "vllm.lora", "vllm.lora.request", "vllm.platforms", "vllm.exceptions")
    names += ("vllm.v1", "vllm.v1.engine", "vllm.v1.engine.exceptions")
    modules = {name: types.ModuleType(name) for name in names}
    vllm, request = modules["vllm"], modules["vllm.lora.request"]
    vllm.LLM = FakeLLM
    vllm.SamplingParams = types.SimpleNamespace
    request.LoRARequest = lambda name, number, path: (name, number, path)
    modules["vllm.platforms"].current_platform = types.SimpleNamespace(is_cpu=lambda: True)
    modules["vllm.exceptions"].VLLMError = VLLMError
    modules["vllm.v1.engine.exceptions"].EngineDeadError = EngineDeadError
    for module in modules.values():
        module.__spec__ = types.SimpleNamespace(name=module.__name__)
        patch.setitem(sys.modules, module.__name__, module)
    FakeLLM.opened = []
    return FakeLLM
