"""GRPO with each prompt computed once for all its completions, in training and in generation.

TRL repeats a prompt and its images for each of its G completions. Here a prompt is followed by all of them in
one sequence, and a mask lets each attend to the prompt and to itself alone. The log-probabilities and their
gradients are the same up to rounding, and the prompt's part costs 1/G.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from dcsft_harness.models.shared_prefix import ForkedRows

IGNORED = -100
"""The label of a token that is not scored."""

BY_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Features with a value for each token."""

_COUNTS = ("num_images", "num_tiles")  # lists, one number per row
_MASKED = ("sdpa", "eager")  # attention that takes a mask of any form

Features = Mapping[str, Any]
"""What a processor makes of a batch besides its tokens, by name, and TRL's counts of images and tiles."""


def objection(config: PreTrainedConfig, router_loss: float | None = None) -> str | None:
    """Why a model's completions cannot share a sequence; None if they can.

    `router_loss` is the weight of a mixture's loss over all tokens; None means the configuration's.
    """
    text = config.get_text_config(decoder=True)
    if hasattr(text, "output_router_logits"):
        weight = getattr(text, "router_aux_loss_coef", 0.0) if router_loss is None else router_loss
        if weight or text.output_router_logits:
            return "its router's loss counts the tokens of each completion's prompt"
    attention = getattr(text, "_attn_implementation", None) or "sdpa"
    if attention not in _MASKED:
        return f"its attention is {attention}"
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return "it attends within a sliding window"
    return None


class UnknownFeaturesError(Exception):
    """Which features of a batch cannot be divided by rows."""


def selected(features: Features, places: Sequence[int], rows: int) -> dict[str, Any]:
    """The features of some of a batch's `rows`, without the counts.

    Raises:
        UnknownFeaturesError: a feature has another number of rows than the batch, as of tiles without counts.
    """
    parts = split_pixel_values_by_grid({name: one for name, one in features.items() if one is not None})
    parts = {name: part for name, part in parts.items() if name not in _COUNTS}
    if strange := [name for name, part in parts.items() if len(part) != rows]:
        raise UnknownFeaturesError(f"its processor's {', '.join(strange)} cannot be divided by prompts")
    chosen = {
        name: [part[place] for place in places] if isinstance(part, list) else part[list(places)]
        for name, part in parts.items()
    }
    found: dict[str, Any] = unsplit_pixel_values_by_grid(chosen)
    return found


def cheaper(config: PreTrainedConfig, sizes: Sequence[int], prompt: int, completion: int) -> bool:
    """Whether prompts that are followed by `sizes` completions each take less work than repeated ones.

    Attention over one long sequence takes work that the mask then hides: with short prompts and long
    completions it exceeds what sharing saves. Lengths are in tokens.
    """
    width: int = config.get_text_config(decoder=True).hidden_size

    def work(sequences: int, length: int) -> int:
        return sequences * length * (6 * width + length)

    together = prompt - 1 + max(sizes) * (completion + 1)
    return work(len(sizes), together) < work(sum(sizes), prompt + completion)


@dataclass(frozen=True)
class Packed:
    """Some rows of a batch, with their prompts once: arguments of a forward pass, and where each row's are.

    Attributes:
        inputs: ids, labels, position ids and features, `(prompts, tokens)`; the mask `(prompts, 1, tokens,
            tokens)`.
        places: int64 `(rows, completion)`, the place of each completion's token in the flattened scores.
        kept: int64 `(rows, completion)`, 1 for a completion's token.
        tokens: the number of tokens that are no padding.
    """

    inputs: dict[str, Any]
    places: Tensor
    kept: Tensor
    tokens: int

    def rows(self, scores: Tensor, width: int) -> Tensor:
        """The completions' scores `(rows, width)`, of all but the first tokens' `(prompts, tokens - 1)`."""
        found = scores.reshape(-1)[self.places] * self.kept
        return functional.pad(found, (0, width - found.shape[1]))


def packed(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    keep: int,
    rows: Sequence[int],
    features: Features,
    part: Sequence[int],
) -> Packed:
    """A part of a batch with each prompt once, followed by its completions.

    `ids` and `mask` are int64 `(rows, prompt + keep)`: prompts padded on the left, completions on the right.
    `rows` names each row's prompt; `part` are the places of the rows to take.

    Each completion begins with a copy of the prompt's last token, which predicts its first: the labels of all
    are then shifted alike. The copies have that token's position, and the prompt itself ends before it.
    """
    found: dict[int, list[int]] = {}
    for place in part:
        found.setdefault(rows[place], []).append(place)
    first, most, device = [places[0] for places in found.values()], max(map(len, found.values())), ids.device
    head, own = torch.tensor(first, device=device), torch.tensor(list(part), device=device)
    prompt, length = ids.shape[1] - keep, max(int(mask[own, -keep:].sum(1).max()), 1)
    begin = int(mask[head, :prompt].any(0).int().argmax())
    slots = [[*places, *[places[0]] * (most - len(places))] for places in found.values()]
    slot = torch.tensor(slots, device=device)
    used = torch.tensor([[n < len(places) for n in range(most)] for places in found.values()], device=device)

    def laid(values: Tensor) -> Tensor:
        """Values by token, `(rows, prompt + keep)`, as `(prompts, tokens)`."""
        own = values[slot, prompt - 1 : prompt + length].flatten(1)
        return torch.cat((values[head, begin : prompt - 1], own), 1)

    shared, wide = prompt - 1 - begin, length + 1
    branch = torch.arange(most, device=device).repeat_interleave(wide)
    branch = torch.cat((branch.new_full((shared,), -1), branch))
    real = laid(mask).bool()
    real[:, shared:] &= used.repeat_interleave(wide, 1)
    new = torch.cat((branch[:shared] < 0, (torch.arange(most * wide, device=device) % wide) > 0))
    new[:shared] = False
    types = {name: features[name] for name in BY_TOKEN if features.get(name) is not None}
    pictures = selected(
        {name: one for name, one in features.items() if name not in BY_TOKEN}, first, len(rows)
    )
    alone = {
        name: one[head, begin:prompt]
        for name, one in {**types, "input_ids": ids, "attention_mask": mask}.items()
    }
    tokens = laid(ids)
    inputs = {
        **pictures,
        **{name: laid(one) for name, one in types.items()},
        "input_ids": tokens,
        "labels": tokens.masked_fill(~(real & new), IGNORED),
        "attention_mask": _attention(branch, real, _dtype(model)),
        "position_ids": _positions(model, {**pictures, **alone}, most, wide),
    }
    # Scores lack the first token.
    start = {
        place: number * (tokens.shape[1] - 1) + shared + at * wide
        for number, places in enumerate(found.values())
        for at, place in enumerate(places)
    }
    places = torch.tensor([start[place] for place in part], device=device)
    steps = torch.arange(length, device=device)
    kept = mask[own, prompt : prompt + length]
    return Packed(inputs, places[:, None] + steps, kept, int(real.sum()))


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """The type that a model computes attention in."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def _attention(branch: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores, for sequences whose tokens belong to branches, -1 for the prompt.

    Padding attends to itself: a row without any token would give no number.
    """
    order = torch.arange(len(branch), device=branch.device)
    seen = (branch == branch[:, None]) | (branch < 0)
    seen &= order <= order[:, None]
    allowed = (seen & real[:, None, :]) | (order == order[:, None])
    added = torch.zeros(allowed.shape, dtype=dtype, device=branch.device)
    return added.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _positions(model: PreTrainedModel, prompts: dict[str, Tensor], most: int, wide: int) -> Tensor:
    """Position ids `(..., prompts, tokens)`; every completion continues at the prompt's last position."""
    ids = prompts["input_ids"]
    found: Tensor = model._prepare_position_ids_for_generation(ids, prompts)
    last = found[..., -1:]
    own = (last + torch.arange(wide, device=ids.device)).repeat(*[1] * (found.ndim - 1), most)
    positions = torch.cat((found[..., :-1], own), -1)
    return positions.expand(*positions.shape[:-2], len(ids), positions.shape[-1])


# Drawing: the prompt's keys and values are computed once, and copied for each completion.

_DISTRIBUTION = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "suppress_tokens"}
_DRAWN_BY = {"max_new_tokens", "do_sample", "pad_token_id", "bos_token_id", "eos_token_id", *_DISTRIBUTION}
"""The settings of generation that `drawn` knows."""
_OFF = {"bos_token_id", "min_p", "suppress_tokens", "cache_implementation"}
"""Those that None turns off; others have a default then, of the checkpoint or of transformers."""


def draws(settings: Mapping[str, Any]) -> bool:
    """Whether `drawn` knows all settings of generation that are in force."""
    unset = {name for name, value in settings.items() if value is None}
    return settings.keys() - unset <= _DRAWN_BY and unset <= _OFF and settings["do_sample"] is True


@torch.inference_mode()
def drawn(
    model: PreTrainedModel, prompts: dict[str, Tensor], counts: Sequence[int], settings: Mapping[str, Any]
) -> list[list[int]]:
    """The tokens of `counts[n]` completions of prompt n each, one prompt's side by side, end tokens included.

    `prompts` is a left-padded batch on the model's device. Given the same logits and random state, the draws
    are those of transformers' `generate` over repeated prompts.
    """
    forked = ForkedRows(model, prompts, counts)
    tokens, mask = (prompts[name][forked.item_of_row] for name in ("input_ids", "attention_mask"))
    chain = model._get_logits_processor(
        GenerationConfig(**settings),
        tokens.shape[1],
        device=tokens.device,
        model_kwargs={"attention_mask": mask},
    )
    ends = torch.tensor(settings["eos_token_id"], device=tokens.device)
    begin, most = tokens.shape[1], settings["max_new_tokens"]
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    scores = forked.logits
    while True:
        shares = torch.softmax(chain(tokens, scores.float()), dim=-1)
        chosen = torch.multinomial(shares, 1)[:, 0].masked_fill(ended, settings["pad_token_id"])
        tokens = torch.cat((tokens, chosen[:, None]), 1)
        ended |= torch.isin(chosen, ends)
        if tokens.shape[1] - begin == most or bool(ended.all()):
            break
        scores = forked.step(chosen)
    own = tokens[:, begin:]
    stops = torch.isin(own, ends)
    lengths = torch.where(stops.any(1), stops.int().argmax(1) + 1, own.shape[1]).tolist()
    return [row[:length] for row, length in zip(own.tolist(), lengths, strict=True)]
