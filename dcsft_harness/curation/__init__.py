"""labels -> curated set: the items to train on, in a format that trainers read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import records
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.storage import scan
from dcsft_harness.curation import conversations, gallery, overlap, suspects
from dcsft_harness.curation.labels import LABELS
from dcsft_harness.curation.rules import EMPIRICAL, CurationConfig, equal, mix, qualifying, weighed
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import ITEMS, ROLLOUTS, own_data
from dcsft_harness.sampling.rollout_store import advice, unsolved

DATA = "data"


def curate(
    labels: Path,
    output: Path,
    config: CurationConfig,
    exclude: Path | None = None,
    reviewed: Path | None = None,
) -> dict[str, Any]:
    """Draws the items to train on and writes them as a `datasets` folder.

    The folder's data/ has the columns messages (a user turn that begins with one "<image>" per image, and the
    assistant's target), images, item_id, difficulty and pass_rate (empty if sampling stopped once the label
    was settled): the format that TRL, ms-swift and LLaMA-Factory read. If answers are boxes there is box
    ([x1, y1, x2, y2] in original-image pixels), and with weights there is weight (float64, mean 1). The
    chosen items and their order depend only on content and seed. With `config.suspect`, suspects.jsonl is
    written too, see `suspects.write_review`. Items of `exclude`, a folder from `overlap.overlap` for the same
    pool, are left out; `reviewed` has suspects with a verdict, see `suspects.read_review`. Returns the
    manifest's notes: items, the number of each difficulty, and the numbers left out by reason.

    Raises:
        HarnessError: not a labels folder, labels or items that changed later, another pool's overlap, a
            reviewed file that does not fit, items without a pass rate where one is needed, too few items, or
            no item left.
    """
    manifest.refuse_occupied(output)
    if exclude is not None:
        manifest.refuse_newer(exclude)
    source = manifest.read(labels, "labels")
    rollouts = source.input_folder("rollouts")
    sampled = manifest.read(rollouts, "rollouts")
    own_data.refuse_former(sampled)
    if not (rollouts / ITEMS).is_dir():
        raise HarnessError(
            f"{rollouts} holds responses without their items, which a curated set needs",
            "Label a log with its own task, without --scorer, or sample the pool with `dcsft sample`",
        )
    table = records.read_table(labels / LABELS, records.Label)
    manifest.refuse_changed(labels)
    every = table
    inputs, left_out = {"labels": labels, "rollouts": rollouts}, {"excluded": table.num_rows}
    verdicts: Mapping[str, str] = {}
    if reviewed is not None:
        verdicts = suspects.read_review(reviewed, table["item_id"])
        inputs["reviewed"] = reviewed
    if exclude is not None:
        table = overlap.without(table, exclude, source.notes.get("task"), sampled)
        inputs["overlap"] = exclude
    left_out["excluded"] -= table.num_rows
    table, suspected = _without_suspects(table, rollouts, config, verdicts, left_out)
    try:
        chosen = choose(table, config, every.num_rows - table.num_rows)
    except HarnessError as error:
        explained = _explained(error, table, rollouts)
        if explained is None:
            raise
        raise explained from error
    left_out |= _left_by_rules(table, config, chosen)
    settings = config.as_dict()
    with manifest.writing("curated set", output, settings, inputs) as draft:
        conversations.write(draft.folder / DATA, rollouts / ITEMS, chosen)
        manifest.refuse_changed(
            rollouts, *(n for n in manifest.read(rollouts).files if n.startswith(f"{ITEMS}/"))
        )
        if suspected is not None:
            left_out["unshown"] = suspects.write_review(draft.folder, rollouts, suspected)
        draft.notes["figures"] = gallery.write(draft.folder, rollouts, every, chosen)
        draft.notes |= {"items": chosen.num_rows, **mix(chosen), "task": source.notes.get("task")}
        draft.notes.update(left_out)
        if suspected is not None:
            draft.notes["known_wrong"] = _against_known(every, suspected, rollouts, source.notes.get("task"))
    return draft.notes


def _against_known(
    labels: pa.Table, suspected: pa.Table, rollouts: Path, task: str | None
) -> dict[str, int | suspects.Detection] | None:
    """How many of a pool's known wrong labels are suspects, and how many are hard; None if it lists none."""
    wrong = suspects.known_wrong(rollouts, task)
    if wrong is None:
        return None
    hard = labels.filter(equal(labels["difficulty"], "hard"))["item_id"].to_pylist()
    return {
        "wrong": len(wrong),
        "suspects": suspects.detection(suspected["item_id"].to_pylist(), wrong),
        "hard": suspects.detection(hard, wrong),
    }


def _explained(error: HarnessError, labels: pa.Table, rollouts: Path) -> HarnessError | None:
    """The error for an empty choice, with a summary of the responses; None if one of them is right."""
    if pc.any(pc.is_in(labels["difficulty"], value_set=pa.array(["easy", "medium"]))).as_py():
        return None
    names = ("score", "extracted", "finish_reason", "answer", "response")
    with records.readable(rollouts / ROLLOUTS):
        batches = scan(rollouts / ROLLOUTS, records.Rollout, names).to_reader(use_threads=False)
        found = unsolved(row for batch in batches for row in batch.to_pylist())
    if found is None:
        return None
    problem, remedy = advice(found)
    return HarnessError(f"{error.problem}; {problem}", remedy)


def _left_by_rules(labels: pa.Table, config: CurationConfig, chosen: pa.Table) -> dict[str, int]:
    """The number of items that are not chosen, each by the first rule that leaves it out."""
    left = np.asarray(pc.invert(pc.is_in(labels["item_id"], value_set=chosen["item_id"].combine_chunks())))
    unlabeled = np.asarray(pc.is_null(labels["difficulty"]))
    qualify, weightless = qualifying(labels, config), weighed(labels, config) == 0
    unfit = int((left & ~unlabeled & ~qualify).sum())
    return {
        "unlabelled": int(unlabeled.sum()),
        "outside": unfit if config.band else 0,
        "others": 0 if config.band else unfit,
        "weightless": int((qualify & weightless).sum()),
        "undrawn": int((left & qualify & ~weightless).sum()),
    }


def _without_suspects(
    labels: pa.Table,
    rollouts: Path,
    config: CurationConfig,
    verdicts: Mapping[str, str],
    left_out: dict[str, int],
) -> tuple[pa.Table, pa.Table | None]:
    """Label rows without suspects and without items dropped in review; and the suspects.

    `verdicts` are item_id -> "keep" or "drop"; `left_out` gets the counts dropped, suspects and unjudged.
    """
    dropped = [item_id for item_id, verdict in verdicts.items() if verdict == suspects.DROP]
    rest = _without(labels, pa.array(dropped, pa.string()))
    left_out.update({"dropped": labels.num_rows - rest.num_rows, "suspects": 0, "unjudged": 0})
    if config.suspect is None:
        return rest, None
    trusted = pa.array(
        [item_id for item_id, verdict in verdicts.items() if verdict == suspects.KEEP], pa.string()
    )
    doubted = _without(rest.filter(equal(rest["difficulty"], "hard")), trusted)
    found, unjudged = suspects.find(doubted, rollouts, config.suspect)
    left_out.update({"suspects": found.num_rows, "unjudged": unjudged})
    return _without(rest, found["item_id"].combine_chunks()), found


def _without(labels: pa.Table, ids: pa.StringArray) -> pa.Table:
    return labels.filter(pc.invert(pc.is_in(labels["item_id"], value_set=ids)))


def choose(labels: pa.Table, config: CurationConfig, gone: int = 0) -> pa.Table:
    """The label rows of the curated set, in training order; with a column weight if weights are asked for.

    `gone` items were excluded, dropped or suspects: errors say that counts are without them.

    Raises:
        HarnessError: a difficulty has fewer items than asked for, a mix takes all, or nothing qualifies.
    """
    ids, names = labels["item_id"].combine_chunks(), labels["difficulty"]
    rows = pc.sort_indices(ids).to_numpy()  # independent of the order of the labels
    _refuse_doubles(ids.take(rows))
    weights = weighed(labels, config)
    fit = qualifying(labels, config) & (weights > 0)
    by_name = {name: rows[equal(names, name)[rows]] for name in records.DIFFICULTIES}
    kept = rows[fit[rows]]
    have = "the labels have"
    if gone:
        have = f"without {gone} excluded, dropped or suspected {'item' if gone == 1 else 'items'}, {have}"
    if len(kept) == 0 and labels["difficulty"].null_count == labels.num_rows > 0:
        raise HarnessError(
            f"no item can be kept: no response to the {labels.num_rows} items could be scored",
            "See `error` in the rollouts, and sample the pool again",
        )
    if len(kept) == 0:
        found = ", ".join(f"{len(by_name[name])} {name}" for name in records.DIFFICULTIES)
        raise HarnessError(
            f"no item {config.asked()}: the set would be empty ({have} {found})",
            f"{'Widen the band' if config.band else 'Keep other difficulties'}, or label a larger pool"
            if len(by_name["medium"]) or pc.max(labels["n"]).as_py() != 1
            else "With one scored response per item none can be medium: sample more, such as --samples 8",
        )
    total = config.size or round(len(kept) / (1 - sum(config.mix.values())))
    mixed = {name: round(share * total) for name, share in config.mix.items()}
    for name, share in config.mix.items():
        if share and not mixed[name]:
            raise HarnessError(
                f"--mix {name}={share:g} of {total} items is less than one item",
                f"Use a share of at least {1 / total:.2g}, or leave it out",
            )
    plain = len(kept) if config.size is None else config.size - sum(mixed.values())
    if plain < 1:
        shares = ", ".join(f"{name}={share:g}" for name, share in config.mix.items())
        raise HarnessError(
            f"--mix {shares} of {total} items leaves no item that {config.asked()}",
            "Use a larger --size, or smaller shares",
        )
    rng = np.random.Generator(np.random.PCG64(config.seed))
    weighing = " with a weight above 0" if config.weight == EMPIRICAL else ""
    drawn = [_draw(rng, kept, plain, f"{'+'.join(config.keep) or 'fitting'} items{weighing}", have)]
    outside = " (outside the band)" if config.band else ""
    for name, number in mixed.items():
        beside = by_name[name][~fit[by_name[name]]]  # a band may hold part of a difficulty
        drawn.append(_draw(rng, beside, number, f"{name}{outside} items", have))
    order = rng.permutation(np.concatenate(drawn))
    chosen = labels.take(order).combine_chunks()
    if config.weight is None:
        return chosen
    return chosen.append_column("weight", pa.array(weights[order] / weights[order].mean()))


def _refuse_doubles(ids: pa.StringArray) -> None:
    """Refuses labels, sorted by id, that hold an item twice: joins use the id."""
    doubled = ids[1:].filter(pc.equal(ids[1:], ids[:-1]))
    if len(doubled):
        raise HarnessError(f"the labels hold item {doubled[0]} twice", "Remove one of them")


def _draw(
    rng: np.random.Generator, rows: NDArray[np.int64], number: int, what: str, have: str
) -> NDArray[np.int64]:
    """A seeded draw of `number` rows, which are sorted by id; `what` and `have` are words of its error."""
    if number > len(rows):
        raise HarnessError(f"{number} {what} are requested, but {have} {len(rows)}", "Lower --size or --mix")
    return rows if number == len(rows) else rng.permutation(rows)[:number]
