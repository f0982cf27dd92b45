"""Real prompts with pictures, as a model gets them: what two models are compared on."""

from typing import Any, NamedTuple

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError

STAND_IN = "dcsft_digits"
"""The task whose items stand in where an adapter's own training set is not at hand."""


class Probes(NamedTuple):
    """Real inputs of a model.

    Attributes:
        source: the set that they are from.
        features: what the processor made of each prompt.
    """

    source: str
    features: list[Any]


def read(
    made: manifest.Manifest | None,
    processor: Any,  # noqa: ANN401 - a checkpoint's processor
    generation: Any,  # noqa: ANN401 - its GenerationConfig, which names its end marks
    count: int,
) -> Probes:
    """Prompts of the set that an adapter was trained on, evenly spread over it.

    Args:
        made: the adapter's manifest; None of one that has none.
        processor: what the prompts go through.
        generation: names the end marks.
        count: how many, if the set has as many.

    Raises:
        HarnessError: a row of the training set cannot be read.
    """
    from dcsft_harness.models.batching import process
    from dcsft_harness.training import data as training_data
    from dcsft_harness.training.rendering import Template

    found = _training_set(made)
    source, rows = found if found is not None else (STAND_IN, _digits())
    skipped = set((made.notes.get("skipped") or {}).get("rows", ())) if found is not None and made else set()
    if skipped:
        rows = rows.select([number for number in range(len(rows)) if number not in skipped])
    count = min(count, len(rows))
    chosen = rows.select([len(rows) * number // count for number in range(count)])
    conversations = training_data.read(chosen)
    template = Template.of(processor, generation)
    features = []
    for row, turns in enumerate(conversations.turns):
        text = template.render(turns, f"{source}, row {row}").prompt
        features.append(process(processor, [text], [conversations.images(row) if turns.images else []]))
    return Probes(source, features)


def _training_set(made: manifest.Manifest | None) -> tuple[str, Any] | None:
    """The adapter's own training set, if it is still there as it was."""
    from datasets import load_from_disk

    if made is None or "data" not in made.inputs:
        return None
    try:
        folder = made.input_folder("data")
    except HarnessError:
        return None
    rows = load_from_disk(str(folder / "data" if (folder / "data").is_dir() else folder))
    return "the training set", rows


def _digits() -> Any:  # noqa: ANN401 - datasets.Dataset
    """The stand-in's items in the columns of a curated set."""
    from datasets import Dataset

    from dcsft_harness.curation.conversations import conversation, features
    from dcsft_harness.data.digits import suite

    rows = [
        conversation({"images": [row["image"]], "prompt": row["prompt"], "target": row["target"]})
        for row in suite.load(STAND_IN).select(range(64))
    ]
    columns = {name: kind for name, kind in features(labelled=False).items() if name != "item_id"}
    return Dataset.from_list(rows, features=type(features())(columns))
