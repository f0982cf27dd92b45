"""Where a model runs and what it costs: device, memory, operations."""

import contextlib
import ctypes
import gc
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from dcsft_harness.artifacts.usage import machine_memory
from dcsft_harness.errors import HarnessError

if TYPE_CHECKING:
    from peft import PeftModel


# Which device this process runs on, and its place among the processes of a launch.


def check_device(name: str | None) -> torch.device:
    """The device of a name; None selects CUDA if available. One that is unknown or not there is an error."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HarnessError(f"device={name!r} is not a device", "Use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HarnessError(
            f"device={name!r}: torch sees {torch.cuda.device_count()} CUDA devices", "Use device=cpu"
        )
    return device


def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself.

    Else torch does so in a plain loop: 150 times slower than in float32 on an AVX2 processor.
    """
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def place(name: str | None) -> tuple[torch.device, Accelerator | None]:
    """Joins the process group of `torchrun` or `accelerate launch`, if there is one.

    Each process loads the whole model and answers its own share of the documents; processes on
    CPUs talk over gloo. Returns the device of this process, and accelerate's view of the group; None in a
    single process, where lmms-eval makes its own.

    Raises:
        HarnessError: for an unusable device, or one CUDA device named for several processes.
    """
    device = check_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, None
    if ":" in (name or ""):
        raise HarnessError(
            f"device={name!r} names one device for several processes", f"Use device={device.type}"
        )
    accelerator = Accelerator(cpu=device.type == "cpu")
    return torch.device("cpu") if device.type == "cpu" else accelerator.device, accelerator


# The memory of a batch: an estimate, what is free, and how to recognize running out.

# The estimate ignores fragmentation and workspaces. Other programs share the CPU's memory, where asking for
# too much ends the process instead of raising an error.
_SHARE = {"cuda": 0.8, "cpu": 0.5}

# Prompt tokens, padding included, that go through the model together. A pass costs something besides its
# tokens: on a CPU, a batch of 32 short prompts must leave no remainder for a second one. There, a token of
# layers that are 128, 512 or 1,536 wide takes as long among 1,200 as among 2,400. A GPU is busy with these.
# More would only need more memory at once.
_SLICE_TOKENS = {"cuda": 16384, "cpu": 1800}

# Tensors of a decoder or vision layer that exist at the same time, in multiples of the layer's width and of
# its feed-forward width.
_STREAMS, _INNER_STREAMS = 8, 3


@dataclass(frozen=True)
class Tower:
    """The layers of a decoder or of a vision tower."""

    layers: int  # how many
    width: int  # of the residual stream
    inner: int  # of the feed-forward part
    heads: int  # numbers in a token's queries, over all heads
    shared: int  # numbers in its keys, over the heads that have their own
    gated: bool  # whether the feed-forward part has a gate beside its input

    @classmethod
    def of(cls, config: PreTrainedConfig | None, gated: bool = False) -> "Tower":
        """Reads a part of a model's configuration."""

        def first(*names: str, otherwise: int = 0) -> int:
            values = (getattr(config, name, None) for name in names)
            return int(next((value for value in values if isinstance(value, int) and value), otherwise))

        width = first("hidden_size", "embed_dim", otherwise=1024)
        heads = first("num_attention_heads", "num_heads", otherwise=1)
        size = first("head_dim", otherwise=width // heads)
        return cls(
            first("num_hidden_layers", "depth"),
            width,
            first("intermediate_size", otherwise=4 * width),
            heads * size,
            first("num_key_value_heads", otherwise=heads) * size,
            gated,
        )

    def kept(self, number: int, full: bool) -> float:
        """Bytes kept of a token by a layer for its backward pass, besides its linear layers' inputs.

        `number` is the bytes of a number in the forward pass; `full`: norms train, too.
        """
        norms = 2 * (4 + (number if full else 0)) * self.width
        attention = 2 * number * (self.heads + self.shared)
        return norms + attention + (3 if self.gated else 1) * number * self.inner

    def computing(self, number: int) -> float:
        """Bytes of a token's tensors that exist at the same time while a layer computes."""
        return float(number * (_STREAMS * self.width + _INNER_STREAMS * self.inner))


@dataclass(frozen=True)
class Size:
    """What determines the memory of one item."""

    tokens: int  # prompt and image tokens
    image_values: int  # numbers in its image features
    rows: int  # responses that are generated together


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model needs for a batch, besides its weights."""

    cached: float  # keys and values of a token, over all layers
    activation: float  # what a prompt token needs while a layer computes
    image_value: float  # what the vision tower needs for each input number
    score: float  # attention scores of a new token, for each token before it, over a layer's heads
    choice: float  # choosing a row's next token, over the vocabulary
    slice_tokens: int  # prompt tokens that go through the model together where prompts are shared

    @classmethod
    def of(cls, config: PreTrainedConfig, number: int, device: str) -> "Footprint":
        """Estimates from a configuration.

        `number` is the bytes of a number in the forward pass; the device is "cuda" or "cpu".
        """
        text, vision = config.get_text_config(decoder=True), getattr(config, "vision_config", None)
        tower, area = Tower.of(text), _patch_area(vision)
        # A patch is a token of the vision tower.
        image = 64.0 if area is None else Tower.of(vision).computing(number) / (3 * area)
        return cls(
            cached=2.0 * tower.layers * tower.shared * number,
            activation=tower.computing(number),
            image_value=number + image,
            score=text.num_attention_heads * (3.0 * number + 4),
            # float32 logits and scores, then float64 noise and int64 hashes.
            choice=text.vocab_size * (2 * 4 + 3 * 8),
            slice_tokens=_SLICE_TOKENS.get(device, _SLICE_TOKENS["cuda"]),
        )

    def bytes(self, sizes: Sequence[Size], new_tokens: int, shared: bool) -> float:
        """The bytes of a batch.

        `new_tokens` is the longest response; with `shared`, the rows of an item share its prompt.
        """
        rows = sum(size.rows for size in sizes)
        longest = max(size.tokens for size in sizes)
        prompts = longest * (len(sizes) if shared else rows)
        images = sum(size.image_values * (1 if shared else size.rows) for size in sizes)
        together = min(prompts, max(self.slice_tokens, longest)) if shared else prompts
        # A growing buffer exists twice while it is copied.
        own = rows * (2 * new_tokens * self.cached + longest * self.score + self.choice)
        prefill = together * self.activation + images * self.image_value * together / prompts
        return prompts * self.cached + prefill + own


def _patch_area(config: PreTrainedConfig | None) -> int | None:
    """Pixels of a patch of the vision tower; None if the configuration has no patch size."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple) and len(patch) == 2:
        return int(patch[0]) * int(patch[1])
    return patch * patch if isinstance(patch, int) else None


def free_bytes(device: torch.device) -> float:
    """Memory now available for a batch on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _SHARE["cuda"] * (torch.cuda.mem_get_info(device)[0] + cached)
    return _SHARE["cpu"] * machine_memory()[1]


_THRESHOLD, _LARGE = -3, 1 << 20  # M_MMAP_THRESHOLD of <malloc.h>, and its new value in bytes
_MAPPED, _TRIM = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>, and glibc's values of them
_MAPPED_USUALLY, _TRIM_USUALLY = 65536, 1 << 26
_BLOCK = 1 << 24
"""Numbers that are copied at a time."""
_UNNEEDED = 4  # MADV_DONTNEED of <sys/mman.h>


def _libc(name: str) -> Callable[..., int] | None:
    """A function of Linux's C library, if it is there: `mallopt` and `malloc_trim` are glibc's own."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps that of tensors below 32 MB for itself.

    Measured on 1.4 GB of weights: a peak of 2.7 GB without it, because the first model's memory is not
    returned before the second loads, and 1.5 GB with it.
    """
    gc.collect()
    if (trim := _libc("malloc_trim")) is not None:
        trim(0)


def take_exactly() -> None:
    """From now on, memory of a megabyte or more is returned to the system as soon as it is freed.

    glibc puts tensors below 32 MB into one heap, where a step's temporary tensors leave gaps between those
    that the backward pass needs: of 4.8 GB that a training of two layers of a width of 2,048 held, 0.8
    were gaps. Taking memory again costs small models time, so it is for large ones.
    """
    if (change := _libc("mallopt")) is not None:
        change(_THRESHOLD, _LARGE)


@contextlib.contextmanager
def reused_memory() -> Iterator[None]:
    """Within it, freed memory of any size serves the next tensors; afterward it is returned to the system.

    glibc asks the system for each tensor above 32 MB each time. Where many of them live shortly, as a merge's
    updates do, the system spends more time on clearing their pages than they take to compute.
    """
    change = _libc("mallopt")
    if change is not None:
        change(_MAPPED, 0)
        change(_TRIM, (1 << 31) - 1)
    try:
        yield
    finally:
        if change is not None:
            change(_MAPPED, _MAPPED_USUALLY)
            change(_TRIM, _TRIM_USUALLY)
            give_back()


def own_weights(model: PreTrainedModel) -> None:
    """Copies weights that are mapped from files into the process's memory, a block at a time.

    The system drops mapped weights when other processes need memory for files, and each pass then reads all
    of them from the disk again. The process does not become larger: what is copied leaves the map.
    """
    advise = _libc("madvise")
    page = os.sysconf("SC_PAGESIZE") if advise is not None else 1
    # What two parameters share would be dropped before the second is copied.
    places = Counter(weight.data_ptr() for weight in model.parameters())
    for weight in model.parameters():
        mapped = weight.data
        if mapped.device.type != "cpu" or not mapped.is_contiguous():
            continue
        own = torch.empty_like(mapped)
        parts = (torch.split(one.view(-1), _BLOCK) for one in (mapped, own))
        for source, target in zip(*parts, strict=True):
            target.copy_(source)
            start = -(-source.data_ptr() // page) * page
            size = (source.data_ptr() + source.nbytes) // page * page - start
            if advise is not None and size > 0 and places[mapped.data_ptr()] == 1:
                advise(ctypes.c_void_p(start), ctypes.c_size_t(size), _UNNEEDED)
        weight.data = own


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; only CUDA has a type for it."""
    text = str(error).lower()
    known = ("out of memory", "can't allocate memory", "not enough memory", "defaultcpuallocator")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in text for sign in known)


# Floating-point operations of a model, estimated from the number of its weights and which of them train.

Inputs = Mapping[str, Any]

_LOOKED_UP = re.compile(r"position|pos_emb|cls_token|class_embedding")
"""Names of weights that are added, not multiplied with; `torch.nn.Embedding` is one by its class."""
_MERGED = re.compile(r"merger|connector|projector|downsample|embed_vision")
"""Names of weights for what patches were merged to."""
_MERGES = (
    "spatial_merge_size",
    "merge_kernel_size",
    "window_kernel_size",
    "scale_factor",
    "pooling_kernel_size",
)
"""Names of the sides, in patches, of a square that is merged; several in a configuration are steps."""
_EXPERTS = re.compile(r"\bexperts\b")
"""Names of weights of which a token sees those of a few experts."""


def _first(parts: Sequence[object], *names: str) -> Any:  # noqa: ANN401 - of any configuration
    """The first setting of these names in parts of a configuration; None if they are unset everywhere."""
    return next((value for part in parts for name in names if (value := getattr(part, name, None))), None)


def patches_per_token(config: PreTrainedConfig) -> int:
    """The patches of an image that become one token of the prompt."""
    parts = (getattr(config, "vision_config", None), config)
    merged = 1.0
    for value in filter(None, (_first(parts, name) for name in _MERGES)):
        merged *= math.prod(value) if isinstance(value, list | tuple) else value**2
    if isinstance(ratio := _first(parts, "downsample_ratio"), float):
        merged /= ratio**2
    if tokens := _first(parts, "mm_tokens_per_image"):  # Gemma 3 pools whatever is left
        merged = (_first(parts, "image_size") // _first(parts, "patch_size")) ** 2 / tokens
    return max(1, round(merged))


def _used(config: PreTrainedConfig) -> float:
    """The share of its experts that a token of a mixture goes through."""
    parts = (config.get_text_config(decoder=True),)
    every = _first(parts, "num_experts", "n_routed_experts", "num_local_experts") or 1
    return float((_first(parts, "num_experts_per_tok", "top_k_experts") or 1) / every)


class Arithmetic:
    """The cost of a token and of an image patch.

    A product with n weights is 2n operations in the forward pass; the backward pass adds as many for the
    activations' gradient, and as many again for each weight that trains. Not counted: attention between
    tokens, activation checkpointing, padding, and everything that is not a matrix product. The aligner counts
    as part of the vision tower, by its share of a patch; of a mixture's experts those that a token sees.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel") -> None:
        """Counts the weights of a transformers model, which may carry an adapter."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._area = _patch_area(getattr(inner.config, "vision_config", None))
        embedded = inner.get_input_embeddings().weight
        head = inner.get_output_embeddings()
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
        language = {id(weight) for weight in decoder.parameters()}
        self.head = 0 if head is None else head.weight.numel()
        self.trained_head = self.head if head is not None and head.weight.requires_grad else 0
        self.language = self.vision = self.trained_language = self.trained_vision = 0.0
        merged, used = patches_per_token(inner.config), _used(inner.config)
        tables = {id(one.weight) for one in inner.modules() if isinstance(one, torch.nn.Embedding)}
        for name, weight in inner.named_parameters():
            if weight is embedded or (head is not None and weight is head.weight) or weight.dim() < 2:
                continue
            if id(weight) in tables or _LOOKED_UP.search(name):
                continue
            if id(weight) in language:
                size = weight.numel() * (used if _EXPERTS.search(name) else 1)
                self.language += size
                self.trained_language += size * weight.requires_grad
            else:
                size = weight.numel() / (merged if _MERGED.search(name) else 1)
                self.vision += size
                self.trained_vision += size * weight.requires_grad

    def forward(self, tokens: float, patches: float, scored: float | None = None) -> float:
        """One forward pass over this number of tokens (image tokens included) and image patches.

        `scored` is the number of tokens that go through the output layer, by default all.
        """
        head = self.head * (tokens if scored is None else scored)
        return 2.0 * (self.language * tokens + head + self.vision * patches)

    def training(self, tokens: float, patches: float, scored: float | None = None) -> float:
        """One forward and backward pass; without trainable weights, the tower has no backward pass."""
        backward = (self.language + self.trained_language) * tokens
        backward += (self.head + self.trained_head) * (tokens if scored is None else scored)
        if self.trained_vision:
            backward += (self.vision + self.trained_vision) * patches
        return self.forward(tokens, patches, scored) + 2.0 * backward

    def patches(self, inputs: Inputs) -> int:
        """The number of image patches in a processor's output."""
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor):
            return 0
        places = inputs.get("image_position_ids")
        if isinstance(places, Tensor):  # Gemma 4 pads each image to as many patches, without a place
            return int((places[..., 0] >= 0).sum())
        if pixels.dim() == 2:  # one row per patch, as Qwen's processors return them
            return int(pixels.shape[0])
        return 0 if self._area is None else int(pixels[..., 0, :, :].numel() // self._area)
