"""artifact -> model hub: checks before the work begins, and the upload when it is done."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.artifacts.lock import Scratch
from dcsft_harness.errors import HarnessError, json_text
from dcsft_harness.training.merging import REPORT

KINDS = ("adapter", "checkpoint")
_REPORTS = (manifest.NAME, REPORT)
_CONFIGS = ("adapter_config.json", "config.json")
_CHECKPOINT = "checkpoint-"
"""Prefix of the folders of a run's earlier steps, which are not uploaded."""
_CURVES = "runs"
"""TensorBoard's files, whose names contain this machine's name; not uploaded either."""
_CLIENTS = ("httpx", "requests")
_ORIGINS = ("base_model_name_or_path", "_name_or_path")
"""Entries in configurations of PEFT and transformers that may contain local paths."""


def check(repo: str) -> None:
    """Checks whether an upload to "name" or "owner/name" can succeed, before anything else is done.

    Raises:
        HarnessError: the name is invalid, the hub is switched off or cannot be reached, or the user has no
            valid token.
    """
    import huggingface_hub
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HarnessError(
            f"{repo!r} is not the name of a repository on the hub",
            "Write owner/name, of letters, digits, dots, - and _",
        ) from error
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise HarnessError(
            f"cannot push to {repo}: HF_HUB_OFFLINE is set", "Unset it, or push later by `dcsft push`"
        )
    if huggingface_hub.get_token() is None:
        raise HarnessError(
            f"cannot push to {repo}: there is no token of the hub",
            "Run `hf auth login`, or set HF_TOKEN to one that may write",
        )
    with _hub_errors(repo):
        HfApi().whoami()


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Uploads a finished adapter or checkpoint, its card included; returns the repository's address.

    Checkpoints of a run's earlier steps are not uploaded. In the uploaded copies of JSON files, local paths
    are cut to their last name; the folder itself does not change. A repository that does not exist is
    created.

    Raises:
        HarnessError: neither an adapter nor a checkpoint, files changed since it was written, or the hub
            refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    refuse_unfit(folder)
    api = HfApi()
    with _hub_errors(repo), _copy(folder) as copy:
        created = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=copy, commit_message="Upload by dcsft_harness")
    return str(created)


def refuse_unfit(folder: Path) -> None:
    """Refuses to upload another kind of folder, files changed since they were written, or damaged weights."""
    made = manifest.read(folder)
    if made.kind not in KINDS:
        raise HarnessError(f"{folder} holds {made.kind}", "Give an adapter or a checkpoint")
    manifest.refuse_changed(folder)
    _refuse_damaged(folder, made)


def _refuse_damaged(folder: Path, made: manifest.Manifest) -> None:
    """Refuses weights that nobody could use: missing, unexpected, of another shape or not finite.

    If an adapter's base is not on this machine, names and shapes are not compared.
    """
    from dcsft_harness.models import adapters, checkpoint, weights
    from dcsft_harness.models.arguments import ModelSettings

    if made.kind == "checkpoint":
        settings = ModelSettings(str(folder))
        checkpoint.check_weights(settings, checkpoint.open_config(settings))
        weights.check_stored(str(folder))
        return
    base = str(adapters.read_config(str(folder), "its base").base_model_name_or_path)
    if "model" in made.inputs:
        base = str((folder / made.inputs["model"]["path"]).resolve())
    if Path(base).is_dir():
        settings = ModelSettings(base, str(folder))
        checkpoint.check_adapter(settings, checkpoint.open_config(settings))
    else:
        adapters.read_finite(str(folder))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turns an error of the hub or the network into one sentence."""
    from huggingface_hub.errors import HfHubHTTPError

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
            "Check the network; what is finished can be pushed later by `dcsft push`",
        ) from error


@contextmanager
def _copy(folder: Path) -> Iterator[str]:
    """A folder of links to the artifact's files, with local paths removed from configurations."""
    scratch = Scratch("dcsft_push")
    try:
        copy = scratch.folder
        rewritten = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            within = path.relative_to(folder)
            if within.parts[0].startswith(_CHECKPOINT) or within.parts[0] == _CURVES:
                continue
            place = copy / within
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.parent == folder and path.name in (*_REPORTS, *_CONFIGS):
                rewritten[path.name] = _placeless(path)
                place.write_text(_json(rewritten[path.name]), encoding="utf-8")
            else:
                os.symlink(path.resolve(), place)
        made = rewritten[manifest.NAME]
        made["files"] = {
            name: file_sha256(copy / name) if name in rewritten else digest
            for name, digest in made["files"].items()
            if (copy / name).is_file()
        }
        (copy / manifest.NAME).write_text(_json(made), encoding="utf-8")
        yield str(copy)
    finally:
        scratch.remove()


def _placeless(path: Path) -> dict[str, Any]:
    from dcsft_harness.training.card import last_name, placeless

    data: dict[str, Any] = reading.json_file(path)
    if path.name in _REPORTS:
        return dict(placeless(data))
    return data | {name: last_name(data[name]) for name in _ORIGINS if isinstance(data.get(name), str)}


def _json(value: object) -> str:
    return json_text(value, indent=2) + "\n"
