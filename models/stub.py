"""`dcsft_stub`: a scripted model, for tests of everything except the model.

    lmms-eval --model dcsft_stub --model_args answers=FILE.jsonl,default=TEXT --tasks TASK

A line of the file is `{"task": T, "doc_id": N, "responses": [...]}` or
`{"prompt": TEXT, "responses": [...]}`. Sample index i gets response i, starting again from the first after
the last.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcsft_harness import reading
from dcsft_harness.coordinates import declare
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation, cut_at
from dcsft_harness.settings import option

from .arguments import Arguments
from .base import ObservedModel
from .requests import Item


@dataclass(frozen=True)
class Question:
    """The inputs of a scripted answer."""

    task: str  # the lmms-eval task's name
    doc_id: int  # the document's position in its split
    sample_index: int  # which of its responses is asked for, from 0
    prompt: str  # the prompt text that lmms-eval built


_MOST = 2**30
"""The largest script to read, in bytes."""

Answers = Callable[[Question], str | None]


class StubArguments(Arguments):
    """What `dcsft_stub` takes."""

    answers: Any = option(None, "The script: a function, or a JSON Lines file in the module's format.")
    default: str | None = option(None, "The response where the script has none, which is an error otherwise.")
    batch_size: int = option(1, "Items after which observers are called.", ge=1)
    delay: float = option(0.0, "Seconds that these items take.", ge=0)
    seed: int = option(0, "Recorded in every `Generation`; nothing is drawn.", ge=0)
    device: str | None = option(None, "Unused, as the next ones: what lmms-eval passes to every model.")
    pretrained: str | None = None
    adapter: str | None = None


class DcsftStub(ObservedModel):
    """A model with prewritten responses.

    Tokens are whitespace-separated words, plus one for the end. Generation arguments are
    checked like `dcsft_hf`'s, and responses cut at stop texts; a response of more than
    `max_new_tokens` words keeps that many and finishes by "length".
    """

    def __init__(self, answers: str | Path | Answers | None = None, **given: object) -> None:
        """Reads `StubArguments`."""
        super().__init__()
        settings = StubArguments.from_options(given if answers is None else {"answers": answers, **given})
        self.batch_size, self.seed, self._delay = settings.batch_size, settings.seed, settings.delay
        self.device = torch.device("cpu")
        self._default = settings.default
        self._answers: Answers = _script(settings.answers)
        declare(self.box_convention)

    def _answer(self, items: list[Item]) -> list[list[Generation]]:
        time.sleep(self._delay)
        return [[self._generation(item, index) for index in item.sample_indices] for item in items]

    def _generation(self, item: Item, index: int) -> Generation:
        response = self._answers(Question(item.task, item.doc_id, index, item.context))
        response = self._default if response is None else response
        if response is None:
            raise HarnessError(
                f"dcsft_stub has no response to {item.name}", "Add one to its answers, or set default=TEXT"
            )
        text, _ = cut_at(response, item.arguments.stop)
        words, limit = text.split(), item.arguments.max_new_tokens
        whole = len(words) < limit
        return Generation(
            task=item.task,
            doc_id=item.doc_id,
            sample_index=index,
            response=text if whole else " ".join(words[:limit]),
            n_prompt_tokens=len(item.context.split()),
            n_tokens=len(words) + 1 if whole else limit,
            finish_reason="stop" if whole else "length",
            seed=self._seed(item),
        )


def _script(answers: str | Path | Answers | None) -> Answers:
    """The script as a function; a missing file or a line of neither form is an error."""
    if answers is None:
        return lambda question: None
    if not isinstance(answers, str | Path):
        return answers
    table: dict[object, list[str]] = {}
    if not Path(answers).is_file():
        raise HarnessError(f"answers={answers}: the file does not exist", "Pass a JSON Lines file")
    try:
        lines = reading.read_text(Path(answers), _MOST).split("\n")
    except (OSError, ValueError) as error:
        raise HarnessError(f"answers={answers} cannot be read ({error})", "Pass a JSON Lines file") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, responses = _row(line, f"{answers}, line {number}")
            table[key] = responses

    def look_up(question: Question) -> str | None:
        responses = table.get((question.task, question.doc_id)) or table.get(question.prompt)
        return responses[question.sample_index % len(responses)] if responses else None

    return look_up


def _row(line: str, where: str) -> tuple[object, list[str]]:
    """One line of a script: the item that it answers, and the responses."""
    try:
        row = reading.json_object(line)
        key: object = row["prompt"] if "prompt" in row else (row["task"], row["doc_id"])
        responses = row["responses"]
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{where} is not a scripted answer ({type(error).__name__}: {error})",
            'Write {"task": T, "doc_id": N, "responses": [...]} or {"prompt": TEXT, "responses": [...]}',
        ) from error
    if (
        not isinstance(responses, list)
        or not responses
        or not all(isinstance(text, str) for text in responses)
    ):
        raise HarnessError(f"{where}: responses is not a list of texts", 'Write "responses": ["..."]')
    return key, responses
