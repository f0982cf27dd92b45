"""A checkpoint's chat template: first tried under limits, then rendered with clear errors.

Run as a script, this file is the child process that tries a template; it imports only jinja2.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers import PreTrainedConfig, ProcessorMixin

SECONDS, BYTES = 5, 1 << 30
"""Processor time and memory of the trial; a published template takes milliseconds."""
_WAIT = 120.0
"""Wall-clock limit of the trial in seconds, generous for a busy machine."""
_FULL = 3
"""The child's exit code when memory ran out."""
_CUT = 200
_MEDIA = re.compile(r"\w*(image|video|vision|audio|boi|eoi|boa|eoa)\w*_(token|tag)(_id|_index)?")
"""Attributes of processors and configurations that hold a family's marks."""
NAME = "chat_template_kwargs"
"""The arguments of a template: an option, a model argument, and a note of an adapter's manifest."""
FILE = f"{NAME}.json"
"""The same in a run's checkpoint, which has no manifest; `checkpoint._DECIDING` covers it."""
_OURS = ("messages", "add_generation_prompt", "continue_final_message", "tools", "documents")
"""Variables of templates that the conversation sets."""


def check(processor: "ProcessorMixin", name: str) -> None:
    """Tries a chat template under limits of time and memory, then renders a chat with an image.

    jinja2's sandbox bounds a single `range`, not nested loops or repeated text.

    Raises:
        HarnessError: the template does not end, needs too much memory, or is broken.
    """
    from dcsft_harness.errors import HarnessError

    template = processor.chat_template
    for text in template.values() if isinstance(template, dict) else (template,):
        if not _ends(str(text)):
            raise HarnessError(
                f"model {name}: its chat template does not end within {SECONDS} s and {BYTES >> 30} GiB",
                "Take the template from where the checkpoint was published",
            )
    render(processor, question(), f"model {name}", add_generation_prompt=True)


def question(images: int = 1, text: str = "What is this?") -> list[dict[str, Any]]:
    """A chat for trials: one turn with a number of images and a question."""
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


def render(
    processor: "ProcessorMixin",
    messages: Sequence[Mapping[str, Any]],
    where: str,
    add_generation_prompt: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Messages as text; with `add_generation_prompt` it ends where an answer begins.

    `arguments` are further ones of the template, checked by `check_arguments`. A template that refuses the
    messages, or is broken, is an error that begins with `where`.
    """
    from dcsft_harness.errors import HarnessError

    try:
        return str(
            processor.apply_chat_template(
                list(messages),
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **(arguments or {}),
            )
        )
    except Exception as error:  # a template's expressions raise whatever Python does
        said = " ".join(str(error).split())[:_CUT]
        raise HarnessError(
            f"{where}: the chat template fails ({type(error).__name__}: {said})",
            "Use messages that it takes, or a checkpoint with another template",
        ) from error


def arguments_of(processor: "ProcessorMixin") -> list[str]:
    """The further arguments that a chat template uses, such as `enable_thinking`."""
    from jinja2 import meta

    environment, template = _environment(), processor.chat_template
    tree = environment.parse(template["default"] if isinstance(template, dict) else template)
    known = {*environment.globals, *_OURS, *processor.tokenizer.special_tokens_map}
    found = meta.find_undeclared_variables(tree) - known
    return sorted(name for name in found if not name.endswith("_token"))


def check_arguments(processor: "ProcessorMixin", arguments: Mapping[str, Any], name: str) -> None:
    """Refuses arguments that a chat template does not use, or fails on; errors name those that it uses."""
    from dcsft_harness.errors import HarnessError, cut

    if not arguments:
        return
    used = arguments_of(processor)
    strange = [one for one in arguments if one not in used]
    if strange:
        uses = f"it uses {', '.join(used)}" if used else "it uses none"
        raise HarnessError(
            f"model {name}: its chat template does not use {cut(strange[0])}; {uses}",
            f"Leave it out of {NAME}",
        )
    render(processor, question(0), f"model {name}, {NAME}", True, arguments)


def recorded(*folders: str | Path | None) -> dict[str, Any] | None:
    """The template's arguments of training, from the first folder (adapter, base) that records them.

    None and hub names are skipped.

    Raises:
        HarnessError: a run's checkpoint has a damaged file.
    """
    from dcsft_harness import reading
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.errors import HarnessError

    for folder in folders:
        found: object = None
        if folder is None:
            continue
        if (Path(folder) / manifest.NAME).is_file():
            with contextlib.suppress(HarnessError):  # another package's file of that name
                found = manifest.read(Path(folder)).notes.get(NAME)
        elif (Path(folder) / FILE).is_file():
            try:
                found = reading.json_file(Path(folder) / FILE)
            except (OSError, ValueError) as error:
                raise HarnessError(
                    f"{Path(folder) / FILE} cannot be read ({error})", "Copy it again"
                ) from error
        if isinstance(found, Mapping):
            return dict(found)
    return None


def record(folder: Path, arguments: Mapping[str, Any] | None) -> None:
    """Records the template's arguments of training, if any, in a run's checkpoint."""
    if arguments is not None:
        (folder / FILE).write_text(json.dumps(arguments) + "\n", encoding="utf-8")


def media_marks(processor: "ProcessorMixin", config: "PreTrainedConfig") -> list[str]:
    """A family's tokens for images, videos and sounds in a prompt, as text."""
    tokenizer = processor.tokenizer
    # Ordinary tokens are no marks: a configuration may have default ids that its tokenizer uses otherwise.
    known = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    named = [(name, value) for holder in (processor, config) for name, value in vars(holder).items()]
    named += [(name, getattr(tokenizer, name, None)) for name in ("image_token", "video_token")]
    found = [value for name, value in named if _MEDIA.fullmatch(name)]
    texts = [tokenizer.convert_ids_to_tokens(one) if type(one) is int else one for one in found]
    return sorted({text for text in texts if isinstance(text, str) and text in known})


@lru_cache(maxsize=64)
def _ends(template: str) -> bool:
    """Whether the trial ends by itself; other errors show when the template is rendered here."""
    try:
        tried = subprocess.run(
            [sys.executable, "-I", __file__],
            input=json.dumps(template).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode >= 0 and tried.returncode != _FULL


def _environment() -> "ImmutableSandboxedEnvironment":
    """The environment in which transformers renders templates, with the functions that it offers."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` blocks, which transformers uses to find answers."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> Any:  # noqa: ANN401 - of jinja2
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def fail(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals.update(raise_exception=fail, strftime_now=lambda _: "2026-01-01")
    return environment


def _try(template: str) -> None:
    """Renders a template as transformers would."""
    compiled = _environment().from_string(template)
    asked = question()
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "a goose"}]}]
    for messages, prompt in ((asked, True), (answered, False)):
        compiled.render(messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")


def _child() -> int:
    """Reads a template and tries it; exits with `_FULL` if memory runs out."""
    import resource

    for kind, limit in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES)):
        with contextlib.suppress(ValueError, OSError):  # not every system bounds memory
            resource.setrlimit(kind, (limit, limit))
    try:
        _try(json.load(sys.stdin))  # noqa: TID251
    except MemoryError:
        return _FULL
    except Exception:  # reported when the template is rendered with transformers' full context
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(_child())
