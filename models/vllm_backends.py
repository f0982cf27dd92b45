"""vLLM's offline engine and a running `vllm serve`, for `dcsft_vllm`."""

import base64
import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
import tenacity
import torch
from openai.types.chat import ChatCompletion
from PIL import Image

from dcsft_harness import ranks
from dcsft_harness.artifacts import usage
from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments, VLLMSettings
from .base import UnavailableError
from .decoding import row_key
from .requests import Prompt, filled
from .weights import error_line

# Requests from `dcsft_vllm` to an engine or a server, and the results.

# vLLM raises any temperature between 0 and this value to this value.
_LEAST_TEMPERATURE = 0.01
_SEEDS = 1 << 62


@dataclass(frozen=True)
class Draw:
    """A prompt and a run of consecutive samples of it."""

    name: str  # the task and document, for errors
    prompt: Prompt  # the chat, and its images
    tokens: list[int]  # the rendered prompt's token ids, one placeholder per image
    size: int  # tokens of prompt and images together
    n: int  # the number of samples
    seed: int | None  # of the first sample, counting up from there; None for greedy decoding


@dataclass(frozen=True)
class Drawn:
    """The result of a `Draw`."""

    n_prompt_tokens: int  # tokens of prompt and images together
    rows: list[list[int]]  # per sample, the generated token ids, the end token included
    # Tokens of the prompt that the engine computed for all samples together, not read from its cache; the
    # first draw of a call has those of all. None if the engine does not say.
    n_prefilled: int | None = None


def sample_seed(seed: int, item_key: str, sample_index: int) -> int:
    """The seed of a sample, below 2**63.

    vLLM gives the i-th of a request's n samples the request's seed plus i. Seeds of an item count up with the
    sample index, so a sample has the same seed in any request: the full draw, one round, or the rest of an
    interrupted run. The item's key is its content hash, as text; sample indices count from 0.
    """
    return row_key(seed, item_key, 0) % _SEEDS + sample_index


def neighbors(indices: Sequence[int]) -> list[list[int]]:
    """Ascending sample indices as runs of consecutive ones."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def sampling(draw: Draw, arguments: GenerationArguments, end: tuple[int, ...]) -> dict[str, Any]:
    """Generation arguments under vLLM's names, with a value for every one that has a default.

    vLLM would take missing ones from the checkpoint's generation config. `end` are token ids that end a
    response.
    """
    # A nucleus of no mass is the likeliest token.
    only_likeliest = arguments.top_p == 0.0
    return {
        "n": draw.n,
        "seed": draw.seed,
        "temperature": arguments.temperature,
        "top_p": 1.0 if only_likeliest else arguments.top_p,
        "top_k": 1 if only_likeliest else arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": arguments.max_new_tokens,
        # vLLM looks for stop texts only after the least length; `completion` also cuts at earlier ones.
        "min_tokens": arguments.min_new_tokens,
        "stop": list(arguments.stop),
        "stop_token_ids": list(end),
        "skip_special_tokens": arguments.skip_special_tokens,
    }


def check(arguments: GenerationArguments, task: str) -> None:
    """Refuses arguments that vLLM would not apply as defined.

    Raises:
        HarnessError: naming the argument and the task.
    """
    where = f"generation argument of task {task!r}"
    if not arguments.use_cache:
        raise HarnessError(f"{where}: use_cache=False, but vLLM always keeps a cache", "Leave it out")
    if 0.0 < arguments.temperature < _LEAST_TEMPERATURE:
        raise HarnessError(
            f"{where}: temperature={arguments.temperature}, which vLLM would raise to {_LEAST_TEMPERATURE}",
            "Use 0 for greedy decoding",
        )
    if arguments.min_new_tokens > arguments.max_new_tokens:
        raise HarnessError(
            f"{where}: min_new_tokens={arguments.min_new_tokens} exceeds"
            f" max_new_tokens={arguments.max_new_tokens}",
            "Lower it",
        )
    if arguments.min_p > 0.0 and arguments.top_p < 1.0:
        raise HarnessError(
            f"{where}: min_p={arguments.min_p} and top_p={arguments.top_p} together: vLLM applies them in"
            " another order than transformers, which keeps other tokens",
            "Use only one of them",
        )


# vLLM's offline engine, for `dcsft_vllm`; vLLM is imported when the engine is opened.


@dataclass(frozen=True)
class Limits:
    """What an engine reserves memory for."""

    tokens: int  # most tokens of prompt and response
    images: int  # most images of a prompt


def require_vllm() -> None:
    """Reports a missing vLLM, without importing it.

    Raises:
        HarnessError: it is missing.
    """
    if importlib.util.find_spec("vllm") is None:
        raise HarnessError(
            "dcsft_vllm needs vLLM, which is not installed here",
            "Install it into this environment (the extra `vllm`), give base_url=URL of a running"
            " `vllm serve`, or use dcsft_hf",
        )


class OfflineEngine:
    """A checkpoint in vLLM's `LLM`, in this process."""

    def __init__(
        self,
        checkpoint: str,
        settings: VLLMSettings,
        limits: Limits,
        sizes: dict[str, int] | None,
        adapter_rank: int | None,
    ) -> None:
        """Loads the weights of `settings.pretrained`, or of its merge with the adapter.

        `sizes` are the processor's pixel limits, as its `size` takes them; None keeps its own. `adapter_rank`
        is that of `settings.adapter` if it is sent as a LoRA request; else None.

        Raises:
            HarnessError: vLLM refuses the checkpoint or an argument, or the machine has too few GPUs.
        """
        # Standard output belongs to the command; vLLM would write its messages there.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self._sockets = tempfile.TemporaryDirectory(prefix="dcsft-vllm-", ignore_cleanup_errors=True)
        self._adapter = None
        options = _options(settings, limits, sizes) | _for_this_platform()
        if adapter_rank is not None:
            served = next(rank for rank in SERVED_RANKS if rank >= adapter_rank)
            self._adapter = LoRARequest("adapter", 1, settings.adapter)
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": served}
        # Sockets in a folder of our own, unless the user named one: vLLM leaves them where they are.
        folder = os.environ.get("VLLM_RPC_BASE_PATH") or self._sockets.name
        own = _own_devices(settings.tensor_parallel_size or 1)
        try:
            with _environment({"VLLM_RPC_BASE_PATH": folder, **own}):
                self._llm = LLM(model=checkpoint, **options)
        except _refusals(RuntimeError, OSError, ImportError) as error:
            self._sockets.cleanup()
            short = _too_much(options)
            raise HarnessError(
                f"vLLM cannot serve pretrained={settings.pretrained} ({error_line(error)}){short}",
                "Set VLLM_CPU_KVCACHE_SPACE=4, the GB of its cache, or a smaller gpu_memory_utilization"
                if short
                else "See its messages above; dcsft_hf takes any transformers checkpoint",
            ) from error
        self._closed = threading.Event()
        core = self._llm.llm_engine.engine_core
        if hasattr(core, "outputs_queue"):  # the engine is a process
            threading.Thread(target=_report_death, args=(core, self._closed), daemon=True).start()

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

        # The text is made from the tokens, as in dcsft_hf; vLLM itself needs it only for stop texts.
        extra = {"detokenize": bool(arguments.stop)}
        try:
            params = [SamplingParams(**sampling(one, arguments, end), **extra) for one in draws]
        except _refusals() as error:
            raise HarnessError(
                f"{draws[0].name}: vLLM refuses the generation arguments ({error_line(error)})",
                "Override it with `--gen_kwargs`, or use dcsft_hf",
            ) from error
        before = self._prefilled()
        try:
            outputs = self._llm.generate(
                [_prompt(one) for one in draws], params, lora_request=self._adapter, use_tqdm=False
            )
        except EngineDeadError as error:
            raise UnavailableError(
                f"vLLM's engine died at {draws[0].name}",
                "See its messages above, and start again",
            ) from error
        except _refusals() as error:
            names = draws[0].name + (f" to {draws[-1].name}" if len(draws) > 1 else "")
            raise HarnessError(
                f"{names}: vLLM refuses the prompt ({error_line(error)})", "Raise the limit that it names"
            ) from error
        new = self._prefilled() - before
        return [
            Drawn(
                len(output.prompt_token_ids),
                [list(row.token_ids) for row in output.outputs],
                0 if at else new,
            )
            for at, output in enumerate(outputs)
        ]

    def _prefilled(self) -> int:
        """Tokens of prompts computed so far, by vLLM's own counters."""
        sums = {"vllm:prompt_tokens": 0, "vllm:prefix_cache_hits": 0}
        for one in self._llm.get_metrics():
            if one.name in sums:
                sums[one.name] += int(one.value)
        return sums["vllm:prompt_tokens"] - sums["vllm:prefix_cache_hits"]

    def close(self) -> None:
        """Ends the engine's processes and frees its memory."""
        self._closed.set()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._sockets.cleanup()


def _report_death(core: Any, closed: threading.Event) -> None:  # noqa: ANN401 - vLLM's SyncMPClient
    """Wakes a call that waits for an engine whose process was killed; vLLM 0.32 lets it wait forever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    while not closed.wait(0.5):
        if core.resources.engine_dead or core.resources.engine_manager.finished_procs():
            core.outputs_queue.put_nowait(EngineDeadError())
            return


_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""A launch's environment variables, which the engine's own processes would take for theirs."""


def _own_devices(devices: int) -> dict[str, str | None]:
    """In a launch, the environment in which an engine uses this rank's own GPUs, `devices`, or processors.

    Raises:
        HarnessError: the machine has too few.
    """
    if ranks.world_size() == 1:
        return {}
    launch = dict.fromkeys(_LAUNCH)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    count = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), rank + 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(at) for at in range(torch.cuda.device_count())]
    if names and visible is not None:
        names = [name.strip() for name in visible.split(",")]
    if not names:
        if "VLLM_CPU_OMP_THREADS_BIND" in os.environ:
            return launch
        own = sorted(os.sched_getaffinity(0))[rank::count]  # else all bind their threads to the same ones
        return {**launch, "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, own)) or "nobind"}
    if len(names) == devices:  # the launcher shows each process its own
        return launch
    if len(names) < count * devices:
        raise HarnessError(
            f"{count} processes with tensor_parallel_size={devices} need {count * devices} GPUs, but this"
            f" machine has {len(names)}",
            f"Start {len(names) // devices} processes" if len(names) >= devices else "Lower it",
        )
    # A process that inherited torch's state by a fork would take the launch's group for its own.
    shown = ",".join(names[rank * devices : (rank + 1) * devices])
    return {**launch, "CUDA_VISIBLE_DEVICES": shown, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Sets environment variables, or removes those that are None, until the block ends."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _options(settings: VLLMSettings, limits: Limits, sizes: dict[str, int] | None) -> dict[str, Any]:
    """`LLM`'s arguments; unset ones keep vLLM's defaults."""
    chosen = {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "mm_processor_kwargs": None if sizes is None else {"size": sizes},
    }
    return {
        "disable_log_stats": False,  # they count what is prefilled
        "dtype": settings.dtype or "auto",
        "enable_prefix_caching": True,
        "enforce_eager": settings.enforce_eager,
        # The task does not use the checkpoint's own sampling settings.
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"image": limits.images, "video": 0},
        "max_model_len": limits.tokens,
        "seed": settings.seed % (1 << 32),
        "trust_remote_code": settings.trust_remote_code,
        **{name: value for name, value in chosen.items() if value is not None},
    }


def _for_this_platform() -> dict[str, Any]:
    """Settings that vLLM needs on a CPU.

    A prompt that is prefilled in several steps draws a token at each and takes all but the last one back.
    torch's generators can do that only on a GPU; on a CPU the engine crashes.
    """
    from vllm.platforms import current_platform

    return {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}


def _too_much(options: Mapping[str, Any]) -> str:
    """What vLLM wants of a CPU's memory where that is not free; its engine's process says it in a trace."""
    share = options.get("gpu_memory_utilization") or 0.92
    total, free = usage.machine_memory()
    given = os.environ.get("VLLM_CPU_KVCACHE_SPACE") or options.get("kv_cache_memory_bytes")
    if given or not _for_this_platform() or share * total <= free:
        return ""
    wanted, left = (usage.gigabytes(size) for size in (share * total, free))
    return f": it takes {100 * share:.0f} % of the memory, {wanted}, but only {left} are free"


def _refusals(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The errors that vLLM raises for unsupported input; some versions have their own classes."""
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


SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the largest LoRA rank."""


# A running `vllm serve`, for `dcsft_vllm`, through its OpenAI-compatible API.

_T = TypeVar("_T")

_LOG = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Delay in seconds before the first retry of a request, and its maximum; it doubles in between."""
# Parameters of the API itself; the others are vLLM's extensions.
_STANDARD = (
    "n",
    "seed",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
    "stop",
)


class Server:
    """The API of one model.

    Attributes:
        served: the server's name of the model.
    """

    def __init__(
        self,
        settings: VLLMSettings,
        sizes: dict[str, int] | None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Connects.

        `sizes` are the processor's pixel limits, as its `size` takes them; None keeps its own.
        `template_arguments` are further ones of the chat template.

        Raises:
            HarnessError: the server cannot be reached, or does not have the model.
        """
        assert settings.base_url is not None
        self._url, self._attempts = settings.base_url, settings.attempts
        self._at_once = settings.batch_size
        self._extra: dict[str, Any] = {} if sizes is None else {"mm_processor_kwargs": {"size": sizes}}
        if template_arguments:
            self._extra["chat_template_kwargs"] = dict(template_arguments)
        # The client's own retries are off: ours report what they wait for, and for how long.
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get("OPENAI_API_KEY", "EMPTY"),
            max_retries=0,
            timeout=settings.timeout,
        )
        self.served = self._find(settings.served_model_name)

    def _find(self, wanted: str | None) -> str:
        names = [
            str(model.id) for model in self._patiently("the list of models", self._client.models.list).data
        ]
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted is None or wanted not in names:
            raise HarnessError(
                f"base_url={self._url} serves {', '.join(names) or 'nothing'}"
                + (f", not {wanted}" if wanted else ""),
                "Set served_model_name=NAME, one of them",
            )
        return wanted

    def draw(
        self, draws: Sequence[Draw], arguments: GenerationArguments, end: tuple[int, ...]
    ) -> list[Drawn]:
        """Generates for all draws, as many at once as a batch has items.

        Raises:
            HarnessError: the server refuses a request, or cannot be reached.
        """
        with ThreadPoolExecutor(max_workers=min(self._at_once, max(1, len(draws)))) as pool:
            futures = [pool.submit(self._draw, one, arguments, end) for one in draws]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # one error is enough
                raise

    def close(self) -> None:
        """Closes the connections; the server keeps running."""
        self._client.close()

    def _draw(self, draw: Draw, arguments: GenerationArguments, end: tuple[int, ...]) -> Drawn:
        values = sampling(draw, arguments, end)
        standard = {name: values.pop(name) for name in _STANDARD}
        if standard["seed"] is None:
            del standard["seed"]
        answer = self._patiently(
            draw.name,
            lambda: self._client.chat.completions.create(
                model=self.served,
                messages=filled(draw.prompt, _part),  # type: ignore[arg-type]
                extra_body={**values, **self._extra, "return_token_ids": True},
                **standard,
            ),
        )
        return self._read(draw, answer)

    def _read(self, draw: Draw, answer: ChatCompletion) -> Drawn:
        """Token ids of an answer, for counting and cutting as with every engine."""
        prompt = getattr(answer, "prompt_token_ids", None)
        rows = [
            getattr(choice, "token_ids", None) for choice in sorted(answer.choices, key=lambda one: one.index)
        ]
        if prompt is None or len(rows) != draw.n or any(row is None for row in rows):
            raise HarnessError(
                f"{draw.name}: base_url={self._url} answered {len(rows)} of {draw.n} samples, or without"
                " their token ids",
                "Serve the model with vLLM 0.22 or newer",
            )
        return Drawn(len(prompt), [list(row) for row in rows if row is not None])

    def _patiently(self, what: str, request: Callable[[], _T]) -> _T:
        """The response to a request, after at most the allowed number of tries.

        Raises:
            HarnessError: the request is refused, or all tries failed.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passing),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_exponential(FIRST_WAIT, LONGEST_WAIT) + tenacity.wait_random(0, FIRST_WAIT),
            before_sleep=lambda state: _announce(what, state),
            reraise=True,
        )
        try:
            return retrying(request)
        except openai.OpenAIError as error:
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: openai.OpenAIError) -> HarnessError:
        outcome, remedy = "refuses it", "Change what it names"
        kind = UnavailableError if _passing(error) else HarnessError
        if _passing(error):
            outcome = "does not answer" + (f", tried {self._attempts} times" if self._attempts > 1 else "")
            remedy = "Look at the server's log, or give more attempts"
        if isinstance(error, openai.APIConnectionError):
            remedy = "Start `vllm serve`, or correct the address"
        return kind(f"{what}: base_url={self._url} {outcome} ({error_line(error)})", remedy)


def _announce(what: str, state: tenacity.RetryCallState) -> None:
    if state.outcome is not None and state.next_action is not None:
        trouble, wait = state.outcome.exception(), state.next_action.sleep
        _LOG.warning("%s: %s; trying again in %.1f s", what, trouble and error_line(trouble), wait)


def _passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code == 429 or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)  # timeouts included


def _part(image: Image.Image) -> dict[str, Any]:
    """An image in the API's format: a data URL of a PNG, which is lossless."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
