"""`dcsft data inspect`: Show the first rows of your own data as a model will see them."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from dcsft_harness import reading, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.data import OwnRows
from dcsft_harness.errors import LISTED, HarnessError, cut, grouped, json_text, visible_lines
from dcsft_harness.records import MARK, RIGHT
from dcsft_harness.settings import flag, option
from dcsft_harness.stages.stage import Notes, Progress, Stage

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from dcsft_harness.scoring import Scorer

FILE = "rows.json"
_TEXT = 2000
"""The most characters of a text to show."""


class InspectOptions(OwnRows):
    """What to look at."""

    data: Path = option(
        about="The rows: JSONL, JSON, CSV, Parquet, or a folder saved by `datasets`.",
        positional=True,
        reads="pool",
    )
    rows: int = option(3, "How many of the first rows to show; all are checked.", ge=1, le=100)
    model: str | None = option(
        None,
        "A checkpoint or adapter: shows each prompt in its chat template, and counts tokens.",
        metavar="CKPT",
        reads="checkpoint",
    )
    chat_template_kwargs: Mapping[str, Any] | None = option(
        None,
        "With --model: further arguments of its chat template, as JSON; by default those of its training.",
        metavar="JSON",
    )
    on_error: Literal["stop", "skip"] = option(
        "stop", "Unusable rows are always listed; stop then fails, skip does not."
    )

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _read_template_arguments(cls, given: object) -> object:
        return None if given is None else reading.json_option(flag("chat_template_kwargs"), given)


def run(options: InspectOptions, output: Path | None, progress: Progress | None) -> Notes:
    """Shows the rows; writes nothing without an output."""
    from dcsft_harness.sampling import own_data, own_files, own_rows
    from dcsft_harness.scoring import get_scorer

    judge = own_data.ANY if options.scorer is None else get_scorer(options.scorer)
    place = options.image_root or own_files.root_of(options.data)
    root = own_rows.Root(place, options.allow_outside_root)
    if options.model is None and options.chat_template_kwargs is not None:
        raise HarnessError("--chat-template-kwargs requires --model", "Pass both")
    processor, arguments, marks = (None, {}, []) if options.model is None else _processor(options)
    shown: list[dict[str, Any]] = []
    bad: list[tuple[str, HarnessError]] = []
    unseen: dict[str, list[str]] = {}
    count = 0
    for where, row, reason in own_data.examined(options.data, judge, root):
        count += 1
        for why in (row or {}).get("unseen", ()):
            unseen.setdefault(why, []).append(where)
        if row is not None and reason is None:
            texts = {"prompt": row["prompt"], "answer": row["target"]}
            found = next(((part, mark) for mark in marks for part in texts if mark in texts[part]), None)
            if found is not None:  # as sampling and training refuse it
                why = f"the {found[0]} has {found[1]!r}, which the model reads as its own image token"
                reason = HarnessError(why, f"Write {MARK} in its place, or remove the row")
        if reason is not None:
            bad.append((where, reason))
        elif row is not None and len(shown) < options.rows:
            shown.append({"row": where, **_described(row, judge, processor, arguments, options)})
    refused = [{"row": where, "reason": str(error)} for where, error in bad[:LISTED]]
    notes = {"count": count, "refused": len(bad), "refused_rows": refused, "rows": shown}
    said = grouped((where, cut(str(error), 300)) for where, error in bad)
    notes |= {"on_error": options.on_error, "refused_reasons": said}
    notes["unseen"] = own_data.unseen_notice(options.data, unseen, count - len(bad))
    notes |= {"task": own_files.name_of(options.data), "scorer": options.scorer, "model": options.model}
    if output is not None:
        with manifest.writing("inspection", output, options.as_dict(), {"data": options.data}) as draft:
            text = json_text(notes, indent=2)
            (draft.folder / FILE).write_text(text + "\n", encoding="utf-8")
            draft.notes |= notes
    return notes


def _processor(options: InspectOptions) -> tuple["ProcessorMixin", Mapping[str, Any], list[str]]:
    """The model's processor, its chat template's arguments, and its own image tokens."""
    from dcsft_harness.evaluation.subject import open_subject
    from dcsft_harness.models.arguments import ModelSettings
    from dcsft_harness.models.chat_template import media_marks
    from dcsft_harness.models.checkpoint import open_config, open_processor, template_arguments

    subject = open_subject(str(options.model), None)
    adapter = None if subject.adapter is None else str(subject.adapter)
    settings = ModelSettings(
        pretrained=subject.pretrained, adapter=adapter, chat_template_kwargs=options.chat_template_kwargs
    )
    processor = open_processor(settings)
    marks = [mark for mark in media_marks(processor, open_config(settings)) if mark != MARK]
    return processor, template_arguments(settings), marks


def _described(
    row: Mapping[str, Any],
    scorer: "Scorer",
    processor: "ProcessorMixin | None",
    arguments: Mapping[str, Any],
    options: InspectOptions,
) -> dict[str, Any]:
    from dcsft_harness.curation.conversations import conversation

    *turns, answer = conversation(row)["messages"]
    found: dict[str, Any] = {
        "item_id": row["item_id"],
        "pictures": [_picture(row, number) for number in range(len(row["images"]))],
        "turns": turns,
        "target": answer["content"],
    }
    if row["rejected"] is not None:
        found["rejected"] = row["rejected"]
    if options.scorer is not None:
        found["gold"] = reading.from_json(row["answer"])
        found |= {"choices": row["choices"]} if row["choices"] else {}
        found["verdict"] = _verdict(row, scorer)
    if processor is not None:
        found |= _rendered(turns, row, processor, arguments, str(options.model))
    return found


def _picture(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """An image's stored format, and how it is shown."""
    from PIL import Image

    from dcsft_harness import pictures

    with Image.open(io.BytesIO(row["originals"][number])) as image:
        found = pictures.read(row["originals"][number])
        return {
            "format": image.format,
            "frames": found.frames,
            "size": list(image.size),
            "mode": image.mode,
            "orientation": pictures.orientation(image),
            "shown": list(found.shown.size),
        }


def _verdict(row: Mapping[str, Any], scorer: "Scorer") -> dict[str, Any]:
    """The score of the row's own target as a response."""
    fields = {"choices": row["choices"], "image_size": (row["width"], row["height"]), "box_space": "pixel"}
    given = {name: value for name, value in fields.items() if name in scorer.fields}
    verdict = scorer(row["target"], answer=reading.from_json(row["answer"]), **given)
    return {"score": verdict.score, "extracted": verdict.extracted}


def _rendered(
    turns: list[dict[str, str]],
    row: Mapping[str, Any],
    processor: "ProcessorMixin",
    arguments: Mapping[str, Any],
    model: str,
) -> dict[str, Any]:
    """The prompt as rendered by the model's template, and its tokens."""
    from dcsft_harness import pictures
    from dcsft_harness.models import chat_template
    from dcsft_harness.models.batching import count_tokens, tokenize

    messages = [{"role": turn["role"], "content": records.parts(turn["content"])} for turn in turns]
    text = chat_template.render(processor, messages, f"model {model}", True, arguments)
    tokens = tokenize(processor, text)
    images = [pictures.read(content).shown for content in row["originals"]]
    whole = count_tokens(processor, text, tokens, images)
    return {"prompt": text, "tokens": whole, "image_tokens": whole - len(tokens) + len(images)}


def show(notes: Mapping[str, Any]) -> str:
    """The rows as text."""
    parts = [_shown(row) for row in notes["rows"]]
    if notes["refused"]:
        rows = "row" if notes["refused"] == 1 else "rows"
        listed = [f"  {reason}" for reason in notes["refused_reasons"]]
        parts.append("\n".join([f"{notes['refused']} {rows} cannot be used:", *listed]))
    return "\n\n".join(parts)


def _shown(row: Mapping[str, Any]) -> str:
    lines = [f"{row['row']} (item {row['item_id']})"]
    for number, one in enumerate(row["pictures"], 1):
        size, shown = ("{} x {}".format(*one[name]) for name in ("size", "shown"))
        turned = "" if one["orientation"] == 1 else f", orientation {one['orientation']}"
        changed = "" if (shown, one["mode"]) == (size, "RGB") else f", shown as {shown} RGB"
        frame = f"frame 1 of {one['frames']}, " if one.get("frames", 1) > 1 else ""
        kind = f"{one['format']}, {frame}{size} pixels, mode {one['mode']}"
        lines.append(f"  image {number}: {kind}{turned}{changed}")
    if "prompt" in row:
        lines.append(f"  prompt: {row['tokens']} tokens, {row['image_tokens']} of them for images")
        lines += _block(row["prompt"])
    else:
        for turn in row["turns"]:
            lines += [f"  {turn['role']}:", *_block(turn["content"])]
    lines += ["  target:", *_block(row["target"])]
    if "rejected" in row:
        lines += ["  rejected:", *_block(row["rejected"])]
    if "verdict" in row:
        said, gold = row["verdict"], json.dumps(row["gold"], ensure_ascii=False)
        judged = "right" if said["score"] >= RIGHT else "wrong"
        judged = "no answer is found" if said["extracted"] is None else judged
        read = "" if said["extracted"] is None else f", read as {cut(repr(said['extracted']), 300)}"
        lines.append(f"  gold: {cut(gold, 300)}")
        lines.append(f"  the target as a response: {judged}, score {said['score']:g}{read}")
    return "\n".join(lines)


def _block(text: str) -> list[str]:
    return [f"    | {line}" for line in visible_lines(cut(text, _TEXT)).split("\n")]


def summary(notes: Mapping[str, Any]) -> str:
    """The number of rows, and of unusable ones."""
    rows = "row" if notes["count"] == 1 else "rows"
    if not notes["refused"]:
        return f"{notes['count']} {rows}, all usable"
    return f"{notes['count']} {rows}, {notes['refused']} of which cannot be used"


def remarks(notes: Mapping[str, Any]) -> list[str]:
    """The number of rows, unless an error states it, and the remedy for rows whose answer scores wrong."""
    said = [] if failing(notes) else [summary(notes)]
    said += notes.get("unseen", [])
    wrong = [row["row"] for row in notes["rows"] if row.get("verdict", {}).get("score", 1) < RIGHT]
    if wrong:
        said.append(
            f"{notes['scorer']} does not accept the row's own target in {', '.join(wrong)}: "
            + (
                "it accepts a response that is the answer and nothing else; open_answer also finds one in"
                " tags and sentences"
                if notes["scorer"] == "exact_word"
                else "name another --scorer, or put the final answer into <answer> tags"
            )
        )
    return said


def failing(notes: Mapping[str, Any]) -> HarnessError | None:
    """The error about unusable rows, unless they are skipped."""
    if not notes["refused"] or notes.get("on_error") == "skip":
        return None
    return HarnessError(
        f"{notes['refused']} of {notes['count']} row{'s' * (notes['count'] > 1)} cannot be used",
        "Correct them, or pass --on-error skip here and to the stages that read them",
    )


STAGE = Stage(
    verb="data inspect",
    options=InspectOptions,
    run=run,
    summary=summary,
    writes="inspection",
    shows=True,
    about="Every row is checked, and those that cannot be used are listed with the reason; the"
    " command then fails, unless --on-error skip is given. The scorer judges each row's own target as a"
    " response.",
    example="""dcsft data inspect mine.jsonl
dcsft data inspect mine.jsonl --scorer exact_word --model digits""",
    show=show,
    markdown=False,
    remarks=remarks,
    failing=failing,
    light=(0.6e9, 0.5),
)
