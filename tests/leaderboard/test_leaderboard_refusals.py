"""Results that must not be compared, and folders that contradict themselves."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import load
from dcsft_harness.records import as_text
from tests.fixtures.lmms_eval_logs import line, log_folder
from tests.leaderboard.test_leaderboard import ID, OOD_A, OOD_R, rewrite, score_row, scores_folder


def refusal(folders, baseline=None):
    with pytest.raises(HarnessError) as caught:
        load(folders, baseline)
    assert caught.value.remedy
    return str(caught.value)


OFF = '{"enable_thinking": false}'
TEXT = hashlib.sha256(b"Be brief.").hexdigest()
OWN, THEIRS = "dcsft_hf", "qwen2_5_vl"
PROMPTED = {
    # the engine, its arguments, its own record, and hashes of the files that they name, of two rows; what
    # the refusal says
    "the same template": ((OWN, f"chat_template_kwargs={OFF}", None, {}),) * 2 + (None,),
    "another template": (
        (OWN, "pretrained=a", {}, {}), (OWN, f"chat_template_kwargs={OFF}", None, {}),
        "chat template argument enable_thinking 'unset' and False",
    ),
    "a template from training": (
        (OWN, "pretrained=a", {}, {}),
        (OWN, "pretrained=b", {"chat_template_kwargs": {"enable_thinking": False}}, {}),
        "chat template argument enable_thinking 'unset' and False",
    ),
    "the same template, once from training": (
        (OWN, f"chat_template_kwargs={OFF}", None, {}),
        (OWN, "pretrained=b", {"chat_template_kwargs": {"enable_thinking": False}}, {}), None,
    ),
    "one file under two names": (
        (OWN, "system_prompt=a.txt", {"system_prompt_sha256": TEXT}, {}),
        (OWN, "system_prompt=b.txt", {"system_prompt_sha256": TEXT}, {}), None,
    ),
    "a text and its file": (
        (OWN, "system_prompt=Be brief.", None, {}),
        (OWN, "system_prompt=b.txt", {"system_prompt_sha256": TEXT}, {}), None,
    ),
    "two files of one name": (
        (OWN, "system_prompt=/a/s.txt", {"system_prompt_sha256": TEXT}, {}),
        (OWN, "system_prompt=/b/s.txt", {"system_prompt_sha256": "5a"}, {}),
        f"system prompt's text by hash '{TEXT}' and '5a'",
    ),
    "two files of one name, of any engine": (
        (THEIRS, "system_prompt=s.txt", None, {"s.txt": "1a"}),
        (THEIRS, "system_prompt=s.txt", None, {"s.txt": "2b"}),
        "system prompt's file by hash '1a' and '2b'",
    ),
    "a file, and its name alone": (
        (OWN, "system_prompt=s.txt", {"system_prompt_sha256": TEXT}, {}),
        (OWN, "system_prompt=/a/s.txt", None, {}), None,
    ),
    "settings that add nothing": (
        (OWN, "pretrained=a,dtype=float32,batch_size=8", None, {}),
        (THEIRS, "pretrained=a,device_map=auto", None, {}), None,
    ),
    "another engine's": (
        (THEIRS, "pretrained=a", None, {}), (THEIRS, "reasoning_prompt=Think first.", None, {}),
        "prompt arguments of qwen2_5_vl {} and {'reasoning_prompt': 'Think first.'}",
    ),
    "another engine's, beside ours": (
        (OWN, "pretrained=a", None, {}), (THEIRS, "interleave_visuals=True", None, {}), None,
    ),
}  # fmt: skip
BOTH = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
KEPT, CUT = {"removed": "none", "responses": 1}, {"removed": "<think>", "responses": 1}
REASONING = {
    # notes of a scores folder as a list, empty for older ones, or a log: the command's tags, the task's
    # configuration, and a response before and after tags were removed; and what the refusal says
    "two commands": (
        [KEPT], {"command": BOTH, "texts": ("<think>4?</think>3", "3")}, ("none", "<think>"),
    ),
    "only the end of a thought": (
        [KEPT], {"command": BOTH, "texts": ("4?</think>3", "3")}, ("none", "<think>"),
    ),
    "kept by both": ([KEPT], {"command": "none", "texts": ("<think>4?</think>3",) * 2}, None),
    "kept before 0.7": ([KEPT], {"command": None, "texts": ("<think>4?</think>3",) * 2}, None),
    "kept by the task": (
        [KEPT], {"command": BOTH, "task": {"reasoning_tags": "none"},
                 "texts": ("<think>4?</think>3",) * 2}, None,
    ),
    "removed by the task": (
        [CUT], {"command": "none", "task": {"reasoning_tags": [["<think>", "</think>"]]},
                "texts": ("<think>4?</think>3", "3")}, None,
    ),
    "removed by auto_strip_thinking": (
        [KEPT], {"command": "none", "task": {"auto_strip_thinking": True},
                 "texts": ("<think>4?</think>3", "3")},
        ("none", "<think>"),
    ),
    "none in either": ([{"removed": "none", "responses": 0}], {"command": BOTH, "texts": ("3", "3")}, None),
    "none in the log": ([KEPT], {"command": BOTH, "texts": ("3", "3")}, None),
    "an older folder": ([], {"command": BOTH, "texts": ("<think>4?</think>3", "3")}, "unrecorded"),
    "an older folder without any": ([], {"command": BOTH, "texts": ("3", "3")}, None),
    "two logs": (
        {"command": BOTH, "texts": ("<think>4?</think>3", "3")},
        {"command": "none", "texts": ("<think>4?</think>3",) * 2}, ("<think>", "none"),
    ),
}  # fmt: skip


def thinking(folder, *, command, texts, task=None):
    """A log whose first response is the first text, of which the second was scored."""
    before, after = texts
    lines = [line(number, 1.0 - number) for number in range(2)]
    lines[0] |= {"filtered_resps": after, **({"resps": [before]} if before != after else {})}
    log_folder(folder, {ID: lines})
    path = next(folder.rglob("*_results.json"))
    data = json.loads(path.read_text())
    if command is not None:
        data["config"]["resolved_cli_args"] = {"reasoning_tags": command}
    data["configs"][ID] |= task or {}
    data["config"]["model_args"] = f"pretrained=org/{folder.name}"
    path.write_text(json.dumps(data))
    return folder


class TestIncomparableRows:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"version": 2}, "task version 1 and 2"),
            ({"prompt_sha256": "q"}, "prompt hash 'p' and 'q'"),
            ({"limit": 2}, "limit None and 2"),
            ({"items_sha256": "other"}, "item set 'items of digits' and 'other'"),
            (
                {"generation": {"temperature": 0.7, "max_new_tokens": 8}},
                "generation argument temperature 0.0 and 0.7",
            ),
            ({"generation": {"temperature": 0.0}}, "generation argument max_new_tokens 8 and 'unset'"),
            ({"distribution": "ood"}, "distribution 'id' and 'ood'"),
            ({"scorers": {"choice": 2}}, "version of the scorer choice 1 and 2"),
            (
                {"generation_from_checkpoint": {"repetition_penalty": 1.05}},
                "checkpoint's generation setting repetition_penalty 'unset' and 1.05",
            ),
        ],
    )
    def test_a_task_under_another_condition(self, tmp_path, change, said):
        folders = [
            scores_folder(tmp_path / "a", "a", {ID: [1, 0]}),
            scores_folder(tmp_path / "b", "b", {ID: [1, 0]}, notes={ID: change}),
        ]
        message = refusal(folders)
        assert said in message
        assert all(part in message for part in ("digits in ", str(folders[0]), str(folders[1])))

    def test_missing_scorer_versions_and_settings_are_those_of_the_first_edition(self, tmp_path):
        recorded = {"scorers": {"choice": 1}, "generation_from_checkpoint": {}, "generation_in_force": {}}
        folders = [
            scores_folder(tmp_path / "a", "a", {ID: [1, 0]}),
            scores_folder(tmp_path / "b", "b", {ID: [1, 0]}, notes={ID: recorded}),
        ]
        assert len(load(folders).rows) == 2
        both = [
            scores_folder(tmp_path / n, n, {ID: [1, 0]}, notes={ID: {"scorers": {"choice": version}}})
            for n, version in (("c", 2), ("d", 3))
        ]
        assert "version of the scorer choice 2 and 3" in refusal(both)

    def test_other_scorers_are_named(self, tmp_path):
        both = [
            scores_folder(tmp_path / name, name, {ID: [1, 0]}, notes={ID: {"scorers": {scorer: 1}}})
            for name, scorer in (("a", "choice"), ("b", "math"))
        ]
        assert "scored by choice and by math" in refusal(both)
        with pytest.raises(HarnessError, match="b= names no folder. Write NAME=FOLDER"):
            load([both[0], Path("b=")])

    @pytest.mark.parametrize("change", [{"scorers": ["choice"]}, {"generation_from_checkpoint": "1.05"}])
    def test_records_of_another_shape_are_refused(self, tmp_path, change):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]}, notes={ID: change})
        assert "are not tables" in refusal([folder])

    def test_other_pixel_limits(self, tmp_path):
        folders = [
            scores_folder(
                tmp_path / "a", "a", {ID: [1, 0]}, pixels={"min_pixels": 3136, "max_pixels": 802816}
            ),
            scores_folder(
                tmp_path / "b", "b", {ID: [1, 0]}, pixels={"min_pixels": 3136, "max_pixels": 1003520}
            ),
            scores_folder(tmp_path / "c", "c", {ID: [1, 0]}, pixels={"min_pixels": None, "max_pixels": None}),
            scores_folder(tmp_path / "d", "d", {ID: [1, 0]}),
        ]
        assert "pixel limit max_pixels 802816 and 1003520" in refusal(folders[:2])
        assert len(load([folders[0], *folders[2:]]).rows) == 3

    @pytest.mark.parametrize(
        ("ours", "theirs", "said"),
        [
            ("pretrained=a,system_prompt=Be brief.", "pretrained=b,system_prompt=Be brief.", None),
            ("system_prompt=/home/a/system.txt", "system_prompt=/work/b/system.txt", None),
            ("pretrained=a", "pretrained=b,system_prompt=Be brief.", "'unset' and 'Be brief.'"),
            ("system_prompt=Be brief.", "system_prompt=Think first.", "'Be brief.' and 'Think first.'"),
        ],
    )
    def test_other_system_prompts(self, tmp_path, ours, theirs, said):
        folders = [
            scores_folder(tmp_path / name, name, {ID: [1, 0]}, config={"model_args": given})
            for name, given in (("a", ours), ("b", theirs))
        ]
        if said is None:
            assert len(load(folders).rows) == 2
        else:
            assert f"system prompt {said}" in refusal(folders)

    @pytest.mark.parametrize(("ours", "theirs", "said"), PROMPTED.values(), ids=PROMPTED)
    def test_what_is_added_to_prompts(self, tmp_path, ours, theirs, said):
        folders = []
        for name, (engine, arguments, recorded, read) in (("a", ours), ("b", theirs)):
            notes = {} if recorded is None else {ID: {"prompt_settings": recorded}}
            config = {"model": engine, "model_args": arguments}
            folders.append(scores_folder(tmp_path / name, name, {ID: [1, 0]}, notes=notes, config=config))
            rewrite(folders[-1], call={"verb": "evaluate", "options": {}, "read": read})
        if said is None:
            assert len(load(folders).rows) == 2
        else:
            assert f"{said}. Evaluate" in refusal(folders)

    @pytest.mark.parametrize(("ours", "theirs", "said"), REASONING.values(), ids=REASONING)
    @pytest.mark.parametrize("turned", [False, True])
    def test_reasoning_that_one_of_two_rows_scored(self, tmp_path, ours, theirs, said, turned):
        same = {"items_sha256": json_sha256(["digits-000", "digits-001"])}
        same["prompt_sha256"] = json_sha256(["Which digit?"] * 2)
        folders = []
        for name, row in (("a", ours), ("b", theirs)):
            if isinstance(row, list):
                notes = {ID: same | ({"reasoning": row[0]} if row else {})}
                folders.append(scores_folder(tmp_path / name, name, {ID: [1, 0]}, notes=notes))
            else:
                folders.append(thinking(tmp_path / name, **row))
        folders = folders[::-1] if turned else folders
        if said is None:
            board = load(folders)
            assert len(board.rows) == 2
            assert not any("reasoning" in remark for remark in board.remarks)
        elif said == "unrecorded":
            remarks = " ".join(load(folders).remarks)
            assert "not record the reasoning removed from responses, assumed to be as in the other" in remarks
        else:
            one, other = said[::-1] if turned and isinstance(ours, dict) else said  # logs come last
            message = refusal(folders)
            assert (
                f"reasoning removed from responses {one!r} and {other!r}. Score the log's samples" in message
            )

    def test_runs_that_differ_in_removed_reasoning_are_named_by_it(self, tmp_path):
        for name, command in (("a", BOTH), ("b", "none")):
            thinking(tmp_path / "all" / name, command=command, texts=("<think>4?</think>3",) * 2)
            path = next((tmp_path / "all" / name).rglob("*_results.json"))
            path.write_text(path.read_text().replace(f"org/{name}", "org/tiny"))
        board = load([tmp_path / "all"], apart=True)
        assert sorted(row.name for part in board.boards for row in part.rows) == [
            "tiny",
            "tiny (reasoning_tags=none)",
        ]

    @pytest.mark.parametrize(
        ("prompt", "logged", "fits"),
        [
            ("Which digit?", None, True),
            ("Think. Which?", "Which digit?", True),
            ("Think. Which?", None, False),
        ]
        + [("Which digit?", "Which one?", True), ("Think. Which?", "Which one?", False)],
    )
    @pytest.mark.parametrize("first", ["scores", "log"])
    def test_prompts_of_a_task_that_adds_messages(self, tmp_path, prompt, logged, fits, first):
        hashes = {"prompt_sha256": json_sha256([prompt] * 2)}
        hashes |= {} if logged is None else {"logged_prompt_sha256": json_sha256([logged] * 2)}
        notes = {ID: hashes | {"items_sha256": json_sha256(["digits-000", "digits-001"])}}
        scores = scores_folder(tmp_path / "scores", "scores", {ID: [1, 0]}, notes=notes)
        log = log_folder(tmp_path / "log", {ID: [line(number, 1.0 - number) for number in range(2)]})
        folders = [scores, log] if first == "scores" else [log, scores]
        if fits:
            assert len(load(folders).rows) == 2
        else:
            assert "prompt hash" in refusal(folders)

    @pytest.mark.parametrize(
        ("gold", "logged", "fits"),
        [
            *(
                (gold, str(gold), True)
                for gold in (["a", "it's b", 'c "d"\n', "é"], True, None, 1.5e-7, {"a": [1]})
            ),
            ((1, "x"), "(1, 'x')", True),
            ([1, 2.5], "[1,2.50]", True),  # as an older version of the suite has it
            ("true", "true", True),
            (["a"], "['b']", False),
            (["1"], "[1]", False),
            ("a", "['a']", False),
        ],
    )
    def test_golds_are_those_that_lmms_eval_logs(self, tmp_path, gold, logged, fits):
        hashes = {"prompt_sha256": json_sha256(["Which digit?"]), "items_sha256": json_sha256(["digits-000"])}
        scores = scores_folder(tmp_path / "scores", "scores", {ID: [1]}, notes={ID: hashes})
        rewrite(scores, [replace(score_row(ID, 0, 1.0), answer=as_text(gold))])
        log = log_folder(tmp_path / "log", {ID: [line(0, 1.0, target=logged)]})
        if fits:
            assert len(load([scores, log]).rows) == 2
        else:
            assert "cannot be compared: prompt hash" in refusal([scores, log]) or "item set" in refusal(
                [scores, log]
            )

    def test_a_limit_is_named_before_the_items_and_prompts_it_changes(self, tmp_path):
        less = {"limit": 1, "items_sha256": "other", "prompt_sha256": "q"}
        folders = [
            scores_folder(tmp_path / "a", "a", {ID: [1, 0]}),
            scores_folder(tmp_path / "b", "b", {ID: [1]}, notes={ID: less}),
        ]
        message = refusal(folders)
        assert "limit None and 1." in message
        assert "a (2 items) and in " in message and "b (1 items) cannot" in message

    def test_another_number_of_items_is_not_reported_as_other_prompts(self, tmp_path):
        less = {"items_sha256": "other", "prompt_sha256": "q"}
        folders = [
            scores_folder(tmp_path / "a", "a", {ID: [1, 0]}),
            scores_folder(tmp_path / "b", "b", {ID: [1]}, notes={ID: less}),
        ]
        assert "(1 items) cannot be compared: item set" in refusal(folders)
        assert [one.kind for one in load(folders, strict=False).left_out] == ["other items"]

    def test_other_items_under_the_same_hash(self, tmp_path):
        folders = [scores_folder(tmp_path / n, n, {ID: [1, 0]}) for n in ("a", "b")]
        rewrite(folders[1], [score_row(ID, 0, 1.0), score_row(ID, 7, 0.0)])
        assert "only one of them has the item digits-001" in refusal(folders)

    @pytest.mark.parametrize(
        ("here", "there", "differ"),
        [
            ({}, {1: "x"}, None),  # a cluster of one item, whatever its name
            ({0: "a", 1: "a"}, {0: "b", 1: "b"}, None),
            ({}, {0: "x", 1: "x"}, "digits-000 is in cluster None with 1 items and in 'x' with 2"),
            ({0: "a", 1: "a"}, {0: "a", 1: "b"}, "digits-000 is in cluster 'a' with 2 items and in 'a' with"),
        ],
    )
    def test_other_clusters(self, tmp_path, here, there, differ):
        folders = [
            scores_folder(tmp_path / name, name, {ID: [1, 0]}, clusters={ID: some})
            for name, some in (("a", here), ("b", there))
        ]
        if differ is None:
            load(folders)
        else:
            assert differ in refusal(folders)

    def test_rows_on_different_tasks_may_differ_in_everything(self, tmp_path):
        a = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        b = scores_folder(
            tmp_path / "b", "b", {OOD_R: [1]}, pixels={"max_pixels": 1}, notes={OOD_R: {"limit": 1}}
        )
        assert [task.name for task in load([b, a]).tasks] == [ID, OOD_R]


UNRECORDED = {
    # a condition -> notes of scores folders that record one value, another value, and none
    "pixel limit max_pixels": [{"max_pixels": 802816}, {"max_pixels": 1003520}, {"max_pixels": None}],
    "pixel limit min_pixels": [{"min_pixels": 3136}, {"min_pixels": 784}, {}],
    "pixel limit min_pixels of an own class": [{"min_pixels": 3136}, {"min_pixels": 784}, None],
    "checkpoint's generation setting top_k": [
        {"generation_from_checkpoint": {"top_k": 1}},
        {"generation_from_checkpoint": {"top_k": 5}},
        {"unknown": ["checkpoint's generation"]},
    ],
    "chat template argument enable_thinking": [
        {"prompt_settings": {"chat_template_kwargs": {"enable_thinking": True}}},
        {"prompt_settings": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"prompt_settings": None},
    ],
    "generation argument temperature": [
        {"generation": {"temperature": 0}},
        {"generation": {"temperature": 1}},
    ]
    + [{"generation": None}],
    "task version": [{"version": 1}, {"version": 2.0}, {"version": "Yaml"}],
    "distribution": [{"distribution": "id"}, {"distribution": "ood"}, {"distribution": None}],
}

LOGGED = {
    # the same for logs: changes to the results file, or to each line; "" removes a key
    "pixel limit max_pixels": [
        {"model_args": "pretrained=a,max_pixels=9"},
        {"model_args": "max_pixels=8"},
        {},
    ],
    "limit": [{"limit": 2}, {"limit": 4}, {"limit": ""}],
    "task version": [{"versions": {ID: 1}}, {"versions": {ID: 2}}, {"versions": {}}],
    "task version of old lmms-eval": [
        {"versions": {ID: 1}},
        {"versions": {ID: 2}},
        {"versions": {ID: "Yaml"}},
    ],
    "distribution": [
        {"metadata": {"distribution": "id"}},
        {"metadata": {"distribution": "ood"}},
        {"metadata": ""},
    ],
    "generation argument until": [
        {"generation_kwargs": {"until": "a"}},
        {"generation_kwargs": {"until": "b"}},
        {"generation_kwargs": ""},
    ],
    "examples in the prompt": [{"n-shot": {ID: 5}}, {"n-shot": {ID: 2}}, {}],
    "system prompt": [{"system_instruction_sha": "a"}, {"system_instruction_sha": "b"}, {}],
    "system prompt of our models": [
        {"model_args": "pretrained=a,system_prompt=Be brief."},
        {"model_args": "pretrained=b,system_prompt=Think first."},
        {},
    ],
    "prompt hash": [{"input": "Which?"}, {"input": "What?"}, {"input": ""}],
    "clusters of items": [{"cluster": "x"}, {"cluster": "own"}, {"cluster": None}],
}


def logged(folder, change):
    """A log with changes to its results file, to the settings of its run or task, or to its lines."""
    lines = [line(number, 1.0 - number, cluster=change.get("cluster", "own")) for number in range(2)]
    if "input" in change:
        lines = [{**one, "input": change["input"]} for one in lines]
        lines = [{key: value for key, value in one.items() if (key, value) != ("input", "")} for one in lines]
    log_folder(folder, {ID: lines}, run={"n-shot": {}})
    path = next(folder.rglob("*_results.json"))
    data = json.loads(path.read_text())
    data["config"]["model_args"] = f"pretrained=org/{folder.name}"
    for key, value in change.items():
        places = (data["config"], data["configs"][ID], data)
        place = next((one for one in places if key in one), data)
        place.pop(key, None) if value == "" else place.update({key: value})
    path.write_text(json.dumps(data))
    return folder


class TestUnknownSettings:
    """A condition missing in one row is named in a remark; only two known, different values are refused."""

    @pytest.fixture(params=[*UNRECORDED, *(f"log: {name}" for name in LOGGED)])
    def case(self, request, tmp_path):
        is_log, name = request.param.startswith("log: "), request.param.removeprefix("log: ")
        folders = []
        for row, change in zip(
            ("one", "other", "silent"), (LOGGED if is_log else UNRECORDED)[name], strict=True
        ):
            if is_log:
                folders.append(logged(tmp_path / row, change))
            elif name.startswith("pixel"):
                folders.append(scores_folder(tmp_path / row, row, {ID: [1, 0]}, pixels=change))
            else:
                folders.append(scores_folder(tmp_path / row, row, {ID: [1, 0]}, notes={ID: change}))
        return name.partition(" of ")[0] if not name.startswith("clusters") else "clusters of items", folders

    def test_an_unknown_value_is_accepted_with_a_remark(self, case):
        name, (one, _, silent) = case
        for folders in ((one, silent), (silent, one)):
            board = load(folders)
            assert len(board.rows) == 2
            prefix = "generation argument" if name.startswith("generation") else name
            prefix = "checkpoint's generation" if name.startswith("checkpoint") else prefix
            prefix = "pixel limit" if name.startswith("pixel limit") else prefix
            prefix = "chat template argument" if name.startswith("chat template") else prefix
            (said,) = [remark for remark in board.remarks if "silent" in remark and "assumed" in remark]
            assert prefix in said

    def test_two_different_known_values_are_refused_even_after_an_unknown_one(self, case):
        name, (one, other, silent) = case
        said = {"clusters of items": "is in cluster", "prompt hash": "prompt hash"}.get(name, name)
        for folders in ((one, other), (silent, one, other), (one, silent, other)):
            message = refusal(folders)
            assert said in message and str(one) in message and str(other) in message

    @pytest.mark.parametrize("first", ["scores", "log"])
    def test_a_log_adopts_missing_conditions_from_scores(self, tmp_path, first):
        """Distribution and clusters of scores apply to another tool's log of the same documents."""
        items = json_sha256(["digits-000", "digits-001"])
        scores = scores_folder(
            tmp_path / "scores",
            "scores",
            {ID: [1, 0]},
            notes={ID: {"items_sha256": items}},
            clusters={ID: {0: "x", 1: "x"}},
        )
        rows = [
            {key: value for key, value in one.items() if key != "input"}
            for one in (line(number, 1.0 - number, cluster=None) for number in range(2))
        ]
        log = log_folder(tmp_path / "log", {ID: rows})
        board = load([scores, log] if first == "scores" else [log, scores])
        (task,) = board.tasks
        assert task.distribution == "id" and len(set(task.clusters.tolist())) == 1
        (said,) = [one for one in board.remarks if "its log does not record" in one]
        assert all(name in said for name in ("distribution", "prompt hash", "clusters of items"))


class TestRowNames:
    def test_tasks_evaluated_in_several_runs_make_one_row(self, tmp_path):
        folders = [
            scores_folder(tmp_path / "a", "SFT", {ID: [1, 0]}),
            scores_folder(tmp_path / "b", "SFT", {OOD_R: [1, 1]}),
        ]
        (row,) = load(folders).rows
        assert (set(row.cells), row.folders) == ({ID, OOD_R}, tuple(folders))

    @pytest.mark.parametrize("role", ["data", "data test", f"{prepared.ROLE}digits_r", "task mine"])
    def test_other_data_inputs_do_not_make_another_model(self, tmp_path, role):
        for name in ("model", "rows", "others"):
            (tmp_path / name).write_text(name)
        model = {"model": tmp_path / "model"}
        folders = [
            scores_folder(tmp_path / "a", "SFT", {ID: [1]}, inputs=model | {role: tmp_path / "rows"}),
            scores_folder(tmp_path / "b", "SFT", {OOD_R: [1]}, inputs=model),
            scores_folder(tmp_path / "c", "SFT", {"own": [1]}, inputs=model | {role: tmp_path / "others"}),
        ]
        board = load(folders)
        assert (len(board.rows), set(board.rows[0].cells)) == (1, {ID, OOD_R, "own"})

    def test_two_results_for_one_cell(self, tmp_path):
        a, b = (scores_folder(tmp_path / n, "SFT", {ID: [1, int(n == "a")]}) for n in "ab")
        message = refusal([a, b])
        assert (
            f"{a} and {b} are both named 'SFT' and both have digits (accuracy 1.0000 and 0.5000)" in message
        )
        assert "both have digits" in refusal([a, a])

    def test_two_models_under_one_name(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / f"{name}.json").write_text(name)
        a = scores_folder(tmp_path / "a", "SFT", {ID: [1]}, inputs={"adapter": tmp_path / "one.json"})
        b = scores_folder(tmp_path / "b", "SFT", {OOD_R: [1]}, inputs={"adapter": tmp_path / "two.json"})
        assert "were not made from the same model: the adapter was" in refusal([a, b])

    def test_two_hub_models_under_one_name_are_refused_but_other_arguments_may_differ(self, tmp_path):
        a, b, c = (scores_folder(tmp_path / n, "SFT", {f"task {n}": [1]}) for n in "abc")
        rewrite(a, config={"name": "SFT", "model_args": "pretrained=org/x,batch_size=1"})
        rewrite(b, config={"name": "SFT", "model_args": "pretrained=org/x,batch_size=8"})
        rewrite(c, config={"name": "SFT", "model_args": "pretrained=org/y"})
        load([a, b])
        assert "the model was 'org/x' and 'org/y'" in refusal([a, c])

    def test_an_unknown_baseline_is_named_with_near_matches(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "base", {ID: [1]})
        with pytest.raises(HarnessError, match="unknown row 'bas'.*base"):
            load([folder], "bas")


class TestDamagedFolders:
    def test_no_folder_given(self):
        assert "no scores folders" in refusal([])

    def test_no_artifact_or_another_kind(self, tmp_path):
        with pytest.raises(HarnessError, match="is not a scores folder"):
            load([tmp_path])
        with manifest.writing("labels", tmp_path / "labels", {}):
            pass
        with pytest.raises(HarnessError, match="holds labels, where scores are needed"):
            load([tmp_path / "labels"])

    def test_a_truncated_or_missing_table(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        path = folder / "scores.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        assert f"{path} is truncated, damaged or changed" in refusal([folder])
        rewrite(folder)
        assert f"{path} is not a readable Parquet file" in refusal([folder])
        path.unlink()
        assert f"{path} does not exist" in refusal([folder])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -0.01, 1.01, 97.5])
    def test_a_score_that_is_not_a_fraction(self, tmp_path, bad):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, bad]})
        message = refusal([folder])
        assert f"{folder / 'scores.parquet'}: digits, item digits-001 has the score {bad}" in message

    def test_a_repeated_item(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 1]})
        rewrite(folder, [score_row(ID, 0, 1.0), score_row(ID, 0, 1.0)])
        assert "digits has the item digits-000 twice" in refusal([folder])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                {"n": 3},
                "says n=3 and unscored=0 for digits, scores.parquet holds 2 scored items and 0 unscored",
            ),
            ({"unscored": 1}, "says n=2 and unscored=1"),
            ({"accuracy": 50.0}, "says accuracy=50.0 for digits, the items of scores.parquet give 0.5"),
            ({"accuracy": math.nan}, "says accuracy=nan"),
            ({"accuracy": None}, "says accuracy=None"),
            ({"distribution": "odd"}, "digits has the distribution 'odd'"),
        ],
    )
    def test_a_manifest_that_contradicts_its_items(self, tmp_path, change, said):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]}, notes={ID: change})
        assert said in refusal([folder])

    def test_a_manifest_and_a_table_of_different_tasks(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0], OOD_R: [1]})
        rewrite(folder, [score_row(ID, 0, 1.0), score_row(ID, 1, 0.0)])
        assert "manifest.json has the task 'digits_r', scores.parquet does not" in refusal([folder])
        rewrite(folder, [score_row(task, 0, 1.0) for task in (ID, OOD_R, OOD_A)])
        assert "scores.parquet has the task 'digits_a', manifest.json does not" in refusal([folder])

    @pytest.mark.parametrize("name", [None, "", "  ", 7, "\ud800"])
    def test_a_row_without_a_usable_name(self, tmp_path, name):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        rewrite(folder, config={"name": name})
        assert str(folder) in refusal([folder])

    @pytest.mark.parametrize("notes", [{}, {"tasks": {}}, {"tasks": {ID: 3}}, {"tasks": {ID: {"n": 2}}}, []])
    def test_incomplete_notes(self, tmp_path, notes):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        rewrite(folder, notes=notes)
        assert str(folder) in refusal([folder])

    def test_missing_conditions_are_named(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        said = json.loads((folder / "manifest.json").read_text())["notes"]
        del said["tasks"][ID]["prompt_sha256"]
        rewrite(folder, notes=said)
        assert "the notes on digits lack 'prompt_sha256'" in refusal([folder])

    def test_a_column_of_another_type(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        path = folder / "scores.parquet"
        table = pq.read_table(path)
        as_text = table["score"].cast("string")
        pq.write_table(table.set_column(table.column_names.index("score"), "score", as_text), path)
        rewrite(folder)
        assert "the column 'score' holds string, not double" in refusal([folder])
