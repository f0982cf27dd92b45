"""`kill -9` at random moments of sampling runs: no kept response is lost or appears twice.

Processes are forked from one that has imported everything, so that a run takes about a second and kills hit
all of it: opening, sampling, finishing.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from dcsft_harness import lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.manifest import UNFINISHED
from tests.fixtures import forked

POOL, ITEMS, SAMPLES = "dcsft_digits_pool", 32, 4
KILLS, SECONDS = 100, float(os.environ.get("DCSFT_SOAK_SECONDS", "10"))
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
    arguments = f"answers={script},batch_size=2,delay=0.02"
    return {"model": "dcsft_stub", "model_args": arguments, "task": POOL, "samples": SAMPLES, "limit": ITEMS}


@pytest.fixture(scope="module")
def context():
    return forked.context()


def rows(output):
    return records.read_table(output / sampling.ROLLOUTS, records.Rollout).to_pylist()


def kept(output):
    """Every complete record in the shard, as (item, sample, response)."""
    shard = output / UNFINISHED / "shard-0.jsonl"
    whole = [line for line in shard.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    found = [json.loads(line)["record"] for line in whole]
    return [(one["item_id"], one["sample_index"], one["response"]) for one in found]


def seconds_of_a_run(context, output, options):
    """Seconds that an undisturbed run takes to its first batch and in total, once the server is warm."""
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
def test_killed_runs_end_with_the_set_of_an_undisturbed_run(tmp_path, context, options):
    """At least 25 kills, in 10 s if they fit; `DCSFT_SOAK_SECONDS=60` makes about a hundred."""
    opening, whole = seconds_of_a_run(context, tmp_path / "undisturbed", options)
    expected = rows(tmp_path / "undisturbed" / "first")
    assert len(expected) == ITEMS * SAMPLES
    draws = {(row["item_id"], row["sample_index"], row["response"]) for row in expected}
    # A busy machine gets more time, until enough kills have hit.
    moment, until, last = random.Random(SEED), time.monotonic() + SECONDS, time.monotonic() + 12 * SECONDS
    kills = finished = 0
    landed = {"before the first batch": 0, "while drawing": 0, "after the last batch": 0}
    output, before = tmp_path / "0", set()
    while kills < KILLS and time.monotonic() < (until if kills >= KILLS // 4 else last):
        running = context.Process(target=stages.STAGES["sample"], args=(output,), kwargs=options)
        running.start()
        # A run with all responses is sometimes allowed to finish; otherwise kills would pile up there.
        if len(before) == len(draws) and moment.random() < 0.5:
            running.join()
        early = opening + moment.uniform(0, whole / 6)
        running.join(early if kills % 3 else moment.uniform(0, 1.1 * whole))
        running.kill()
        running.join()
        kills += running.exitcode == -9
        if (output / manifest.NAME).is_file():  # it was finished, except perhaps for cleaning up
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
    assert kills >= KILLS // 10, "the machine is too slow for this test to say anything"
    assert landed["while drawing"] >= kills // 10
    if not (output / manifest.NAME).is_file():
        stages.STAGES["sample"](output, **options)
    assert rows(output) == expected


RECIPE = """
name: short
about: The chain on a few items.
stages:
  - {stage: rollouts, verb: sample, model_args: "pretrained=digits,batch_size=4", task: dcsft_digits_pool,
     samples: 2, limit: 12}
  - {stage: labels, verb: label, rollouts: "@rollouts"}
  - {stage: curated, verb: curate, labels: "@labels", keep: [easy, medium, hard]}
  - {stage: sft, verb: train sft, model: digits, data: "@curated", learning_rate: 1.0e-3, batch_size: 4,
     max_steps: 6, save_steps: 2}
  - {stage: after, verb: evaluate, model_args: "pretrained=digits,adapter=@sft,batch_size=4",
     tasks: [dcsft_digits], limit: 8}
  - {stage: board, verb: leaderboard build, results: ["@after"]}
"""
SIGNALS = int(os.environ.get("DCSFT_SIGNALS", "4"))
ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}
TIMED = (  # these depend on when a run was interrupted, not on its work
    "resumed",
    "created",
    "seconds",
    "generation_seconds",
    "seconds_per_step",
    "peak_memory_bytes",
    "hardware",
    "started",
    "finished",
)


def untimed(value):
    """A JSON value without times, and without hashes of files that contain times."""
    if isinstance(value, dict):
        return {
            k: untimed(v) for k, v in value.items() if k not in (*TIMED, "sha256", "key", "files", "content")
        }
    return [untimed(one) for one in value] if isinstance(value, list) else value


def contents(run):
    """File -> its content without times, and with Parquet's rows in the order of items."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            found[name] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
        elif path.name == manifest.NAME or path.suffix == ".jsonl":
            found[name] = [untimed(json.loads(line.replace(str(run), "RUN"))) for line in _values(path)]
        elif path.suffix in (".arrow", ".safetensors"):
            found[name] = path.read_bytes()
        else:  # cards and boards state times
            found[name] = None
    return found


def _values(path):
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def left_in(cache):
    """Everything in the cache: the suite's images, and leftovers of processes."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*"))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_signals_at_any_moment_of_a_chain_change_nothing(tmp_path):
    """`DCSFT_SIGNALS=100` sends a hundred; the same command runs again until it is done."""
    own = {"DCSFT_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    recipe, moment = tmp_path / "short.yaml", random.Random(SEED)
    recipe.write_text(RECIPE)

    def started(output):
        output.parent.mkdir(exist_ok=True)
        with (output.parent / "said").open("a") as said:
            words = [*forked.DCSFT, "run", recipe, "--output", output]
            return forked.Popen(words, stdout=said, stderr=said, env={**os.environ, **own})

    whole = tmp_path / "whole" / "run"
    running = started(whole)
    running.wait()
    assert running.returncode == 0, (whole.parent / "said").read_text()[-2000:]
    begun = time.monotonic()
    again = started(tmp_path / "warm" / "run")
    again.wait()
    seconds, wanted = time.monotonic() - begun, contents(whole)
    found = contents(tmp_path / "warm" / "run")
    assert not [(found.get(name), wanted[name]) for name in wanted if found.get(name) != wanted[name]]
    sent, rounds, codes, cached = 0, 0, Counter(), left_in(tmp_path / "cache")
    assert cached
    while sent < SIGNALS:
        cut = tmp_path / f"cut-{rounds}" / "run"
        for _ in range(200):
            running = started(cut)
            longest = moment.uniform(0, seconds if sent % 2 else seconds / 3)
            with suppress(subprocess.TimeoutExpired):
                running.wait(longest if sent < SIGNALS else None)
            number = list(ENDS)[sent % len(ENDS)]
            if running.poll() is None:
                running.send_signal(number)
                running.wait(120)
                if running.returncode != 0:
                    said = (cut.parent / "said").read_text()[-3000:]
                    assert running.returncode in (ENDS[number], -number), (number, running.returncode, said)
                    sent, codes[number.name] = sent + 1, codes[number.name] + 1
            if running.returncode == 0:
                break
        assert running.returncode == 0
        found = contents(cut)
        assert found.keys() == wanted.keys()
        differing = {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]}
        assert not differing, str(differing)[:3000]
        assert "Traceback" not in (cut.parent / "said").read_text()
        rounds += 1
    print(f"{sent} signals ({dict(codes)}) in {rounds} chains of {seconds:.0f} s")
    assert left_in(tmp_path / "cache") == cached
    assert [path.name for path in (tmp_path / "scratch").iterdir() if "dcsft" in path.name] == []
