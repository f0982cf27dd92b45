"""Settings and manifests from elsewhere: one sentence with file and place, in bounded time and memory."""

import gzip
import json
import os
import time
import tracemalloc

import pytest

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.load import load
from tests.fixtures.artifacts import rollouts
from tests.fixtures.lmms_eval_logs import line, log_folder
from tests.fixtures.study import adapter, curated, labels
from tests.leaderboard.test_leaderboard import ID, scores_folder

SECONDS, MEGABYTES = 60, 250
ALIASES = "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join(['*' + chr(97 + level)] * 9)}]\n"
    for level in range(9)
)
YAML = {
    "alias bomb": ("a: &a [x, x, x]\n" + ALIASES, "more than 20000 values"),
    "merge bomb": (
        "a: &a {x: 1}\n" + ALIASES.replace("[", "{<<: [").replace("]", "]}"),
        "more than 20000 values",
    ),
    "alias of itself": ("a: &a [*a]", "an alias lies inside the value that it refers to"),
    "lists": ("a: " + "[" * 100_000, "nested deeper than 64 levels"),
    "mappings": ("{a: " * 100_000, "nested deeper than 64 levels"),
    "dashes": ("- " * 100_000, "nested deeper than 64 levels"),
    "wide": ("- x\n" * 100_000, "more than 20000 values"),
    "large": (b"#" * 2_000_000, "larger than 1 MB"),
    "NaN": ("a: .nan", "'.nan' is not a finite number at line 1"),
    "infinite": ("a: -.inf", "'-.inf' is not a finite number"),
    "long number": ("a: " + "9" * 5000, "a number of 5000 characters"),
    "base 60": ("a: " + "1:" * 50_000 + "1", "a number of 100001 characters"),
    "number as key": ("{1: 2}", "the key '1' is not text"),
    "switch as key": ("on: 2", "the key 'on' is not text"),
    "list as key": ("{[a]: 2}", "is not text"),
    "key twice": ("a: 1\na: 2", "the key 'a' appears twice at line 2"),
    "bytes": ("a: !!binary aGk=", "tag:yaml.org,2002:binary"),
    "object": ("a: !!python/object/apply:os.system [ls]", "os.system"),
    "set": ("a: !!set {x, y}", "tag:yaml.org,2002:set"),
    "NUL": ("a: \0", "#x0000"),
    "two documents": ("a: 1\n---\nb: 2\n", "another document"),
    "open": ("a: [1", "line 1"),
    "not UTF-8": (b"a: \xff\xfe", "utf-8"),
}
JSON = {
    "deep": ("[" * 100_000, "nested deeper than 64 levels"),
    "100 levels": ("[" * 100 + "]" * 100, "nested deeper than 64 levels"),
    "long number": ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
    "not JSON": ("{not json", "double quotes"),
    "empty": ("", "Expecting value"),
    "not UTF-8": (b'{"a": "\xff"}', "utf-8"),
    "UTF-16": ("\ufeff{}".encode("utf-16"), "utf-8"),
    "NUL": ("\0" * 1000, "Expecting value"),
}


@pytest.fixture(autouse=True)
def bounded():
    """Limits a test's time, whatever it reads."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS


def refused(capsys, *arguments):
    """The error message of a command that must fail."""
    code = main([str(word) for word in arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1, said
    assert len(said) == 1 and said[0].startswith("dcsft: ") and len(said[0]) < 10_000, said
    return said[0]


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def of_yaml(tmp_path, content):
    """Verb -> a command that reads a YAML file of this content, and the file."""
    file = put(tmp_path / "own.yaml", content)
    train = [
        "--model",
        "digits",
        "--data",
        "dcsft_digits_cold",
        "--output",
        tmp_path / "out",
        "--config",
        file,
    ]
    including = put(tmp_path / "including.yaml", f"include: [{file}]\nstages: []\n")
    return file, {
        "run": ["run", file, "--output", tmp_path / "out"],
        "dry run": ["run", file, "--output", tmp_path / "out", "--dry-run"],
        "include": ["run", including, "--output", tmp_path / "out"],
        "cold-start": ["train", "cold-start", *train],
        "sft": ["train", "sft", *train],
        "grpo": ["train", "grpo", *train],
    }


@pytest.mark.grid
@pytest.mark.parametrize("verb", ["run", "dry run", "include", "cold-start", "sft", "grpo"])
@pytest.mark.parametrize("kind", YAML)
def test_invalid_yaml_is_refused_with_its_file(tmp_path, capsys, kind, verb):
    content, wanted = YAML[kind]
    file, commands = of_yaml(tmp_path, content)
    said = refused(capsys, *commands[verb])
    assert str(file) in said and wanted in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_yaml_must_come_from_a_regular_file(tmp_path, capsys, place):
    if place == "pipe":
        place = str(tmp_path / "own.yaml")
        os.mkfifo(place)
    train = ["train", "sft", "--model", "digits", "--data", "dcsft_digits_cold", "--output", tmp_path / "out"]
    assert "is not a regular file" in refused(capsys, *train, "--config", place)


STAGE = "{stage: one, verb: label, rollouts: x}"


def stage(verb, **options):
    """A recipe with one stage."""
    return json.dumps({"stages": [{"stage": "one", "verb": verb, **options}]})


SIXTY = {name: list(range(60)) for name in "abcd"}
HUNDRED = {
    "variables": {"n": list(range(100))},
    "stages": [
        {"stage": f"s{i}-${{a}}-${{b}}", "verb": "label", "rollouts": "x", "each": {"a": "${n}", "b": "${n}"}}
        for i in range(3)
    ],
}
LONG = {
    "variables": {"a": "x" * 1000, "b": "${a}" * 90},
    "stages": [{"stage": "one", "verb": "label", "rollouts": "${b}" * 50}],
}
MANY = {
    "variables": {"a": list(range(9000))},
    "stages": [{"stage": "one", "verb": "label", "rollouts": ["${a}"] * 900}],
}
ASSUMED = {
    "scales": {"digits": {"assume": [1], "tokens": {"prompt": 1}}},
    "stages": [
        {"stage": "one", "verb": "sample", "task": "dcsft_digits_pool", "model_args": "pretrained=digits"}
    ],
}
RECIPES = {
    "each of 60 to the 4th": (stage("label", each=SIXTY), "each of stage 'one' has 12,960,000 combinations"),
    "many stages": (json.dumps(HUNDRED), "over 10,000 stages"),
    "long text": (json.dumps(LONG), "longer than 100,000 characters"),
    "many values": (json.dumps(MANY), "4,000,000 values"),
    "assume": (json.dumps(ASSUMED), "no estimate can be made"),
    "a list": ("[1, 2]", "it is a list of 2, not a mapping"),
    "a text": ("hello", "it is 'hello', not a mapping"),
    "nothing": ("", "it is empty, not a mapping"),
    "stages": ("stages: 5", "stages: input should be a valid list, not 5"),
    "stage": ("stages: [one]", "stages.0 is 'one', not a mapping"),
    "no verb": ("stages: [{stage: one}]", "stages.0.verb is missing"),
    "no name": ("stages: [{verb: label}]", "stages.0.stage is missing"),
    "verb": (
        "stages: [{stage: one, verb: [1]}]",
        "stages.0.verb: input should be a valid string, not a list of 1",
    ),
    "name": ("name: {a: 1}\nstages: []", "name: input should be a valid string"),
    "include": ("include: {a: 1}", "include: input should be a valid list"),
    "included": ("include: [3]", "include.0: input should be a valid string, not 3"),
    "variables": ("variables: [1]", "variables is a list of 1, not a mapping"),
    "scales": ("scales: {digits: 3}", "scales.digits is 3, not a mapping"),
    "first": (f"first: {STAGE}", "first: input should be a valid list"),
    "each": ("stages: [{stage: one, verb: label, each: [1]}]", "stages.0.each"),
    "each of a number": (
        "stages: [{stage: one, verb: label, each: {a: 3}}]",
        "each.a of stage 'one' is '3', not a list",
    ),
    "each of a text": (
        "stages: [{stage: one, verb: label, each: {a: abc}}]",
        "each.a of stage 'one' is 'abc', not a list",
    ),
    "unknown key": (f"stagse: [{STAGE}]", "stagse is not a known name"),
    "samples": ("stages: [{stage: one, verb: sample, task: t, samples: many}]", "samples"),
    "task": ("stages: [{stage: one, verb: sample, task: [t]}]", "task"),
    "limit": ("stages: [{stage: one, verb: evaluate, tasks: [t], limit: {a: 1}}]", "limit"),
    "tasks": ("stages: [{stage: one, verb: evaluate, tasks: {a: 1}}]", "tasks"),
    "model_args": (
        "stages: [{stage: one, verb: evaluate, tasks: [t], model_args: [a]}]",
        "--model-args ['a'] is not text",
    ),
    "rollouts": ("stages: [{stage: one, verb: label, rollouts: [x]}]", "rollouts"),
    "keep": ("stages: [{stage: one, verb: curate, labels: x, keep: 3}]", "keep"),
    "mix": ("stages: [{stage: one, verb: curate, labels: x, keep: [easy], mix: {hard: x}}]", "mix"),
    "band": ("stages: [{stage: one, verb: curate, labels: x, band: {a: 1}}]", "band"),
    "size": ("stages: [{stage: one, verb: curate, labels: x, keep: [easy], size: [1]}]", "size"),
    "results": ("stages: [{stage: one, verb: leaderboard build, results: 5}]", "results"),
    "pairs": ("stages: [{stage: one, verb: leaderboard build, results: [x], pairs: many}]", "pairs"),
    "artefacts": ("stages: [{stage: one, verb: compare-cost, artefacts: {a: 1}}]", "artefacts"),
    "prompts": ("stages: [{stage: one, verb: merge, adapter: x, prompts: few}]", "prompts"),
    "steps": (
        "stages: [{stage: one, verb: train sft, model: m, data: d, max_steps: [1]}]",
        "--max-steps [1]",
    ),
    "rate": (
        "stages: [{stage: one, verb: train grpo, model: m, data: d, learning_rate: {a: 1}}]",
        "--learning-rate",
    ),
    "extra": ("stages: [{stage: one, verb: train sft, model: m, data: d, extra: [1]}]", "extra"),
    "families": ("stages: [{stage: one, verb: digits pretrain, families: 5}]", "families"),
    "distance": (
        "stages: [{stage: one, verb: data overlap, pool: p, tasks: [t], distance: far}]",
        "distance",
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_invalid_recipes_are_refused_with_their_file(tmp_path, capsys, kind):
    content, wanted = RECIPES[kind]
    file = put(tmp_path / "own.yaml", content)
    said = refused(capsys, "run", file, "--output", tmp_path / "out", "--dry-run")
    assert (str(file) in said or kind == "assume") and wanted in said
    assert not (tmp_path / "out").exists()


def test_recipes_included_twice_at_every_level_are_read_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()  # the rollouts
    for level in range(40):
        put(
            tmp_path / f"{level}.yaml", f"include: [{tmp_path}/{level + 1}.yaml, {tmp_path}/{level + 1}.yaml]"
        )
    put(tmp_path / "40.yaml", f"stages: [{STAGE}]")
    assert main(["run", str(tmp_path / "0.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("dcsft label") == 1


def test_a_date_in_yaml_stays_text(tmp_path, capsys):
    file = put(tmp_path / "own.yaml", "stages: [{stage: one, verb: sample, task: 2026-01-01}]")
    assert main(["run", str(file), "--output", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "unknown task '2026-01-01'" in capsys.readouterr().err


def written(folder, **changes):
    """A finished artifact's manifest with changed entries; None removes one."""
    path = folder / manifest.NAME
    data = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        part, _, key = name.partition("__")
        table = data[part] if key else data
        table.pop(key or part, None)
        if value is not None:
            table[key or part] = value
    path.write_text(json.dumps(data), encoding="utf-8")
    return folder


def of_manifests(tmp_path):
    """Verb -> a command, and the folder whose manifest it reads."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    data = curated(tmp_path / "data", 2, 2, 2)
    tuned = adapter(tmp_path / "tuned", data)
    found = labels(tmp_path / "labels")
    scored = scores_folder(tmp_path / "scores", "a", {ID: [1.0, 0.0]})
    rollouts(pool, ["easy", "hard"], with_items=True)
    own = tmp_path / "own"
    assert main(["label", str(pool), "--output", str(own)]) == 0
    digits = ["--model-args", "pretrained=digits"]
    return {
        "label": (pool, ["label", pool, "--output", out]),
        "curate": (found, ["curate", found, "--keep", "easy", "--output", out]),
        "exclude": (data, ["curate", own, "--keep", "easy", "--exclude", data, "--output", out]),
        "train": (data, ["train", "sft", "--model", "digits", "--data", data, "--output", out]),
        "merge": (tuned, ["merge", tuned, "--output", out]),
        "card": (tuned, ["card", tuned]),
        "leaderboard": (scored, ["leaderboard", "build", scored, "--strict", "--output", out]),
        "costs": (tuned, ["compare-cost", tuned]),
        "costs of scores": (scored, ["compare-cost", tuned, "--scores", scored]),
        "score": (scored, ["score", "base=digits", "--suite", "digits", "--board", out, "--results", scored]),
        "occupied": (pool, ["sample", *digits, "--task", "dcsft_digits_pool", "--output", pool]),
        "evaluate": (pool, ["evaluate", *digits, "--tasks", "dcsft_digits", "--output", pool]),
    }


READERS = [
    *("label", "curate", "exclude", "train", "merge", "card", "leaderboard", "costs", "costs of scores"),
    *("score", "occupied", "evaluate"),
]


def million(path):
    """Writes a manifest of a million files."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"files": {')
        file.writelines(f'"file-{number}": "{"0" * 64}",' for number in range(1_000_000))
        file.write('"last": ""}}')


FAULTS = {
    "a list": ([], "should be a dictionary"),
    "a text": ("manifest", "should be a dictionary"),
    "inputs": ({"inputs": 5}, "inputs is 5, not a mapping"),
    "input": ({"inputs": {"model": "x"}}, "inputs.model is 'x', not a mapping"),
    "no hash": ({"inputs": {"model": {"path": "x"}}}, "inputs.model.sha256 is missing"),
    "hash": ({"inputs": {"model": {"path": "x", "sha256": 5}}}, "inputs.model.sha256: input should be"),
    "NUL in a path": ({"inputs": {"model": {"path": "a\0b", "sha256": "x"}}}, "a path cannot contain NUL"),
    "files": ({"files": ["a"]}, "files is a list of 1, not a mapping"),
    "NUL in a file": ({"files": {"a\0b": "x"}}, "is not a file of this folder"),
    "file above": ({"files": {"../../etc/passwd": "x"}}, "'../../etc/passwd' is not a file of this folder"),
    "file elsewhere": ({"files": {"/etc/passwd": "x"}}, "'/etc/passwd' is not a file of this folder"),
    "config": ({"config": "x"}, "config is 'x', not a mapping"),
    "notes": ({"notes": [1, 2]}, "notes is a list of 2, not a mapping"),
    "kind": ({"artefact": ["labels"]}, "artefact: input should be a valid string"),
    "seconds": ({"seconds": "long"}, "seconds: input should be a valid number"),
    "NaN": ({"seconds": float("nan")}, "seconds: input should be a finite number"),
    "packages": ({"packages": {"torch": 2}}, "packages.torch: input should be a valid string"),
    "model": ({"config__model": [1]}, "config.model: input should be a valid string"),
    "ledger": ({"notes__ledger": 5}, "notes.ledger is 5, not a mapping"),
    "items": ({"notes__items": -1}, "notes.items: input should be greater than or equal to 0"),
    "deep notes": ({"notes__x": json.loads("[" * 200 + "]" * 200)}, "nested deeper than 64 levels"),
    **{f"no {name}": ({name: None}, f"{name} is missing") for name in
       ("artefact", "config", "inputs", "notes", "files", "key", "seconds")},
    "a million entries": (million, "larger than 64 MB"),
}  # fmt: skip


@pytest.mark.parametrize("verb", READERS)
def test_invalid_manifests_are_refused_with_their_file(tmp_path, capsys, verb):
    folder, command = of_manifests(tmp_path)[verb]
    path = folder / manifest.NAME
    sound = path.read_text(encoding="utf-8")
    capsys.readouterr()
    for kind, (fault, wanted) in {**JSON, **FAULTS}.items():
        path.write_text(sound, encoding="utf-8")
        if callable(fault):
            if verb != "label":
                continue
            fault(path)
        elif kind in JSON:
            path.write_bytes(fault if isinstance(fault, bytes) else fault.encode())
        elif isinstance(fault, dict):
            written(folder, **fault)
        else:
            path.write_text(json.dumps(fault), encoding="utf-8")
        said = refused(capsys, *command)
        assert str(path) in said and wanted in said, (kind, said)
        assert not (tmp_path / "out").exists() or verb == "score"


def test_a_manifest_without_a_required_entry_is_reported(tmp_path):
    found = manifest.read(rollouts(tmp_path / "a", ["easy"]))
    with pytest.raises(HarnessError, match=r"manifest\.json cannot be read: notes\.steps is missing"):
        found.notes["steps"]
    assert found.notes.get("steps") is None and found.config == {"task": "pool", "samples": 2}


@pytest.mark.slow
def test_refusing_a_file_takes_little_memory(tmp_path):
    million(tmp_path / manifest.NAME)
    tracemalloc.start()
    try:
        with pytest.raises(HarnessError, match="larger than 64 MB"):
            manifest.read(tmp_path)
        for content, _ in YAML.values():
            if isinstance(content, str):
                with pytest.raises(ValueError):
                    reading.from_yaml(content[: reading.MOST_YAML])
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 2**20
    finally:
        tracemalloc.stop()


ROW = '{"question": "q", "answer": "A"}'
TWICE = '{"question": "q", "answer": "A", "answer": "B"}'
OWN = ["evaluate", "--model", "dcsft_stub", "--data", "FILE", "--scorer", "exact_word"]
SCORE = ["evaluate", "--responses", "FILE", "--scorer", "exact_word"]
INSIDE = '{"messages": [{"role": "user", "content": "q", "content": "r"}], "answer": "A"}'
REPEATED = {
    "lines": ("own.jsonl", f"{ROW}\n{TWICE}\n", OWN, "line 2: the key 'answer' appears twice"),
    "packed": ("own.jsonl.gz", f"{ROW}\n{TWICE}\n", OWN, "line 2: the key 'answer' appears twice"),
    "list": ("own.json", f"[{ROW},\n{TWICE}]", OWN, "row 2: the key 'answer' appears twice"),
    "values": ("own.json", f"{TWICE}\n{ROW}", OWN, "row 1: the key 'answer' appears twice"),
    "inside": ("own.jsonl", INSIDE, OWN, "line 1: the key 'content' appears twice"),
    "responses": ("own.jsonl", f"{ROW}\n{TWICE}\n", SCORE, "line 2: the key 'answer' appears twice"),
    "script": (
        "own.jsonl",
        '{"prompt": "q", "responses": ["A"], "prompt": "r"}',
        ["evaluate", "--model", "dcsft_stub", "--model-args", "answers=FILE", "--tasks", "dcsft_digits"],
        "line 1 is not a scripted answer (RepeatedKeyError: the key 'prompt' appears twice)",
    ),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_rows_with_a_repeated_key_are_refused(tmp_path, capsys, kind):
    """There is no way to know which value is meant."""
    name, content, words, wanted = REPEATED[kind]
    place, data = tmp_path / name, content.encode()
    place.write_bytes(gzip.compress(data) if place.suffix == ".gz" else data)
    words = [word.replace("FILE", str(place)) for word in words]
    said = refused(capsys, *words, "--output", tmp_path / "out")
    assert str(place) in said and wanted in said


def test_log_lines_with_a_repeated_key_are_refused(tmp_path):
    folder = log_folder(tmp_path / "log", {"t": [line(0, 1)]})
    (samples,) = folder.rglob("*_samples_t.jsonl")
    samples.write_text(samples.read_text().replace('"acc":', '"acc": {"score": 0}, "acc":'))
    with pytest.raises(HarnessError, match="line 1 is truncated or damaged .*'acc' appears twice"):
        load([folder])
