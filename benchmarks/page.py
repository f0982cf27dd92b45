"""Renders docs/benchmarks.md from docs/benchmarks.json."""

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from dcsft_harness.recipes import rehearsal

HEAD = """# Benchmarks

Made by `make bench` (`python -m benchmarks --help`); do not edit. Ratios are medians over the rounds of
one run; each implementation ran once per round, in turn. Seconds are medians. G = 8 responses per item, real
digits on the embedded checkpoint (or random weights at a published size), float32 on the CPU.
"""

Results = dict[str, Any]
TRIAL = " only (a trial)"
"""Suffix of a shape that was measured with few layers and few items."""
NOTES = "notes"
"""Paragraphs of a part, written by hand into benchmarks.json; a new measurement keeps them."""


def render(known: dict[str, dict[str, Results]]) -> str:
    """The page.

    Args:
        known: machine to shape to part to what the part printed.
    """
    parts = [HEAD]
    for machine, shapes in known.items():
        for shape, results in shapes.items():
            parts.append(f"## {shape} on {machine}\n")
            if shape.endswith(TRIAL):
                parts.append(
                    "Partial, to show that every part runs: few items, one round; no target applies.\n"
                )
            for name, section in SECTIONS.items():
                if name in results:
                    parts.append("\n".join(section(results[name])))
                    parts += [f"{note}\n" for note in results[name].get(NOTES, ())]
                    if results[name]["versions"]:
                        versions = ", ".join(f"{a} {b}" for a, b in results[name]["versions"].items())
                        parts.append(f"({versions})\n")
    return "\n".join(parts)


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True) + "\n"


def _judged(value: float, wanted: str) -> list[str]:
    """A figure, its target and whether it is met; the target begins with ≥ or ≤."""
    limit = float(wanted[1:])
    reached = value >= limit if wanted[0] == "≥" else value <= limit
    return [f"{value}", wanted, "yes" if reached else "no"]


def _measured(value: float | None, wanted: str) -> list[str]:
    """The same for a figure that may be too small to measure."""
    return ["too small to measure", wanted, ""] if value is None else _judged(value, wanted)


TARGETS = {
    ("8 passes, batch 4", 224): "≥12",
    ("8 passes, batch 4", 448): "≥8",
    ("8 passes, same batch", 224): "≥6",
    ("8 passes, same batch", 448): "≥6",
    ("generate(num_return_sequences=8)", 224): "≥3.5",
    ("generate(num_return_sequences=8)", 448): "≥3.5",
    ("lmms-eval's qwen2_5_vl, batch 1", 224): "≥12",
}
BOUNDS = {224: "≤1.4", 448: "≤1.25"}


def _sampling(found: Results) -> Iterator[str]:
    yield "### One prefill for G samples\n"
    yield "Time relative to the engine's (1 = as fast); four new tokens.\n"
    rows = []
    for comparison in found["results"]:
        side = comparison["side"]
        for way, times in comparison["over the engine"].items():
            seconds = comparison["seconds"]
            if way == "prefill of the same batch":
                target = BOUNDS.get(side)
                value = round(1 / times, 2)
                label = "the engine over one prefill of the same batch by transformers, and nothing else"
            else:
                target, value, label = TARGETS.get((way, side)), times, way
            judged = _judged(value, target) if target else [f"{value}", "", ""]
            rows.append(
                [f"{side} px, {comparison['comparison']}", label, *judged, seconds["engine"], seconds[way]]
            )
    yield _table(["", "way", "ratio", "target", "reached", "engine, s", "this way, s"], rows)
    if "parity" in found:
        one = found["parity"]
        yield (
            f"{one['rows']} rows in one batch against each alone, {one['dtype']}: the most likely token is"
            f" the same at {one['same first choice']:.1%} of the places; logits differ by at most"
            f" {one['largest difference over the spread']} of their standard deviation.\n"
        )


def _families(found: Results) -> Iterator[str]:
    yield "### Families whose prompts are copied\n"
    yield (
        "Tiny checkpoints with random weights, features prepared, all responses of the same number of tokens:"
        " how many times the engine's time `generate(num_return_sequences=8)` takes.\n"
    )
    rows = [
        [
            *(one["family"], one["items"], one.get("tokens", 4)),
            *_judged(one["over the engine"], "≥1"),
            *one["seconds"].values(),
        ]
        for one in found["results"]
    ]
    yield _table(
        ["family", "items", "tokens", "ratio", "target", "reached", "engine, s", "generate, s"], rows
    )


def _answers(found: Results) -> Iterator[str]:
    yield "### Long answers with ragged ends\n"
    ideal = found["ideal"]
    yield (
        f"{found['rows']} rows of 1 to {found['longest']} tokens, against {ideal['rows']} rows of"
        f" {ideal['tokens']} tokens each: as many tokens, as many attended pairs, no padding, no finished"
        " rows.\n"
    )
    judged = _judged(found["over ideal"], "≤1.15")
    mean = found["over rows of the mean length"]
    rows = [
        ["the ideal batch", *judged],
        ["as many rows of the mean length (fewer pairs)", f"{mean}", "", ""],
    ]
    yield _table(["the engine over", "ratio", "target", "reached"], rows)


def _stages(found: Results) -> Iterator[str]:
    yield "### Whole `sample` stages\n"
    yield "From task to finished folder, on the cold-started checkpoint, 32 items at once.\n"
    rows = []
    for family, one in found.items():
        if family != "versions":
            share = one["samples when stopped"] / one["samples"]
            rows.append(
                [
                    family,
                    f"{one['samples when stopped']} of {one['samples']} ({share:.0%})",
                    *_judged(one["stopped over full"], "≤1"),
                ]
            )
    yield _table(
        ["pool", "samples drawn with --stop-when-labelled", "time over the full draw", "target", "reached"],
        rows,
    )
    synced = found["classification"]["synced over unsynced"]
    yield _table(
        ["durability", "ratio", "target", "reached"],
        [["every batch synced to the disk, over none", *_judged(synced, "≤1.03")]],
    )


def _memory(found: Results) -> Iterator[str]:
    yield "### Peak memory\n"
    yield "Memory besides weights and features: eight samples per item, relative to one, in the same batch.\n"
    rows = [
        [f"{one['side']} px", *_measured(one["ratio"], "≤1.3"), *(f"{mb:.0f}" for mb in one["MB"].values())]
        for one in found["results"]
    ]
    yield _table(["", "ratio", "target", "reached", "engine, MB", "one sample, MB"], rows)


def _growth(found: Results) -> Iterator[str]:
    yield f"### Growth with G and the image, {found['items']} items\n"
    by_g = found["seconds by G at 112 px"]
    yield _table(["G", *by_g], [["seconds", *by_g.values()]])
    sides = found["by side"]
    rows = [
        ["prompt tokens", *(one["prompt tokens"] for one in sides.values())],
        ["seconds", *(one["seconds"] for one in sides.values())],
    ]
    yield _table(["side in pixels", *sides], rows)


def _pool_size(found: Results) -> Iterator[str]:
    yield "### Growth with the pool\n"
    yield "`dcsft sample` with a scripted model that takes no time; one process per size.\n"
    rows = [
        [size, f"{one['seconds']:.1f}", f"{one['peak_mb']:.0f}", f"{one['own_peak_mb']:.0f}"]
        for size, one in found["items"].items()
    ]
    yield _table(["items", "seconds", "peak memory with mapped files, MB", "its own, MB"], rows)


def _labels(found: Results) -> Iterator[str]:
    yield f"### Labels and a curated set out of {int(found['settings']['rows']):,} responses\n"
    yield f"Both commands as a user runs them, on {found['machine']['cores']} core(s).\n"
    rows = [
        ["seconds, label and curate together", *_judged(found["seconds"], "≤20")],
        ["peak memory, MB", *_judged(found["peak_mb"], "≤1500")],
    ]
    if "long" in found:
        what = f"{int(found['settings']['long_rows']):,} long responses and photographs"
        rows.append([f"peak memory of {what}, MB", *_judged(found["long_peak_mb"], "≤1500")])
    yield _table(["", "measured", "target", "reached"], rows)


def _scoring(found: Results) -> Iterator[str]:
    yield "### Scorers, responses a second and core\n"
    kinds = found["responses_per_second"]
    rows = [
        [scorer, kind, f"{rate:,.0f}"] for scorer, by_kind in kinds.items() for kind, rate in by_kind.items()
    ]
    yield _table(["scorer", "responses", "a second"], rows)


def _training(found: Results) -> Iterator[str]:
    yield "### Training\n"
    side = "as its processor makes them" if found["side"] is None else f"{found['side']} px"
    cut = f", cut down to {found['layers']} layers" if found["layers"] else ""
    yield f"Images {side}{cut}; `train_sft` in whole runs of {found['overhead']['steps']} steps.\n"
    rows = []
    for method, one in found["methods"].items():
        if "failed" in one:
            rows.append([method, one["failed"], "", ""])
            continue
        what = f"{method}, batch {one['batch']}"
        limit = "≥2.5" if method == "SFT, LoRA" and side[0] == "a" else None
        speed = one["steps per second"]
        rows.append([f"{what}: steps a second", *(_judged(speed, limit) if limit else [f"{speed}", "", ""])])
        memory = _judged(one["peak GB"], "≤3") if side[0] == "a" else [f"{one['peak GB']}", "", ""]
        rows.append([f"{what}: peak memory, GB", *memory])
        for part, share in one.get("share", {}).items():
            rows.append([f"{what}: share of the time, {part}", f"{share}", "", ""])
    for what in ("whole run", "a step"):
        rows.append(
            [
                f"`train_sft` over a bare TRL script, {what}",
                *_judged(found["overhead"][what]["ratio"], "≤1.05"),
            ]
        )
    yield _table(["", "measured", "target", "reached"], rows)


def _board(found: Results) -> Iterator[str]:
    given, sizes = found["settings"], found["megabytes"]
    yield "### A large leaderboard\n"
    yield (
        f"`dcsft leaderboard build` of {given['rows']} rows, {given['tasks']} tasks and {given['items']:,}"
        f" items each ({sizes['scores']:.0f} MB of scores), with plots, `items.parquet`"
        f" ({sizes['items.parquet']:.0f} MB) and the page ({sizes['page']:.0f} MB in"
        f" {found['page files']:,} files), which headless Chromium opens from disk.\n"
    )
    rows = [
        ["processor seconds", *_judged(found["build"]["cpu_seconds"], "≤120")],
        ["seconds on the clock", *_judged(found["build"]["seconds"], "≤120")],
        ["peak memory, MB", *_judged(found["build"]["peak_mb"], "≤2000")],
    ]
    for name, seconds in found["page seconds"].items():
        rows.append(
            [f"{name}, s", *(_judged(seconds, "≤2") if name == "opening" else [f"{seconds}", "", ""])]
        )
    yield _table(["", "measured", "target", "reached"], rows)


def _vllm(found: Results) -> Iterator[str]:
    yield "### vLLM\n"
    given = found["settings"]
    if "items" in given:
        place = "on the CPU" if found["machine"]["gpu"] is None else f"on {found['machine']['gpu']}"
        yield f"{given['items']} items of {given['side']} px, eight responses of four tokens each, {place}.\n"
    rows = [["`dcsft_vllm` over a bare `LLM.generate(n=8)` loop", *_judged(found["over_bare"], "≤1.05")]]
    if "statistics" in found:
        rows.append(["vLLM's statistics alone", f"{found['statistics']}", "", ""])
    if "dcsft_hf" in found:
        rows.append(["`dcsft_hf` over `dcsft_vllm`", *_judged(found["dcsft_hf"], "≤1.5")])
    else:
        rows.append(["`dcsft_hf` over `dcsft_vllm`", "not measured", "≤1.5", ""])
    yield _table(["", "ratio", "target", "reached"], rows)


def _rehearsal(found: Results) -> Iterator[str]:
    yield "### The whole chain\n"
    yield (
        "`dcsft rehearse`: four items, random weights. Memory is the peak of the"
        " process on a CPU and of the device on a GPU, beside what `--dry-run` estimated.\n"
    )
    for run in found["runs"]:
        yield rehearsal.table(run) + "\n"
    missing = {
        "at two layers": not any(run["layers"] for run in found["runs"]),
        "at all layers": all(run["layers"] for run in found["runs"]),
        "on a GPU": not any(run["cuda"] for run in found["runs"]),
    }
    if any(missing.values()):
        yield f"Not measured: {', '.join(name for name, lacking in missing.items() if lacking)}.\n"


SECTIONS = {
    "sampling": _sampling,
    "families": _families,
    "answers": _answers,
    "stages": _stages,
    "memory": _memory,
    "growth": _growth,
    "pool_size": _pool_size,
    "labels": _labels,
    "scoring": _scoring,
    "training": _training,
    "board": _board,
    "vllm_overhead": _vllm,
    "rehearsal": _rehearsal,
}
