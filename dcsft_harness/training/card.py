"""The README.md of an adapter or checkpoint: what it is, what it comes from, how to use it."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(kind: str, base: str, data: str, config: Mapping[str, Any], notes: Mapping[str, Any]) -> str:
    """A model card in the hub's format.

    Args:
        kind: "adapter" or "checkpoint".
        base: the base's folder or hub name, as given.
        data: the training set's folder, as given.
        config: the settings.
        notes: the manifest's notes.
    """
    adapter = kind == "adapter"
    title = "LoRA adapter" if adapter else "Cold-started checkpoint"
    arguments = "pretrained=BASE,adapter=THIS_FOLDER" if adapter else "pretrained=THIS_FOLDER"
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "tags: [dcsft]",
        "---",
        "",
        f"# {title} trained by dcsft_harness",
        "",
        f"Base `{base}`, trained on `{data}`; `manifest.json` has hashes and versions.",
        "",
        f"    dcsft lmms-eval --model dcsft_hf --model_args {arguments} --tasks ...",
        "",
        *_table("setting", config),
        *_table("measured", notes),
    ]
    return "\n".join(lines)


def _table(head: str, values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {json.dumps(value)} |" for name, value in values.items()]
    return [f"| {head} | value |", "|---|---|", *rows, ""]
