"""lmms-eval's response cache (`--use_cache`), keyed by what our models really are.

lmms-eval's keys hold the model arguments as they are written: an adapter that was trained again in the same
folder would get its predecessor's answers. With one of our models they also hold the content of every file
that decides a response, and this package's version.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dcsft_harness import __version__
from dcsft_harness.artifacts.hashing import file_sha256, folder_sha256, json_sha256

MODELS = ("dcsft_hf", "dcsft_stub", "dcsft_vllm")
_TEXTS = (".jinja", ".txt", ".model")
"""Endings of a checkpoint's files beside configuration and weights that decide its prompts."""
_LOG = logging.getLogger(__name__)


def key_by_content() -> None:
    """Has lmms-eval's cache tell our models by their content, from now on; a second call changes nothing.

    lmms-eval makes a cache after it has made the model, which is when this is called.
    """
    from lmms_eval.caching.response_cache import ResponseCache

    make = ResponseCache.create
    if getattr(make, "keyed_by_content", False):
        return

    def create(
        cache_root: str,
        *,
        model: Any = "",  # noqa: ANN401 - a name, or a model
        model_args: str | dict[str, Any] = "",
        **more: Any,  # noqa: ANN401
    ) -> ResponseCache:
        if model in MODELS:
            model = f"{model}|{fingerprint(model_args)}"
        return make(cache_root, model=model, model_args=model_args, **more)

    create.keyed_by_content = True  # type: ignore[attr-defined]
    ResponseCache.create = staticmethod(create)


def fingerprint(model_args: str | Mapping[str, Any] | None) -> str:
    """A hash of what decides the responses of a model of ours beside its arguments' text."""
    from lmms_eval.utils import simple_parse_args_string

    given = simple_parse_args_string(model_args) if isinstance(model_args, str) else dict(model_args or {})
    parts: dict[str, object] = {"version": __version__}
    for name, value in given.items():
        read = _READERS.get(name)
        if read is not None and value is not None:
            parts[name] = read(str(value))
    if given.get("generation_config") == "checkpoint":
        # A request that names no temperature may then sample, which lmms-eval takes for greedy.
        parts["seed"] = torch.initial_seed()
    if given.get("base_url") is not None:
        _LOG.warning("--use_cache: what weights a server has is unknown; its answers are not used again")
        parts["run"] = uuid.uuid4().hex
    return json_sha256(parts)


def _checkpoint(name: str) -> object:
    """The content of a checkpoint's or adapter's folder; of a hub name the commit that is at hand."""
    folder = Path(name)
    if folder.is_dir():
        texts = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _TEXTS)
        return [folder_sha256(folder), *((path.name, file_sha256(path)) for path in texts)]
    from huggingface_hub import try_to_load_from_cache

    files = (try_to_load_from_cache(name, file) for file in ("config.json", "adapter_config.json"))
    # A cached file lies in snapshots/COMMIT.
    return [Path(found).parent.name for found in files if isinstance(found, str)]


def _file(name: str) -> str | None:
    path = Path(name)
    return file_sha256(path) if len(name) < 4096 and path.is_file() else None


_READERS: Mapping[str, Callable[[str], object]] = {
    "pretrained": _checkpoint,
    "adapter": _checkpoint,
    "system_prompt": _file,
    "answers": _file,
}
"""Model arguments that name files -> what is read of them."""
