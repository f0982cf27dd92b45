"""The README.md of an adapter or checkpoint: what it is, what it comes from, how to use it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import origins
from dcsft_harness.training.escaping import escaped, placeless, table
from dcsft_harness.training.scored import Scored, read_scores

KINDS = ("adapter", "checkpoint")
_LICENCE = ("license", "license_name", "license_link")
_TOLD = ("base", "data", "adapted", "changed", "unchanged", "trained_on", "ledger", "parity")
"""Notes with a section of their own; all others are listed."""


def write(folder: Path, scores: Sequence[Path] = (), place: Path | None = None) -> None:
    """Writes the card of a finished artefact into its folder.

    Nothing else of the artefact changes: its manifest has no hash of the card (`manifest.CARD`).

    Args:
        folder: an adapter or a checkpoint with its manifest.
        scores: folders of `dcsft evaluate`, of this artefact or of its base.
        place: where the folder will lie, if not where it is: its manifest names inputs relative to that.

    Raises:
        HarnessError: neither an adapter nor a checkpoint, or scores of another model.
    """
    made = manifest.read(folder)
    if made.kind not in KINDS:
        raise HarnessError(
            f"{folder} holds {made.kind}, which has no card", "Give an adapter or a checkpoint"
        )
    made = replace(made, folder=place or folder)
    (folder / manifest.CARD).write_text(card(made, read_scores(made, scores)), encoding="utf-8")


def card(made: manifest.Manifest, scored: Sequence[Scored] = ()) -> str:
    """The card of an artefact, with the hub's metadata in front.

    Args:
        made: the artefact's manifest; inputs that are gone or have changed since are said to be.
        scored: what is known of its accuracy and of its base's.
    """
    # What was trained, where this is a merge of it; an adapter that is made from one went on from it.
    source = (_is_merge(made) and origins.parent(made, "adapter")) or made
    sections = [
        *_opening(made, source),
        *_data(made),
        *_modules(made),
        *_section("Settings", ("setting", "value"), _settings(source)),
        *_section("Cost", ("ledger", "value"), _entries(source.notes.get("ledger"))),
        *_section("Measured", ("note", "value"), _measured(made, source)),
        *_section(
            "The merge against base and adapter", ("parity", "value"), _entries(made.notes.get("parity"))
        ),
        *_scores(scored),
        *_use(made),
        *_licence_section(made),
    ]
    text = "\n".join(["---", _metadata(made, scored).to_yaml(), "---", "", *sections])
    return str(ModelCard(text))


def _metadata(made: manifest.Manifest, scored: Sequence[Scored]) -> ModelCardData:
    base = origins.hub_base(made)
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=row.task,
            dataset_name=row.task,
            metric_type="accuracy",
            metric_value=row.accuracy,
        )
        for row in scored
        if not row.of_base and row.accuracy is not None and row.limit is None
    ]
    adapter = made.kind == "adapter"
    more: dict[str, Any] = dict(_licence(made))
    if base is not None and _is_repo(base):
        more |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["dcsft", "vision-language", *(["lora"] if adapter else [])],
        # The folder's name may be any text, and the hub asks for a name where there are results.
        model_name=made.folder.resolve().name if results else None,
        eval_results=results or None,
        **more,
    )


def _is_repo(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _licence(made: manifest.Manifest) -> dict[str, str]:
    """The base's licence as its own card gives it, if that card is on this machine."""
    folder, base = origins.base_folder(made), origins.hub_base(made)
    path: object = folder / manifest.CARD if folder is not None else None
    if base is not None and _is_repo(base):
        path = try_to_load_from_cache(base, manifest.CARD)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {"license": "unknown"}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError):
        return {"license": "unknown"}
    found = {name: str(data[name]) for name in _LICENCE if isinstance(data.get(name), str)}
    return found if "license" in found else {"license": "unknown"}


def _opening(made: manifest.Manifest, source: manifest.Manifest) -> list[str]:
    adapter = made.kind == "adapter"
    title = "LoRA adapter" if adapter else "Merged checkpoint" if _is_merge(made) else "Checkpoint"
    base = _base_name(made)
    data = origins.parent(source, "data")
    name = data.folder.resolve().name if data is not None else _name(source.notes.get("data"))
    return [
        f"# {title} made by dcsft\\_harness",
        "",
        f"Base: {escaped(base)}. Trained on: {escaped(name)}. "
        f"The card is of version {version('dcsft-harness')}; `manifest.json` has all hashes and versions.",
        "",
    ]


def _is_merge(made: manifest.Manifest) -> bool:
    return made.kind == "checkpoint" and "adapter" in made.inputs


def _base_name(made: manifest.Manifest) -> str:
    named = next((one.name for one in origins.walk(made) if one.role == "model"), None)
    base = origins.hub_base(made)
    if named is not None:
        return f"{named} (from {base})" if base else named
    return base or _name(made.notes.get("base"))


def _name(path: object) -> str:
    return str(placeless(str(path))) if path is not None else "unknown"


def _data(made: manifest.Manifest) -> list[str]:
    """Everything that the artefact comes from, with its hash."""
    rows: list[tuple[object, ...]] = []
    for one in origins.walk(made):
        holds = placeless(origins.summary(one.made)) if one.made is not None else one.said
        seconds = f"{one.made.seconds:.0f} s" if one.made is not None else None
        kind = one.made.kind if one.made is not None else None
        rows.append((one.role, one.name, kind, holds, seconds, one.sha256[:16]))
    if "data" in made.config:  # a set without a folder
        rows.append(("data", _name(made.notes.get("data")), None, None, None, str(made.config["data"])[:16]))
    head = ("role", "folder", "kind", "holds", "made in", "SHA-256")
    return _section("What it comes from", head, rows)


def _modules(made: manifest.Manifest) -> list[str]:
    adapted, changed = made.notes.get("adapted"), made.notes.get("changed")
    if not isinstance(adapted, Mapping):
        return []
    rows = [
        (part, count, changed.get(part) if isinstance(changed, Mapping) else None)
        for part, count in adapted.items()
    ]
    if changed is None:
        return _section("What was adapted", ("part", "modules"), [row[:2] for row in rows])
    return _section("What was adapted", ("part", "modules adapted", "changed in the merged weights"), rows)


def _settings(source: manifest.Manifest) -> list[tuple[object, ...]]:
    return [(name, value) for name, value in placeless(source.config).items() if name != "data"]


def _measured(made: manifest.Manifest, source: manifest.Manifest) -> list[tuple[object, ...]]:
    notes = source.notes | {name: value for name, value in made.notes.items() if made is not source}
    return _entries({name: value for name, value in notes.items() if name not in _TOLD})


def _entries(values: object) -> list[tuple[object, ...]]:
    return list(placeless(values).items()) if isinstance(values, Mapping) else []


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"## {title}", "", *table(head, rows)] if rows else []


def _scores(scored: Sequence[Scored]) -> list[str]:
    if not scored:
        return ["## Scores", "", "Not evaluated yet.", ""]
    rows = [
        (
            row.task,
            row.distribution,
            "base" if row.of_base else "this",
            "-" if row.accuracy is None else f"{100 * row.accuracy:.1f} %",
            row.n,
            row.limit,
        )
        for row in scored
    ]
    return _section("Scores", ("task", "distribution", "of", "accuracy", "items", "first items only"), rows)


_USE = {
    "adapter": """With lmms-eval, unmerged (`BASE` is the base, `FOLDER` this folder):

    dcsft evaluate --model-args pretrained=BASE,adapter=FOLDER,batch_size=8 --tasks TASKS --output scores

In transformers with PEFT:

    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor
    model = AutoModelForImageTextToText.from_pretrained("BASE", dtype="auto")
    model = PeftModel.from_pretrained(model, "FOLDER").eval()
    processor = AutoProcessor.from_pretrained("BASE")

In vLLM, which serves no adapters of a vision tower, so they are merged first:

    dcsft merge FOLDER --output merged
    vllm serve merged
""",
    "checkpoint": """With lmms-eval (`FOLDER` is this folder):

    dcsft evaluate --model-args pretrained=FOLDER,batch_size=8 --tasks TASKS --output scores

In transformers:

    from transformers import AutoModelForImageTextToText, AutoProcessor
    model = AutoModelForImageTextToText.from_pretrained("FOLDER", dtype="auto").eval()
    processor = AutoProcessor.from_pretrained("FOLDER")

In vLLM:

    vllm serve FOLDER
""",
}


def _use(made: manifest.Manifest) -> list[str]:
    return ["## How to use it", "", _USE[made.kind]]


def _licence_section(made: manifest.Manifest) -> list[str]:
    found = _licence(made)
    said = (
        "The base's licence is not known here; it holds for these weights, as that of the data may."
        if found["license"] == "unknown"
        else f"The base's licence ({escaped(', '.join(found.values()))}) holds for these weights, as that of "
        "the data may."
    )
    return ["## Licence", "", said, ""]
