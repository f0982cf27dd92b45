"""What a recipe's stages would take, from the assumptions that its scale states.

`assume` of a scale, for one machine:
    device, devices     what and how many
    gigabytes           memory of one; 0 leaves memory out
    language, vision    weights in products: of the language model (with its output layer) and of the tower
    flops               operations that one device carries out in a second, as training and prefill reach them
    drawn               tokens that all devices together draw in a second, with an engine that batches
    trained             tokens that they draw in a second inside GRPO's loop, by transformers' `generate`
    load                seconds in which a stage opens its model

`tokens` of a family: prompt (tokens, images included) and patches an item, answer (tokens), and how many
items the pool, the cold start and the evaluations have.

Published sizes and round throughputs: good for telling an hour from a day, and no more.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dcsft_harness.recipes.recipe import Recipe, Stage
from dcsft_harness.stages import STAGES
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig


class Estimate(NamedTuple):
    """Seconds of wall-clock time, and bytes on one device (0: not estimated)."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        """Both in units that one can read."""
        minutes = self.seconds / 60
        time = (
            f"{minutes / 60:.1f} h"
            if minutes >= 90
            else f"{minutes:.0f} min"
            if minutes >= 1.5
            else "a minute"
        )
        memory = f", {self.memory / 1e9:.0f} GB on each device" if self.memory else ""
        return f"about {time}{memory}"


def of(recipe: Recipe) -> dict[str, Estimate]:
    """Stage name -> its estimate, for the stages that take more than moments."""
    if "assume" not in recipe.variables:
        return {}
    found = {}
    for stage in recipe.stages:
        assumed, tokens = stage.variables.get("assume"), stage.variables.get("tokens")
        if not (assumed and tokens):
            continue
        given, sizes = _numbers(assumed), _numbers(tokens)
        own, rule = STAGES[stage.verb].estimate, _RULES.get(stage.verb)
        if own is not None:
            seconds, memory = own(stage.options, given, sizes)
        elif rule is not None:
            seconds, memory = rule(stage, given, sizes)
        else:
            continue
        found[stage.name] = Estimate(given["load"] + seconds, memory if given["gigabytes"] else 0.0)
    return found


def summary(recipe: Recipe) -> list[str]:
    """The closing lines: the sum, and what it assumes."""
    found = of(recipe)
    if not found:
        return []
    assumed = recipe.variables["assume"]
    total = Estimate(sum(one.seconds for one in found.values()), max(one.memory for one in found.values()))
    said = ", ".join(f"{name} {value}" for name, value in assumed.items())
    return [f"# in all {total}, on {assumed['devices']} x {assumed['device']}; assumed: {said}"]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among some values; YAML reads 1e9 as text."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


Numbers = Mapping[str, float]


def _forward(assumed: Numbers, tokens: float, patches: float) -> float:
    """Seconds of one forward pass on all devices."""
    work = 2 * (assumed["language"] * tokens + assumed["vision"] * patches)
    return work / (assumed["flops"] * assumed["devices"])


def _weights(assumed: Numbers) -> float:
    return assumed["language"] + assumed["vision"]


def _drawing(stage: Stage, assumed: Numbers, tokens: Numbers) -> tuple[float, float]:
    samples = float(stage.options.get("samples", 8))
    prefill = _forward(assumed, tokens["prompt"], tokens["patches"]) * tokens["pool"]
    seconds = prefill + tokens["pool"] * samples * tokens["answer"] / assumed["drawn"]
    return seconds, 0.9e9 * assumed["gigabytes"]


def _evaluating(stage: Stage, assumed: Numbers, tokens: Numbers) -> tuple[float, float]:
    prefill = _forward(assumed, tokens["prompt"], tokens["patches"]) * tokens["evaluated"]
    return prefill + tokens["evaluated"] * tokens["answer"] / assumed["drawn"], 0.9e9 * assumed["gigabytes"]


def _length(stage: Stage, tokens: Numbers) -> tuple[float, float]:
    """Optimizer steps, and samples in each; the trainer's defaults where the stage says nothing."""
    kind: Any = {"train sft": SftConfig, "train grpo": GrpoConfig}.get(stage.verb, ColdStartConfig)
    options = stage.options
    defaults = {name: field.default for name, field in kind.model_fields.items()}
    batch = float(options.get("batch_size") or defaults["batch_size"])
    rows = tokens["cold"] if kind is ColdStartConfig else tokens["pool"]
    if options.get("epochs") or (kind is ColdStartConfig and not options.get("max_steps")):
        return math.ceil(rows / batch) * float(options.get("epochs") or 1), batch
    return float(options.get("max_steps") or defaults["max_steps"]), batch


def _training(stage: Stage, assumed: Numbers, tokens: Numbers) -> tuple[float, float]:
    options = stage.options
    full = bool(options.get("full")) or stage.verb == "train cold-start"
    steps, batch = _length(stage, tokens)
    length = tokens["prompt"] + tokens["answer"]
    # Forward, gradient of activations, recomputed activations; and the weights' gradient where all train.
    passes = 4.0 if full else 3.0
    seconds = steps * batch * passes * _forward(assumed, length, tokens["patches"])
    # bfloat16 weights on each device; of full training, float32 weights, gradients and moments are shared.
    weights = 16 * _weights(assumed) / assumed["devices"] if full else 2 * _weights(assumed)
    memory = weights + (options.get("micro_batch_size") or batch / assumed["devices"]) * length * 3e6
    return seconds, memory


def _reinforcing(stage: Stage, assumed: Numbers, tokens: Numbers) -> tuple[float, float]:
    seconds, memory = _training(stage, assumed, tokens)
    steps, batch = _length(stage, tokens)
    length = tokens["prompt"] + tokens["answer"]
    drawn = steps * batch * tokens["answer"] / assumed["trained"]
    # The prefill of the draws, and the reference's log-probabilities.
    return seconds + drawn + 2 * steps * batch * _forward(assumed, length, tokens["patches"]), memory


_RULES: dict[str, Callable[[Stage, Numbers, Numbers], tuple[float, float]]] = {
    "sample": _drawing,
    "evaluate": _evaluating,
    "train cold-start": _training,
    "train sft": _training,
    "train grpo": _reinforcing,
}
