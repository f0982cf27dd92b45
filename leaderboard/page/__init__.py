"""A board -> its page: one folder with index.html that opens from disk, without a server or a network.

    page/index.html      from site/index.html.jinja
    page/assets/         site/*.js, site/style.css, and the vendored libraries of site/vendor
    page/data/           board.js, and by board b, task t and row r: b0t3items.js, b0t3scores.js, b0t3r17.js;
                         of K responses per item b0t3d17.js; of rollouts p0items.js and p0r0.js
    page/pictures/       named by content hash
    page/downloads/      the board's figures and plots, as files to save

Text from outside (names, prompts, answers, responses) is only in data files, as JSON. The shell forbids
everything except its own scripts, style and images, and the scripts create text nodes from what they read:
nothing that a model wrote is ever parsed as markup.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dcsft_harness.errors import placeless
from dcsft_harness.leaderboard.board import Board
from dcsft_harness.leaderboard.page.data import (
    Exported,
    Json,
    Part,
    boards,
    changed_items,
    export,
    headline,
    opener,
    quantiles,
    write_draws,
    write_pools,
    write_responses,
    write_script,
    write_tasks,
)
from dcsft_harness.leaderboard.summary import Summary

FOLDER = "page"
SCRIPTS = (
    "vendor/preact.umd.js",
    "vendor/preact-hooks.umd.js",
    "vendor/htm.umd.js",
    "vendor/table-core.umd.js",
    "data.js",
    "state.js",
    "text.js",
    "figures.js",
    "tip.js",
    "board.js",
    "compare.js",
    "pictures.js",
    "samples.js",
    "pool.js",
    "main.js",
)
"""In the shell's loading order."""
NOTICES = ("vendored.json", "LICENSE-preact.txt", "LICENSE-htm.txt", "LICENSE-table-core.txt")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True, eq=False)
class Source:
    """The content of a page."""

    board: Board  # as loaded
    summary: Summary
    document: Mapping[str, Any]  # its numbers in the form of leaderboard.json
    labels: Mapping[str, str]  # item id -> difficulty
    samples: int  # the number of items per task to export with images, changed ones first
    rollouts: Sequence[Path] = ()  # folders of rollouts; the same number of items of each is shown
    downloads: Sequence[Path] = ()  # files that readers can save


def write_page(folder: Path, source: Source) -> dict[str, str]:
    """Writes a page to a new folder; returns task -> why the samples asked for are incomplete."""
    data = folder / "data"
    data.mkdir(parents=True)
    _write_assets(folder)
    parts = _parts(source)
    exported = _export(folder / "pictures", parts, source.samples)
    for part in parts:
        write_tasks(data, part, source.labels, exported.shown)
        write_responses(data, part)
        write_draws(data, part)
    pools = write_pools(data, folder / "pictures", source.rollouts, source.samples)
    (folder / "downloads").mkdir()
    for file in source.downloads:
        shutil.copyfile(file, folder / "downloads" / file.name)
    write_script(data, "board", {**_first(source, exported), "pools": pools})
    return dict(exported.reasons) if source.samples else {}


def _parts(source: Source) -> list[Part]:
    found = [(source.board, source.summary)]
    found += [
        (apart.board, numbers.summary)
        for apart, numbers in zip(source.board.apart, source.summary.apart, strict=True)
    ]
    return [
        Part(
            number,
            board,
            list({task.name: task for column in summary.columns for task in column.tasks}.values()),
            summary.lines,
        )
        for number, (board, summary) in enumerate(found)
    ]


def _export(folder: Path, parts: Sequence[Part], samples: int) -> Exported:
    documents = {
        task.name: result.tasks[task.name].documents
        for part in reversed(parts)
        for task in part.tasks
        for result in reversed(part.board.results)
        if task.name in result.tasks
    }
    changed: dict[str, set[str]] = {}
    for part in parts:
        for task in part.tasks:
            changed.setdefault(task.name, set()).update(changed_items(part, task))
    results = [result for part in parts for result in part.board.results]
    return export(folder, documents, samples, opener(results), changed)


def _first(source: Source, exported: Exported) -> Json:
    document, reasons = source.document, exported.reasons
    return {
        "boards": boards(document),
        "headline": headline(document),
        "downloads": [file.name for file in source.downloads],
        "pictures": [
            [name, len(exported.shown.get(name, {})), placeless(reasons.get(name, ""), sentence=True)]
            for name in {**exported.shown, **reasons}
        ],
        "labelled": bool(source.labels),
        "quoted": [{**one, "cells": list(one["cells"].items())} for one in document["quoted"]],
        "left_out": [[Path(one["folder"]).name, one["reason"]] for one in document["left_out"]],
        "t": quantiles(),
    }


def _write_assets(folder: Path) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    site = files("dcsft_harness.leaderboard") / "site"
    assets = folder / "assets"
    assets.mkdir()
    for name in ("style.css", *SCRIPTS, *(f"vendor/{notice}" for notice in NOTICES)):
        (assets / Path(name).name).write_bytes((site / name).read_bytes())
    shell = Environment(
        loader=PackageLoader("dcsft_harness.leaderboard", "site"), autoescape=True, undefined=StrictUndefined
    ).get_template("index.html.jinja")
    scripts = [Path(name).name for name in SCRIPTS]
    text = shell.render(policy=POLICY, scripts=scripts)
    (folder / "index.html").write_text(text + "\n", encoding="utf-8", newline="\n")
