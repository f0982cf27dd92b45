"""vLLM's own offline engine, for `dcsft_vllm`; vLLM is imported when it is opened."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .base import UnavailableError
from .vllm_requests import Draw, Drawn, sampling
from .vllm_settings import VLLMSettings


@dataclass(frozen=True)
class Limits:
    """What an engine reserves memory for.

    Attributes:
        tokens: most tokens of prompt and response.
        images: most images of a prompt.
    """

    tokens: int
    images: int


def require_vllm() -> None:
    """Says that vLLM is missing, without importing it.

    Raises:
        HarnessError: it is.
    """
    if importlib.util.find_spec("vllm") is None:
        raise HarnessError(
            "dcsft_vllm needs vLLM, which is not installed here",
            "Install it into this environment (the extra `vllm`), give base_url=URL of a running"
            " `vllm serve`, or use dcsft_hf",
        )


class OfflineEngine:
    """A checkpoint in an `LLM` of this process's own.

    Attributes:
        limits: what it was opened for.
    """

    def __init__(
        self,
        checkpoint: str,
        settings: VLLMSettings,
        limits: Limits,
        sizes: dict[str, int] | None,
        adapter_rank: int | None,
    ) -> None:
        """Loads the weights.

        Args:
            checkpoint: the folder or hub name; `settings.pretrained`, or its merge with the adapter.
            settings: how to run.
            limits: what to reserve memory for.
            sizes: the processor's pixel limits, as its `size` takes them; None keeps its own.
            adapter_rank: rank of `settings.adapter`, which goes on as a LoRA request; None for none.

        Raises:
            HarnessError: vLLM is missing or refuses the checkpoint or an argument.
        """
        require_vllm()
        # Standard output is the command's; vLLM's messages would go there.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.limits = limits
        self._adapter = None
        options = _options(settings, limits, sizes) | _for_this_platform()
        if adapter_rank is not None:
            self._adapter = LoRARequest("adapter", 1, settings.adapter)
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _served_rank(adapter_rank)}
        try:
            self._llm = LLM(model=checkpoint, **options)
        except _refusals(RuntimeError, OSError, ImportError) as error:
            raise HarnessError(
                f"vLLM cannot serve pretrained={settings.pretrained} ({_line(error)})",
                "Look at its messages above; dcsft_hf takes any transformers checkpoint",
            ) from error

    def draw(
        self, draws: Sequence[Draw], arguments: GenerationArguments, end: tuple[int, ...]
    ) -> list[Drawn]:
        """Generates for all draws at once.

        Raises:
            HarnessError: vLLM refuses a prompt or an argument.
            UnavailableError: its engine died.
        """
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        # The text is made from the tokens, as dcsft_hf makes it; vLLM needs it for stop texts alone.
        extra = {"detokenize": bool(arguments.stop)}
        try:
            params = [SamplingParams(**sampling(one, arguments, end), **extra) for one in draws]
        except _refusals() as error:
            raise HarnessError(
                f"{draws[0].name}: vLLM refuses the generation arguments ({_line(error)})",
                "Override it with `--gen_kwargs`, or use dcsft_hf",
            ) from error
        try:
            outputs = self._llm.generate(
                [_prompt(one) for one in draws], params, lora_request=self._adapter, use_tqdm=False
            )
        except EngineDeadError as error:
            raise UnavailableError(
                f"vLLM's engine died at {draws[0].name}", "Look at its messages above, and start again"
            ) from error
        except _refusals() as error:
            names = draws[0].name + (f" to {draws[-1].name}" if len(draws) > 1 else "")
            raise HarnessError(
                f"{names}: vLLM refuses the prompt ({_line(error)})", "Raise the limit that it names"
            ) from error
        return [
            Drawn(len(output.prompt_token_ids), [list(row.token_ids) for row in output.outputs])
            for output in outputs
        ]

    def close(self) -> None:
        """Ends the engine's processes and frees its memory."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm


def _options(settings: VLLMSettings, limits: Limits, sizes: dict[str, int] | None) -> dict[str, Any]:
    """`LLM`'s arguments; what is unset is left to vLLM."""
    chosen = {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "mm_processor_kwargs": None if sizes is None else {"size": sizes},
    }
    return {
        "dtype": settings.dtype or "auto",
        "enable_prefix_caching": True,
        "enforce_eager": settings.enforce_eager,
        # The checkpoint's own sampling settings are not the task's.
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"image": limits.images, "video": 0},
        "max_model_len": limits.tokens,
        "seed": settings.seed % (1 << 32),
        "trust_remote_code": settings.trust_remote_code,
        **{name: value for name, value in chosen.items() if value is not None},
    }


def _for_this_platform() -> dict[str, Any]:
    """What vLLM needs where it runs on processors alone.

    A prompt that is prefilled in several steps draws a token at each and takes all but the last
    one back, which torch's generators can do on a GPU only: on a CPU the engine dies of it.
    """
    from vllm.platforms import current_platform

    return {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}


def _refusals(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What vLLM raises for what it does not take, and others; some versions have their own classes for it."""
    try:
        from vllm.exceptions import VLLMError
    except ImportError:
        return (ValueError, *others)
    return (ValueError, VLLMError, *others)


def _prompt(draw: Draw) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt_token_ids": draw.tokens}
    if draw.prompt.images:
        prompt["multi_modal_data"] = {"image": draw.prompt.images}
    return prompt


def _served_rank(rank: int) -> int:
    """The least of the ranks that vLLM reserves memory for."""
    return next(served for served in SERVED_RANKS if served >= rank)


SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes as the largest LoRA rank."""


def _line(error: Exception) -> str:
    """The first line of a message that may run over many."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
