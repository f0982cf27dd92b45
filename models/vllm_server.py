"""A running `vllm serve`, for `dcsft_vllm`, through its OpenAI-compatible API."""

import base64
import io
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import openai
import tenacity
from openai.types.chat import ChatCompletion
from PIL import Image

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .base import UnavailableError
from .prompts import Prompt
from .vllm_requests import Draw, Drawn, sampling
from .vllm_settings import VLLMSettings

_T = TypeVar("_T")

_LOG = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second try of a request, and the most between two; it doubles in between."""
# Parameters that are the API's own; the others are vLLM's additions to it.
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

    def __init__(self, settings: VLLMSettings, sizes: dict[str, int] | None) -> None:
        """Connects.

        Args:
            settings: the address, and how patient to be.
            sizes: the processor's pixel limits, as its `size` takes them; None keeps its own.

        Raises:
            HarnessError: the server cannot be reached, or does not have the model.
        """
        assert settings.base_url is not None
        self._url, self._attempts = settings.base_url, settings.attempts
        self._at_once = settings.batch_size
        self._extra = {} if sizes is None else {"mm_processor_kwargs": {"size": sizes}}
        # The client's own retries are off: these say what they wait for, and for how long.
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get("OPENAI_API_KEY", "EMPTY"),
            max_retries=0,
            timeout=settings.timeout,
        )
        self.served = self._find(settings.served_model_name)

    def _find(self, wanted: str | None) -> str:
        """The name to ask for."""
        names = [
            str(model.id) for model in self._patiently("the list of models", self._client.models.list).data
        ]
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted is None or wanted not in names:
            raise HarnessError(
                f"base_url={self._url} serves {', '.join(names) or 'nothing'}"
                + (f", not {wanted}" if wanted else ""),
                "Give served_model_name=NAME, one of them",
            )
        return wanted

    def draw(
        self, draws: Sequence[Draw], arguments: GenerationArguments, end: tuple[int, ...]
    ) -> list[Drawn]:
        """Generates for all draws, as many at once as a batch has items.

        Raises:
            HarnessError: the server refuses a request, or stays out of reach.
        """
        with ThreadPoolExecutor(max_workers=min(self._at_once, max(1, len(draws)))) as pool:
            futures = [pool.submit(self._draw, one, arguments, end) for one in draws]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # one error is enough
                raise

    def close(self) -> None:
        """Closes the connections; the server runs on."""
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
                messages=_messages(draw.prompt),  # type: ignore[arg-type]
                extra_body={**values, **self._extra, "return_token_ids": True},
                **standard,
            ),
        )
        return self._read(draw, answer)

    def _read(self, draw: Draw, answer: ChatCompletion) -> Drawn:
        """Token ids of an answer; counting and cutting goes by them, as with every engine."""
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
        """A request's answer, after as many tries as allowed.

        Raises:
            HarnessError: it is refused, or the tries are used up.
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
        return kind(f"{what}: base_url={self._url} {outcome} ({_line(error)})", remedy)


def _announce(what: str, state: tenacity.RetryCallState) -> None:
    """Says that a request is tried again."""
    if state.outcome is not None and state.next_action is not None:
        trouble, wait = _line(state.outcome.exception()), state.next_action.sleep
        _LOG.warning("%s: %s; trying again in %.1f s", what, trouble, wait)


def _passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code == 429 or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)  # timeouts included


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The chat as the API takes it, images as data URLs."""
    images = iter(prompt.images)
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image_url", "image_url": {"url": _data_url(next(images))}}
                if part["type"] == "image"
                else part
                for part in message["content"]
            ],
        }
        for message in prompt.messages
    ]


def _data_url(image: Image.Image) -> str:
    """A PNG, which loses nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _line(error: BaseException | None) -> str:
    """The first line of a message that may run over many."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
