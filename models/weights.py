"""Checks stored weights against their model: whole files, all tensors, right shapes, finite values."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError, cut

from .resources import out_of_memory

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_COPY_AGAIN = "Copy or download it again"
_COUNTS = re.compile(r"(num_\w*|n_|encoder_|decoder_)?layers|n_layer|(\w+_)?depth|(num_|n_)\w*experts")
"""Settings whose value is a number of modules; each module is built and has at least one tensor."""
_MANY = 1_000
"""The most modules of a kind, more than any published model has; they are built in seconds."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The floating-point types of published weights, by safetensors' names."""
_NAMED = 3
"""The number of tensors that an error names."""


def files_of(checkpoint: str) -> Path | None:
    """The folder with a checkpoint's files; for a hub name, in the cache, or None if it is not there."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    try:
        cached = try_to_load_from_cache(checkpoint, "config.json")
    except ValueError:  # not a hub name either
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def weight_files(checkpoint: str) -> list[Path]:
    """The safetensors files of a checkpoint's weights; empty for a hub name outside the cache.

    Raises:
        HarnessError: a folder has no weights, only pickled ones, or an index with a missing file.
    """
    folder = files_of(checkpoint)
    if folder is None:
        return []
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if not Path(checkpoint).is_dir():
        return []  # so far the cache has only the configuration
    for pattern in _PICKLES:
        if pickled := sorted(folder.glob(pattern)):
            raise HarnessError(
                f"model {checkpoint} has its weights in {pickled[0].name}, a pickle, which may run any code",
                "Convert them to safetensors: load the model with transformers and call save_pretrained",
            )
    raise HarnessError(f"model {checkpoint} has no weights: {SINGLE} is missing", _COPY_AGAIN)


def _indexed(folder: Path) -> list[Path]:
    path = folder / INDEX
    try:
        names = sorted({str(name) for name in reading.json_file(path)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"{path} is not a safetensors index ({error!r})", _COPY_AGAIN) from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise HarnessError(f"{path} names {name[:100]!r}, which is missing", _COPY_AGAIN)
    return [folder / name for name in names]


class Place(NamedTuple):
    """Where a safetensors file holds a tensor."""

    file: Path
    start: int  # its first byte in the file
    end: int  # the byte after its last
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]  # its shape

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's type and shape are those that are stored."""
        return DTYPES.get(self.dtype) == tensor.dtype and self.shape == tuple(tensor.shape)


def places(path: Path) -> dict[str, Place]:
    """Tensor name -> its place in a safetensors file; a damaged header is an error."""
    with _opened(path):
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = reading.from_json(file.read(size))
    return {
        name: Place(
            path,
            start=8 + size + one["data_offsets"][0],
            end=8 + size + one["data_offsets"][1],
            dtype=one["dtype"],
            shape=tuple(one["shape"]),
        )
        for name, one in header.items()
        if name != "__metadata__"
    }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, OverflowError) as error:
        raise HarnessError(
            f"{path} is not a whole safetensors file ({error_line(error)})", _COPY_AGAIN
        ) from error


def refuse_absurd(checkpoint: str) -> None:
    """Refuses a configuration with too many layers or experts, or with rotary settings that are no numbers.

    Building those modules could take hours and all memory before the weights turn out to be missing, and
    transformers computes with a `rope_theta` that is text or negative.

    Raises:
        HarnessError: names the setting; or the configuration is not JSON, or the weights are damaged.
    """
    folder = files_of(checkpoint)
    path = None if folder is None else folder / "config.json"
    if path is None or not path.is_file():
        return
    try:
        config = reading.json_file(path)
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path} is not JSON ({error_line(error)})", _COPY_AGAIN) from error
    has_weights = any((path.parent / name).is_file() for name in (SINGLE, INDEX))
    stored = sum(len(places(file)) for file in weight_files(checkpoint)) if has_weights else 0
    for where, name, value in _settings(config):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, int) and number and _COUNTS.fullmatch(name):
            if not 0 <= value <= max(stored, _MANY):
                beside = f", and its weights have {stored} tensors" if has_weights else ""
                raise HarnessError(
                    f"{path}: {where} is {value}{beside}", "Correct it, or copy the file again"
                )
        elif name in ("rope_theta", "rope_local_base_freq") and value is not None:
            if not number or not 0 < value < math.inf:
                raise HarnessError(
                    f"{path}: {where} is {cut(repr(value))}, not a positive number",
                    "Correct it, or copy the file again",
                )


def _settings(config: object, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """A configuration's settings, sub-configurations included: whole name, own name and value."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", name, value


def loaded(
    checkpoint: str,
    **options: Any,  # noqa: ANN401 - of from_pretrained
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, and what transformers says of its loading, for `refuse_incomplete`; errors name the model."""
    with refusals(checkpoint), silent():
        model, info = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused by name
            **options,
        )
    return model, info


def refuse_incomplete(checkpoint: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose tensors are not exactly the model's, naming the first few of each kind.

    Tied weights are stored once, and integer buffers (position ids) follow from the configuration: both may
    be missing. `info` is what `from_pretrained` returns with `output_loading_info`.
    """
    computed = {name for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    missing = sorted(set(info["missing_keys"]) - computed)
    unexpected = sorted(info["unexpected_keys"])
    shaped = [
        f"{name} is {list(stored)} instead of {list(wanted)}"
        for name, stored, wanted in sorted(info["mismatched_keys"])
    ]
    problems = [
        f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {kind} {few(names)}"
        for names, kind in ((missing, "missing"), (unexpected, "unexpected"), (shaped, "of another shape"))
        if names
    ]
    if problems:
        raise HarnessError(
            f"the weights of model {checkpoint} are not those of its configuration: {', '.join(problems)}",
            "Copy or download the whole checkpoint again",
        )


def check_stored(checkpoint: str) -> None:
    """Refuses damaged files, and weights that are not finite, for engines that load them themselves."""
    bad: list[str] = []
    for path in weight_files(checkpoint):
        with _opened(path) as file:
            # Mapped from the file one by one: a shard is never in memory as a whole.
            bad += not_finite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    refuse_unfinite(f"model {checkpoint}", bad)


def refuse_unfinite(owner: str, names: Sequence[str]) -> None:
    """Raises the error for tensors that are not finite, if there are any; names the first few."""
    if names:
        are = "tensor is" if len(names) == 1 else "tensors are"
        raise HarnessError(
            f"{owner}: {len(names)} {are} not finite {few(names)}",
            "Copy it again; if it was saved so, its training diverged: train it again",
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity.

    One pass over them at memory bandwidth, with one synchronization of the device. Tensors without elements,
    as ZeRO-3 leaves them, pass.
    """
    names: list[str] = []
    extremes: list[Tensor] = []
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_meta:
            if tensor.is_complex():
                tensor = torch.view_as_real(tensor)
            if tensor.is_floating_point():
                names.append(name)
                extremes.append(_largest(tensor))
    if not extremes:
        return []
    finite = torch.stack(extremes).isfinite().tolist()
    return [name for name, good in zip(names, finite, strict=True) if not good]


def _largest(tensor: Tensor) -> Tensor:
    """The largest magnitude, a float32 scalar on the tensor's device; NaN if any value is NaN.

    `aminmax` makes a single pass without temporaries: 7 to 17 GB/s on two cores, against 0.2 to 0.4 with
    `isfinite`.
    """
    if tensor.element_size() == 1:  # 8-bit floats have no arithmetic
        tensor = tensor.to(torch.float16)
    low, high = torch.aminmax(tensor)
    return torch.maximum(low.float().abs(), high.float().abs())


def few(names: Sequence[str]) -> str:
    """The first few names, for an error."""
    return f"({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"


@contextlib.contextmanager
def refusals(checkpoint: str) -> Iterator[None]:
    """Turns any error of a damaged checkpoint in transformers into a `HarnessError` that names it."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:  # a damaged configuration fails anywhere in a model's code
        full = out_of_memory(error)
        remedy = "Use a device with more memory" if full else "Check the checkpoint's files"
        raise HarnessError(f"model {checkpoint} cannot be loaded ({error_line(error)})", remedy) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides transformers' progress bars and loading reports: the terminal shows the command's own."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def error_line(error: BaseException) -> str:
    """The first line of a message that may have many; with the second if the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]
