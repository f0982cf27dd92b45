"""adapter -> checkpoint: one model that behaves like the base with the adapter."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import model_validator

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import Settings, option

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from transformers import GenerationConfig, PreTrainedConfig, ProcessorMixin

    from dcsft_harness.models.arguments import ModelSettings
    from dcsft_harness.models.merging import Parity

# Real prompts with images, on which two models are compared.

_TRIED = 8
"""Prompts that are read for each one that is compared."""

STAND_IN = "dcsft_digits"
"""The task whose items are used when an adapter's own training set is not available."""


class Probes(NamedTuple):
    """Real inputs of a model."""

    source: str  # the set that they come from
    features: list[Any]  # the processor's output for each prompt


def read_probes(
    made: manifest.Manifest | None,
    processor: "ProcessorMixin",
    generation: "GenerationConfig",
    count: int,
    pixels: float = math.inf,
    arguments: Mapping[str, Any] | None = None,
) -> Probes:
    """Short prompts from an adapter's training set: the shortest of some that are evenly spaced.

    `count` is their number, if the set has that many; pictures of more than `pixels` are scaled down to this
    many. `generation` has the end tokens, and `arguments` are further ones of the chat template.

    Raises:
        HarnessError: a row of the training set cannot be read.
    """
    from dcsft_harness.models.batching import process
    from dcsft_harness.training import data as training_data
    from dcsft_harness.training.data import Template

    source, rows = "the training set", _training_set(made)
    if rows is None:
        source, rows = STAND_IN, _digits()
    tried = min(count * _TRIED, len(rows))
    chosen = rows.select([len(rows) * number // tried for number in range(tried)])
    conversations = training_data.read(chosen)
    template = Template.of(processor, generation, arguments)
    texts = [
        template.render(turns, f"{source}, row {row}").prompt for row, turns in enumerate(conversations.turns)
    ]
    features = []
    for row in sorted(sorted(range(tried), key=lambda row: len(texts[row]))[:count]):
        images = conversations.images(row) if conversations.turns[row].images else []
        features.append(process(processor, [texts[row]], [[_small(image, pixels) for image in images]]))
    return Probes(source, features)


def _small(image: "Image", pixels: float) -> "Image":
    """An image with its sides in proportion, scaled down to at most this many pixels."""
    scale = (pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _training_set(made: manifest.Manifest | None) -> "Dataset | None":
    """The rows that an adapter was trained on, if its set still exists unchanged."""
    if made is None or "data" not in made.inputs:
        return None
    try:
        folder = made.input_folder("data")
    except HarnessError:
        return None
    rows = storage.load(folder / "data" if (folder / "data").is_dir() else folder)
    skipped = set((made.notes.get("skipped") or {}).get("rows", ()))
    return rows.select([number for number in range(len(rows)) if number not in skipped]) if skipped else rows


def _digits() -> "Dataset":
    """The substitute task's items in the columns of a curated set."""
    from datasets import Dataset

    from dcsft_harness.curation.conversations import conversation, features
    from dcsft_harness.data.digits import suite

    rows = [
        conversation({"images": [row["image"]], "prompt": row["prompt"], "target": row["target"]})
        for row in suite.load(STAND_IN).select(range(64))
    ]
    columns = {name: kind for name, kind in features(labeled=False).items() if name != "item_id"}
    return Dataset.from_list(rows, features=type(features())(columns))


REPORT = "parity.json"
_ADAPTER = "adapter_config.json"


class MergeConfig(Settings):
    """How to compare a merge with the adapter that it replaces."""

    parity_prompts: int = option(2, "Short real prompts to compare the two models on.", ge=1)
    parity_pixels: int = option(
        224 * 224,
        "Maximum pixels of these prompts' images; larger ones are scaled down.",
        ge=28 * 28,
    )
    prompts: int | None = option(None, "The old name of --parity-prompts.", ge=1, decides=False)
    max_new_tokens: int = option(8, "Longest greedy answer compared, in tokens.", ge=1, decides=False)
    device: str | None = option(None, "cpu, cuda or cuda:N; by default CUDA if available.")

    @model_validator(mode="before")
    @classmethod
    def _by_its_new_name(cls, values: Mapping[str, object]) -> dict[str, object]:
        former = str(values.get("prompts"))
        given = former.isdecimal() and int(former) > 0  # others are refused by the name that they came with
        return ({"parity_prompts": former} if given else {}) | dict(values)


class Base(NamedTuple):
    """The base of an adapter."""

    name: str  # a folder or hub name
    trained_on: bool | None  # whether it is the base in the adapter's manifest; None if that is unknown


def merge(adapter: Path, output: Path, base: str | None, config: MergeConfig) -> dict[str, Any]:
    """Writes the merged checkpoint with `REPORT` and a manifest.

    The adapter is a PEFT folder, written by `dcsft train` or by PEFT alone; without a base, it is merged into
    the one that it was trained on. Returns the manifest's notes: base, dtype, `adapted` and `changed` modules
    by part, and `parity`.

    Raises:
        HarnessError: not an adapter, another base than it was trained on, shapes that do not fit, weights
            that are not finite, too little space, or a merged model that answers differently.
    """
    manifest.refuse_occupied(output)
    made = _open(adapter)
    found = find_base(adapter, made, base)
    from dcsft_harness import coordinates
    from dcsft_harness.models import chat_template
    from dcsft_harness.models import merging as engine
    from dcsft_harness.models.arguments import ModelSettings
    from dcsft_harness.models.checkpoint import check_files
    from dcsft_harness.models.resources import check_device
    from dcsft_harness.models.weights import files_of
    from dcsft_harness.training.hub import write_card

    check_files(str(adapter))
    check_files(found.name)
    device = check_device(config.device)
    weights = {"pretrained": found.name, "adapter": str(adapter)}
    settings = ModelSettings.from_options({**weights, "device": config.device, **_pixels(made)})
    parts, processor, generation = _prepared(settings, config)
    _refuse_small_disk(files_of(found.name), output)
    trained_with = chat_template.recorded(adapter, found.name)
    real = read_probes(made, processor, generation, config.parity_prompts, config.parity_pixels, trained_with)
    space = coordinates.taught(adapter, found.name)
    recorded: dict[str, Any] = config.as_dict()
    _admit(settings, config)
    inputs = {"adapter": adapter}
    if Path(found.name).is_dir():
        inputs["model"] = Path(found.name)
    else:
        recorded["model"] = found.name
    with manifest.writing("checkpoint", output, recorded, inputs, write_card) as draft:
        parity = engine.merge(
            found.name, str(adapter), draft.folder, real.features, device=device, generation=generation
        )
        kind = engine.stored_dtype(str(draft.folder))
        draft.notes.update(
            base=found.name, trained_on=found.trained_on, dtype=str(kind).removeprefix("torch.")
        )
        if space:  # which the merged checkpoint includes
            draft.notes["box_space"] = space
        if trained_with is not None:
            draft.notes[chat_template.NAME] = trained_with
        draft.notes.update(_by_part(parity, parts))
        draft.notes["parity"] = _report(parity, real.source) | {"tolerance": engine.tolerance(kind)}
        names = {name: {"part": parts[name], "changed": changed} for name, changed in parity.modules.items()}
        text = json.dumps({**draft.notes, "modules": names}, indent=2)
        (draft.folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return draft.notes


def _admit(settings: "ModelSettings", config: MergeConfig) -> None:
    """Refuses a base that does not fit, before it is loaded; ends a dry run."""
    from dcsft_harness.artifacts import usage
    from dcsft_harness.models import estimates
    from dcsft_harness.models.checkpoint import open_config

    device = usage.planned_device(settings.device)
    anatomy = estimates.Anatomy(open_config(settings))
    stored = anatomy.stored()
    parts = estimates.merging(anatomy, config.parity_prompts, config.max_new_tokens, device)
    seconds = 0.0
    if usage.PLANNING.get() is not None:
        seconds = estimates.seconds(anatomy, device, {}, 6 * stored)
    usage.admit(
        usage.Estimate(device, parts, seconds, stored, remedy="Use --device cpu, or take a larger machine")
    )


def _open(adapter: Path) -> manifest.Manifest | None:
    """The adapter's manifest; None if PEFT alone wrote it. Another or a changed folder is an error."""
    if not adapter.is_dir():
        raise HarnessError(f"adapter {adapter} does not exist", "Check the path")
    if not (adapter / manifest.NAME).is_file():
        if not (adapter / _ADAPTER).is_file():
            if (adapter / manifest.UNFINISHED).is_dir():
                manifest.read(adapter)  # refuses it
            raise HarnessError(
                f"{adapter} is not an adapter: it has no {_ADAPTER}",
                "Pass the folder that `dcsft train` or PEFT's save_pretrained wrote",
            )
        return None
    found = manifest.read(adapter, "adapter")
    manifest.refuse_changed(adapter)
    return found


def find_base(adapter: Path, made: manifest.Manifest | None, base: str | None) -> Base:
    """The base to merge into: the given one, else the adapter's own.

    Raises:
        HarnessError: the adapter's base is missing, has changed, or is not recorded.
    """
    if base is not None:
        return Base(base, _is_own(made, base))
    if made is not None and "model" in made.inputs:
        place = (made.folder / made.inputs["model"]["path"]).resolve()
        if not place.exists():
            raise missing_base(adapter, place, manifest.NAME)
        try:
            return Base(str(made.input_folder("model")), True)
        except HarnessError as error:
            raise HarnessError(error.problem, _NAME_BASE) from error
    if made is not None and made.config.get("model"):
        return Base(_present(adapter, str(made.config["model"]), manifest.NAME), True)
    try:
        named = reading.json_file(adapter / _ADAPTER).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise HarnessError(
            f"{adapter / _ADAPTER} cannot be read ({error!r})", "Pass the folder that PEFT wrote"
        ) from error
    if not named:
        raise HarnessError(f"{adapter / _ADAPTER} names no base", "Name the base to merge into with --base")
    return Base(_present(adapter, str(named), _ADAPTER), None)


_NAME_BASE = (
    "Restore it, or name it: --base DIR (of `dcsft merge` and `dcsft score`), or --model-args pretrained=DIR"
    " beside --model ADAPTER (of `dcsft sample` and `dcsft evaluate`)"
)
"""What to do about an adapter's base that is not where it was."""


def missing_base(adapter: Path, place: Path | str, source: str) -> HarnessError:
    """The error for an adapter whose base is not there; `source` is the file that names the base."""
    return HarnessError(
        f"the base of adapter {adapter} is missing: {adapter / source} names {place}, which does not exist",
        _NAME_BASE,
    )


def _present(adapter: Path, named: str, source: str) -> str:
    """A base's name; an error if it is a path that does not exist."""
    path = Path(named)
    hub = named.count("/") <= 1 and not path.is_absolute() and not named.startswith((".", "~"))
    if not hub and not path.is_dir():
        raise missing_base(adapter, named, source)
    return named


def _is_own(made: manifest.Manifest | None, base: str) -> bool | None:
    if made is None:
        return None
    if "model" in made.inputs:
        return Path(base).is_dir() and manifest.fingerprint(Path(base)) == made.inputs["model"]["sha256"]
    return made.config["model"] == base if made.config.get("model") else None


def _pixels(made: manifest.Manifest | None) -> dict[str, Any]:
    limits = (made.notes.get("pixel_limits") if made is not None else None) or {}
    return {f"{name}_pixels": limits[end] for name, end in (("min", "low"), ("max", "high")) if end in limits}


def _prepared(
    settings: "ModelSettings", config: MergeConfig
) -> tuple[dict[str, str], "ProcessorMixin", "GenerationConfig"]:
    """The part of each of the base's modules, its processor, and its generation settings.

    All of it is known without the base's weights; so is whether the adapter fits.

    Raises:
        HarnessError: the base cannot be opened, is quantized, or the adapter does not fit it.
    """
    from dcsft_harness.models.adapters import read_config
    from dcsft_harness.models.checkpoint import (
        check_adapter,
        check_weights,
        open_config,
        open_generation,
        open_processor,
    )
    from dcsft_harness.models.decoding import SpecialTokens
    from dcsft_harness.models.pixel_limits import limits_in_force, set_limits

    read_config(str(settings.adapter), settings.pretrained)
    opened = open_config(settings)
    if getattr(opened, "quantization_config", None) is not None:
        raise HarnessError(
            f"the base {settings.pretrained} is quantized, and a merge would round it again",
            "Name the checkpoint that it was quantized from with --base",
        )
    check_weights(settings, opened)
    check_adapter(settings, opened)
    processor = open_processor(settings)
    generation = SpecialTokens.of(processor.tokenizer, open_generation(settings)).neutral_config()
    generation.max_new_tokens, generation.do_sample = config.max_new_tokens, False
    limits = limits_in_force(processor)
    if limits is not None and limits.low > config.parity_pixels:  # which would make images larger again
        set_limits(processor, settings.pretrained, config.parity_pixels // 4, config.parity_pixels)
    return _parts(opened), processor, generation


def _parts(config: "PreTrainedConfig") -> dict[str, str]:
    """Module name -> "language", "vision" or "aligner", for a model without weights."""
    from dcsft_harness.models.checkpoint import skeleton
    from dcsft_harness.training.lora import linear_layers

    model = skeleton(config)
    linear = linear_layers(model)
    language = {id(module) for module in model.get_decoder().modules()}
    language.add(id(model.get_output_embeddings()))
    return {
        name: linear.get(name) or ("language" if id(module) in language else "vision")
        for name, module in model.named_modules()
    }


def _refuse_small_disk(files: Path | None, output: Path) -> None:
    """Refuses a disk without room for weights as large as the base's, before they are loaded."""
    if files is None:
        return
    wanted = sum(path.stat().st_size for path in files.glob("model*.safetensors"))
    place = next(path for path in output.resolve().parents if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise HarnessError(
            f"--output {output}: the checkpoint takes {wanted / 2**20:,.1f} MiB,"
            f" but only {free / 2**20:,.1f} MiB are free",
            "Free some space or name a folder on another disk",
        )


def _by_part(parity: "Parity", parts: Mapping[str, str]) -> dict[str, Any]:
    """The number of adapted modules of each part, the number that changed, and the names of the others."""
    from dcsft_harness.training.lora import count_by_part

    changed = {name: parts[name] for name, moved in parity.modules.items() if moved}
    return {
        "adapted": count_by_part({name: parts[name] for name in parity.modules}),
        "changed": count_by_part(changed),
        "unchanged": [name for name in parity.modules if name not in changed],
    }


def _report(parity: "Parity", source: str) -> dict[str, Any]:
    said = asdict(parity)
    del said["modules"]
    return {"source": source, **said, "rounded_away": list(parity.rounded_away)}
