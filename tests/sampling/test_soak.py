"""A hundred `kill -9` at random moments of sampling runs: nothing kept is lost, nothing is there twice.

Processes are forked from one that has imported everything, so that a run is over in about a second and
the kills land in all of it: opening, drawing, finishing.
"""

import json
import multiprocessing
import os
import random
import time

import pytest

from dcsft_harness import lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.manifest import UNFINISHED

POOL, ITEMS, SAMPLES = "dcsft_digits_pool", 32, 4
KILLS, SECONDS = 100, float(os.environ.get("DCSFT_SOAK_SECONDS", "60"))
SEED = 20260


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    docs = lmms.open_tasks([POOL])[POOL].eval_docs_no_media
    lines = [
        {"task": POOL, "doc_id": at, "responses": [docs[at]["target"], f"it is {at}", "", "naïve\n" * at]}
        for at in range(ITEMS)
    ]
    script = tmp_path_factory.mktemp("script") / "answers.jsonl"
    script.write_text("\n".join(map(json.dumps, lines)))
    arguments = f"answers={script},batch_size=2,delay=0.06"
    return {"model": "dcsft_stub", "model_args": arguments, "task": POOL, "samples": SAMPLES, "limit": ITEMS}


@pytest.fixture(scope="module")
def context():
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(
        [
            "dcsft_harness.sampling",
            "dcsft_harness.models.stub",
            "lmms_eval.evaluator",
            "lmms_eval.tasks",
            "datasets",
        ]
    )
    return forking


def rows(output):
    return records.read_table(output / sampling.ROLLOUTS, records.Rollout).to_pylist()


def kept(output):
    """Every whole record in the shard, as (item, sample, response)."""
    shard = output / UNFINISHED / "shard-0.jsonl"
    whole = [line for line in shard.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    found = [json.loads(line)["record"] for line in whole]
    return [(one["item_id"], one["sample_index"], one["response"]) for one in found]


def seconds_of_a_run(context, output, options):
    """How long an undisturbed run takes to its first batch and as a whole, once the server is warm."""
    for name in ("first", "second"):
        started, shard = time.monotonic(), output / name / UNFINISHED / "shard-0.jsonl"
        running = context.Process(target=stages.STAGES["sample"], args=(output / name,), kwargs=options)
        running.start()
        while running.is_alive() and not (shard.is_file() and shard.stat().st_size):
            time.sleep(0.01)
        opening = time.monotonic() - started
        running.join()
        assert running.exitcode == 0
    return opening, time.monotonic() - started


@pytest.mark.slow
def test_a_hundred_kills_leave_the_set_of_an_undisturbed_run(tmp_path, context, options):
    opening, whole = seconds_of_a_run(context, tmp_path / "undisturbed", options)
    expected = rows(tmp_path / "undisturbed" / "first")
    assert len(expected) == ITEMS * SAMPLES
    draws = {(row["item_id"], row["sample_index"], row["response"]) for row in expected}
    moment, until = random.Random(SEED), time.monotonic() + SECONDS
    kills = finished = 0
    landed = {"before the first batch": 0, "while drawing": 0, "after the last batch": 0}
    output, before = tmp_path / "0", set()
    while kills < KILLS and time.monotonic() < until:
        running = context.Process(target=stages.STAGES["sample"], args=(output,), kwargs=options)
        running.start()
        # A run that has all its responses is let finish at times; else kills would pile up there.
        if len(before) == len(draws) and moment.random() < 0.5:
            running.join()
        early = opening + moment.uniform(0, whole / 6)
        running.join(early if kills % 3 else moment.uniform(0, 1.1 * whole))
        running.kill()
        running.join()
        kills += running.exitcode == -9
        if (output / manifest.NAME).is_file():  # it was finished, or all but its tidying up
            assert manifest.is_intact(output)
            assert rows(output) == expected
            finished += 1
            output, before = tmp_path / str(finished), set()
            continue
        assert running.exitcode == -9
        if not (output / UNFINISHED / "shard-0.jsonl").is_file():
            assert not before
            landed["before the first batch"] += 1
            continue
        now = kept(output)
        assert len(set(now)) == len(now), "something kept was drawn again"
        assert before <= set(now) <= draws
        landed["after the last batch" if len(now) == len(draws) else "while drawing"] += 1
        before = set(now)
    print(f"a run takes {whole:.1f} s, {opening:.1f} s to its first batch")
    print(f"{kills} kills, {finished} runs finished between them; they landed {landed}")
    assert kills >= KILLS // 4, "the machine is too slow for this test to say anything"
    assert landed["while drawing"] >= KILLS // 20
    if not (output / manifest.NAME).is_file():
        stages.STAGES["sample"](output, **options)
    assert rows(output) == expected
