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
    use = (
        "--model_args pretrained=BASE,adapter=THIS_FOLDER"
        if kind == "adapter"
        else "--model_args pretrained=THIS_FOLDER"
    )
    head = ["---", f"base_model: {json.dumps(base)}", "pipeline_tag: image-text-to-text", "tags: [dcsft]"]
    head.append("library_name: " + ("peft" if kind == "adapter" else "transformers"))
    settings = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in config.items())
    results = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in notes.items())
    title = "LoRA adapter" if kind == "adapter" else "Cold-started checkpoint"
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {title} trained by dcsft_harness",
            "",
            f"Base `{base}`, trained on `{data}`; `manifest.json` has hashes and versions.",
            "",
            f"    dcsft lmms-eval --model dcsft_hf {use} --tasks ...",
            "",
            "| setting | value |",
            "|---|---|",
            settings,
            "",
            "| measured | value |",
            "|---|---|",
            results,
            "",
        ]
    )
