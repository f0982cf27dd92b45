"""What goes to a model hub: the card of an adapter or checkpoint, its README.md; and the upload."""

import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import (
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.data import digits
from dcsft_harness.errors import HarnessError, json_text, last_name, placeless
from dcsft_harness.training.merging import REPORT

# Names and settings of other people as a card may show them: as plain text, without local paths.

_MARKS = re.compile(r"([\\`*_\[\]|~#$!])")


def escaped(value: object) -> str:
    """A value as plain text in Markdown, on one line: no markup, no table cells, no HTML.

    Numbers have six digits.
    """
    if isinstance(value, float):
        value = f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return _MARKS.sub(r"\\\1", html.escape(line, quote=False))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; cells are `escaped`, an empty one is a dash."""
    lines = [[*head], ["---"] * len(head)]
    lines += [["-" if cell is None else escaped(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


# The inputs of an artifact, read back through the manifests that lead to it.


def parent(artifact: manifest.Manifest, role: str) -> manifest.Manifest | None:
    """The manifest of one input; None if the input does not exist or has changed."""
    return manifest.origin(artifact, role).made if role in artifact.inputs else None


def hub_base(artifact: manifest.Manifest) -> str | None:
    """The hub name of an artifact's original base, traced through checkpoints made here; None if unknown."""
    above = (one.made for one in manifest.walk(artifact, lambda one: ["model"]) if one.made is not None)
    names = (made.config.get("model") for made in (artifact, *above))
    return next((name for name in names if isinstance(name, str) and not Path(name).is_absolute()), None)


def base_folder(artifact: manifest.Manifest) -> Path | None:
    """The folder of the original base, if it was a folder and still exists."""
    folders = [one.folder for one in manifest.walk(artifact, lambda one: ["model"])]
    return folders[-1] if folders and folders[-1].is_dir() else None


def _origin_name(folder: Path) -> str:
    try:
        embedded = folder == digits.path().resolve()
    except HarnessError:  # an installation without it
        embedded = False
    return "the embedded digits checkpoint" if embedded else folder.name


def origin_summary(made: manifest.Manifest) -> str:
    """An artifact's kind and content, in one line."""
    notes: dict[str, Any] = made.notes
    if made.kind in ("labels", "curated set"):
        mix = ", ".join(f"{notes[name]} {name}" for name in ("easy", "medium", "hard") if name in notes)
        words = {"unlabelled": "unlabeled", "excluded": "excluded", "censored": "censored"}
        more = [f"{notes[name]} {word}" for name, word in words.items() if notes.get(name)]
        chosen = [f"kept {', '.join(made.config['keep'])}"] if "keep" in made.config else []
        chosen += [f"mixed {name} {share}" for name, share in (made.config.get("mix") or {}).items()]
        return "; ".join([f"{notes.get('items')} items: {mix}", *more, *chosen])
    if made.kind == "rollouts":
        drawn = ", ".join(
            f"{name} {made.config[name]}"
            for name in ("model", "model_args", "task", "samples", "temperature", "seed")
            if made.config.get(name) is not None
        )
        tokens = f"{notes.get('prompt_tokens')} prompt and {notes.get('generated_tokens')} generated tokens"
        return f"{notes.get('items')} items, {notes.get('responses')} responses; {tokens}; {drawn}"
    counts = {name: value for name, value in notes.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.6g}" for name, value in list(counts.items())[:6])


# Scores of an artifact and of its base, from folders of `dcsft evaluate`.


@dataclass(frozen=True)
class Scored:
    """An accuracy on one task."""

    task: str  # an lmms-eval task
    # "id" or "ood", in or out of the training distribution; None if the task does not state it
    distribution: str | None
    of_base: bool  # whether it is the base's accuracy, for comparison
    accuracy: float | None  # in [0, 1]; None if no item was scored
    n: int  # items scored
    limit: int | None  # the number of items that the run was limited to; None if all were evaluated
    metric: str = "accuracy"  # what the accuracy is the mean of, such as "f1" or "avg@8"


def read_scores(made: manifest.Manifest, folders: Sequence[Path]) -> list[Scored]:
    """The accuracies in folders of `dcsft evaluate`, by task, the base's first; each task once.

    Raises:
        HarnessError: a folder has no scores, or those of another model, or two folders have the same task.
    """
    found: dict[tuple[str, bool], tuple[Path, Scored]] = {}
    for folder in folders:
        scores = manifest.read(folder, "scores")
        manifest.refuse_changed(folder)
        of_base = _of_base(made, scores)
        for task, said in scores.notes["tasks"].items():
            if (task, of_base) in found:
                raise HarnessError(
                    f"{folder} and {found[task, of_base][0]} both have scores of {task}",
                    "Use only one of them",
                )
            where, limit, metric = (said.get(name) for name in ("distribution", "limit", "metric"))
            own = None if metric in (None, "acc") else str(metric)
            # K sampled responses are no greedy accuracy; "accuracy" is the hub's name of lmms-eval's acc.
            of_samples = f"avg@{k}" if (k := said.get("samples")) else None
            named = " ".join(filter(None, (own, of_samples))) or "accuracy"
            row = Scored(task, where, of_base, said["accuracy"], said["n"], limit, named)
            found[task, of_base] = (folder, row)
    rows = [row for _, row in found.values()]
    return sorted(rows, key=lambda row: (row.task, not row.of_base))


def _of_base(made: manifest.Manifest, scores: manifest.Manifest) -> bool:
    """Whether scores are of the artifact's base; otherwise they must be of the artifact."""
    own = file_sha256(made.folder / manifest.NAME)
    base = made.weights().get("model")
    model, adapter = (scores.weights().get(role) for role in ("model", "adapter"))
    if adapter is None and base is not None and model == base:
        return True
    if own == (model if made.kind == "checkpoint" and adapter is None else adapter):
        return False
    option = "adapter" if made.kind == "adapter" else "pretrained"
    raise HarnessError(
        f"the scores in {scores.folder} are of another model than {made.folder}",
        f"Pass scores of `dcsft evaluate --model-args ...{option}={made.folder}`",
    )


KINDS = ("adapter", "checkpoint")
_LICENSE = ("license", "license_name", "license_link")
_TOLD = ("base", "data", "adapted", "changed", "unchanged", "trained_on", "ledger", "parity")
"""Notes with a section of their own; all others are listed."""


def write_card(folder: Path, scores: Sequence[Path] = (), place: Path | None = None) -> None:
    """Writes the card of a finished artifact into its folder, with scores of it or of its base.

    Nothing else of the artifact changes: its manifest has no hash of the card (`manifest.CARD`). `place` is
    the folder's final place, if it will move: its manifest names inputs relative to that.

    Raises:
        HarnessError: neither an adapter nor a checkpoint, scores of another model, or one of the folders was
            changed after it was written.
    """
    made = manifest.read(folder)
    if made.kind not in KINDS:
        raise HarnessError(
            f"{folder} holds {manifest.indefinite(made.kind)}, which has no card",
            "Pass an adapter or a checkpoint",
        )
    if place is None:
        manifest.refuse_changed(folder)
    made = replace(made, folder=place or folder)
    (folder / manifest.CARD).write_text(card(made, read_scores(made, scores)), encoding="utf-8")


def card(made: manifest.Manifest, scored: Sequence[Scored] = ()) -> str:
    """The card of an artifact, starting with the hub's metadata.

    It marks inputs that are gone or have changed. `scored` are known accuracies of the artifact and of its
    base.
    """
    # For a merge, the manifest of what was trained; an adapter made from another one continued its training.
    source = (_is_merge(made) and parent(made, "adapter")) or made
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
        *("## How to use it", "", _USE[made.kind]),
        *_licence_section(made),
    ]
    text = "\n".join(["---", _metadata(made, scored).to_yaml(), "---", "", *sections])
    return str(ModelCard(text))


def _metadata(made: manifest.Manifest, scored: Sequence[Scored]) -> ModelCardData:
    base = hub_base(made)
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=row.task,
            dataset_name=row.task,
            metric_type=row.metric,
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
        # The folder's name may be any text, and the hub requires a name for results.
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
    """The base's license according to its own card, if that card is on this machine."""
    folder, base = base_folder(made), hub_base(made)
    path: object = folder / manifest.CARD if folder is not None else None
    if base is not None and _is_repo(base):
        path = try_to_load_from_cache(base, manifest.CARD)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {"license": "unknown"}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError):
        return {"license": "unknown"}
    found = {name: str(data[name]) for name in _LICENSE if isinstance(data.get(name), str)}
    return found if "license" in found else {"license": "unknown"}


def _opening(made: manifest.Manifest, source: manifest.Manifest) -> list[str]:
    adapter = made.kind == "adapter"
    title = "LoRA adapter" if adapter else "Merged checkpoint" if _is_merge(made) else "Checkpoint"
    base = _base_name(made)
    data = parent(source, "data")
    name = data.folder.resolve().name if data is not None else _name(source.notes.get("data"))
    return [
        f"# {title} made by dcsft\\_harness",
        "",
        f"Base: {escaped(base)}. Trained on: {escaped(name)}. "
        f"Card by version {version('dcsft-harness')}; `manifest.json` has all hashes and versions.",
        "",
    ]


def _is_merge(made: manifest.Manifest) -> bool:
    return made.kind == "checkpoint" and "adapter" in made.inputs


def _base_name(made: manifest.Manifest) -> str:
    named = next((_origin_name(one.folder) for one in manifest.walk(made) if one.role == "model"), None)
    base = hub_base(made)
    if named is not None:
        return f"{named} (from {base})" if base else named
    return base or _name(made.notes.get("base"))


def _name(path: object) -> str:
    return placeless(str(path)) if path is not None else "unknown"


def _data(made: manifest.Manifest) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for one in manifest.walk(made):
        holds = placeless(origin_summary(one.made)) if one.made is not None else one.problem
        seconds = f"{one.made.seconds:.0f} s" if one.made is not None else None
        kind = one.made.kind if one.made is not None else None
        rows.append((one.role, _origin_name(one.folder), kind, holds, seconds, one.sha256[:16]))
    if "data" in made.config:  # a set without a folder
        rows.append(("data", _name(made.notes.get("data")), None, None, None, str(made.config["data"])[:16]))
    head = ("role", "folder", "kind", "holds", "made in", "SHA-256")
    return _section("What it comes from", head, rows)


def _modules(made: manifest.Manifest) -> list[str]:
    adapted, changed = made.notes.get("adapted") or {}, made.notes.get("changed")
    if changed is None:
        return _section("What was adapted", ("part", "modules"), list(adapted.items()))
    rows = [(part, count, changed.get(part)) for part, count in adapted.items()]
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
    rows = []
    for row in scored:
        metric = "" if row.metric == "accuracy" else f" ({row.metric})"
        accuracy = None if row.accuracy is None else f"{100 * row.accuracy:.1f} %{metric}"
        whose = "base" if row.of_base else "this"
        rows.append((row.task, row.distribution, whose, accuracy, row.n, row.limit))
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


def _licence_section(made: manifest.Manifest) -> list[str]:
    found = _licence(made)
    said = (
        "The base's license is not known. It applies to these weights, and the data's license may apply, too."
        if found["license"] == "unknown"
        else f"The base's license ({escaped(', '.join(found.values()))}) applies to these weights, and "
        "the data's license may apply, too."
    )
    return ["## License", "", said, ""]


# artifact -> model hub: checks before the work begins, and the upload when it is done.


_REPORTS = (manifest.NAME, REPORT)
_CONFIGS = ("adapter_config.json", "config.json")
_ENDINGS = (
    ".safetensors",
    ".bin",
    "-*-of-*.safetensors",
    "-*-of-*.bin",
    ".safetensors.index.json",
    ".bin.index.json",
)
_LOADED = [
    *(*_CONFIGS, "generation_config.json"),
    *(name + ending for name in ("adapter_model", "model", "pytorch_model") for ending in _ENDINGS),
]
"""Weights and configurations that PEFT and transformers look for. Those of an earlier upload would be loaded
in place of the new ones, as an adapter beside a merged checkpoint is."""
_LEFT_OUT = ("checkpoint-", "runs/")
"""What is not uploaded: a run's earlier steps, and TensorBoard's files, named after this machine."""
_CLIENTS = ("httpx", "requests")
_ORIGINS = ("base_model_name_or_path", "_name_or_path")
"""Entries in configurations of PEFT and transformers that may contain local paths."""


def check(repo: str) -> None:
    """Checks whether an upload to "name" or "owner/name" can succeed, before anything else is done.

    Raises:
        HarnessError: the name is invalid, the hub is switched off or cannot be reached, or the user has no
            valid token.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HarnessError(
            f"{repo!r} is not the name of a repository on the hub",
            "Write owner/name, of letters, digits, dots, - and _",
        ) from error
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise HarnessError(
            f"cannot push to {repo}: HF_HUB_OFFLINE is set", "Unset it, or push later with `dcsft push`"
        )
    if huggingface_hub.get_token() is None:
        raise HarnessError(
            f"cannot push to {repo}: there is no hub token",
            "Run `hf auth login`, or set HF_TOKEN to a token with write access",
        )
    with _hub_errors(repo):
        HfApi().whoami()


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Uploads a finished adapter or checkpoint, its card included; returns the repository's address.

    Checkpoints of a run's earlier steps are not uploaded. In the uploaded copies of JSON files, local paths
    are cut to their last name; the folder itself does not change. A repository that does not exist is
    created; of one that does, weights and configurations of an earlier upload are removed if not replaced.

    Raises:
        HarnessError: neither an adapter nor a checkpoint, files changed since it was written, or the upload
            cannot succeed (see `check`).
    """
    refuse_unfit(folder)
    check(repo)
    api, sent = HfApi(), _sent(folder)
    changes: list[CommitOperation] = [CommitOperationAdd(name, content) for name, content in sent.items()]
    with _hub_errors(repo):
        created = api.create_repo(repo, private=private, exist_ok=True)
        earlier = [name for name in api.list_repo_files(created.repo_id) if name not in sent]
        loaded = [name for name in earlier if any(fnmatch(name, pattern) for pattern in _LOADED)]
        changes += [CommitOperationDelete(name) for name in loaded]
        api.create_commit(created.repo_id, changes, commit_message="Upload by dcsft_harness")
    return str(created)


def refuse_unfit(folder: Path) -> None:
    """Refuses to upload another kind of folder, files changed since they were written, or damaged weights."""
    made = manifest.read(folder)
    if made.kind not in KINDS:
        raise HarnessError(
            f"{folder} holds {manifest.indefinite(made.kind)}", "Pass an adapter or a checkpoint"
        )
    manifest.refuse_changed(folder)
    _refuse_damaged(folder, made)


def _refuse_damaged(folder: Path, made: manifest.Manifest) -> None:
    """Refuses weights that nobody could use: missing, unexpected, of another shape or not finite.

    If an adapter's base is not on this machine, names and shapes are not compared.
    """
    from dcsft_harness.models import adapters, checkpoint, weights
    from dcsft_harness.models.arguments import ModelSettings

    if made.kind == "checkpoint":
        settings = ModelSettings(pretrained=str(folder))
        checkpoint.check_weights(settings, checkpoint.open_config(settings))
        weights.check_stored(str(folder))
        return
    base = str(adapters.read_config(str(folder), "its base").base_model_name_or_path)
    if "model" in made.inputs:
        base = str((folder / made.inputs["model"]["path"]).resolve())
    if Path(base).is_dir():
        settings = ModelSettings(pretrained=base, adapter=str(folder))
        checkpoint.check_adapter(settings, checkpoint.open_config(settings))
    else:
        adapters.read_finite(str(folder))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turns an error of the hub or the network into one sentence."""
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        remedy = (
            "Check that the token (`hf auth whoami`) may write there"
            if code in (401, 403, 404)
            else "Try again"
        )
        said = error.server_message or str(error).strip().split("\n")[0]
        raise HarnessError(f"the hub refuses {repo} ({code}: {said})", remedy) from error
    except Exception as error:
        # huggingface_hub's releases go through requests, httpx or httpx2, whose errors share no class.
        if not isinstance(error, ConnectionError) and not type(error).__module__.startswith(_CLIENTS):
            raise
        raise HarnessError(
            f"the hub cannot be reached for {repo} ({type(error).__name__}: {error})",
            "Check the network; the finished artifact can be pushed later with `dcsft push`",
        ) from error


def _sent(folder: Path) -> dict[str, str | bytes]:
    """The files to upload, by name: where each is, or its content, if that had local paths."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sent: dict[str, str | bytes] = {
        name: str(path) for name, path in files.items() if not name.startswith(_LEFT_OUT)
    }
    rewritten = {name: _placeless(files[name]) for name in (*_REPORTS, *_CONFIGS) if name in sent}
    made = rewritten.pop(manifest.NAME)
    contents = {name: _json(data) for name, data in rewritten.items()}
    made["files"] = {
        name: hashlib.sha256(contents[name]).hexdigest() if name in contents else digest
        for name, digest in made["files"].items()
        if name in sent
    }
    return sent | contents | {manifest.NAME: _json(made)}


def _placeless(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = reading.json_file(path)
    if path.name in _REPORTS:
        return dict(placeless(data))
    return data | {name: last_name(data[name]) for name in _ORIGINS if isinstance(data.get(name), str)}


def _json(value: object) -> bytes:
    return (json_text(value, indent=2) + "\n").encode()
