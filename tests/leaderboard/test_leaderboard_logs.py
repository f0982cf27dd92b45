"""Plain lmms-eval logs: read, matched with scores, and refused if they contradict themselves."""

import gc
import json
import math
import shutil

import numpy as np
import pytest

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import load, markdown, summarize
from dcsft_harness.leaderboard.board import Documents
from dcsft_harness.leaderboard.collect import find, named
from dcsft_harness.leaderboard.logs import Choices
from dcsft_harness.leaderboard.report.table import report
from tests.fixtures.lmms_eval_logs import line, log_folder
from tests.leaderboard.test_leaderboard import ID, OOD_R, rewrite, scores_folder


def samples_file(folder, task=ID):
    return next(folder.glob(f"*/*_samples_{task}.jsonl"))


def refusal(folders, **options):
    with pytest.raises(HarnessError) as caught:
        load(folders, **options)
    assert caught.value.remedy
    return str(caught.value)


def as_logged(task, count):
    """Notes on prompts and items of scores that were made on a log's documents."""
    ids = [f"{task}-{number:03}" for number in range(count)]
    return {"prompt_sha256": json_sha256(["Which digit?"] * count), "items_sha256": json_sha256(ids)}


def accuracies(board):
    summary = summarize(board)
    return {
        (row.name, column.label): entry.accuracy.value
        for row in summary.lines
        for column, entry in zip(summary.columns, row.entries, strict=True)
        if entry is not None
    }


class TestVersionsAndSettings:
    """What logs record about scorers and the checkpoint's generation settings."""

    PROMPT = {"prompt_sha256": json_sha256(["Which digit?"] * 2)}

    def log(self, folder, model="dcsft_hf", arguments="", **more):
        lines = [line(number, 1.0 - number, **more) for number in range(2)]
        given = f"pretrained=org/{folder.name}{arguments}"
        run = {"config": {"model": model, "model_args": given, "limit": None}}
        return log_folder(folder, {ID: lines}, run=run)

    def test_the_scorers_of_the_samples_are_a_condition(self, tmp_path):
        old, first = self.log(tmp_path / "old"), self.log(tmp_path / "first", scorer={"choice": 1})
        assert len(load([old, first]).rows) == 2
        second = self.log(tmp_path / "second", scorer={"choice": 2})
        assert "version of the scorer choice 1 and 2" in refusal([first, second])
        assert "version of the scorer choice 1 and 2" in refusal([old, second])

    def test_our_logs_under_the_checkpoints_settings_are_kept_apart(self, tmp_path):
        neutral = self.log(tmp_path / "neutral", arguments=",generation_config=neutral")
        applied = [
            self.log(tmp_path / name, arguments=",generation_config=checkpoint") for name in ("a", "b")
        ]
        assert len(load([neutral, self.log(tmp_path / "plain")]).rows) == 2
        assert "checkpoint's generation config 'unset' and 'applied'" in refusal([neutral, applied[0]])
        board = load(applied)
        assert len(board.rows) == 2
        assert "and checkpoint's generation setting" in " ".join(board.remarks)

    def counts(self, **applied):
        counts = {"input_tokens": 38, "output_tokens": 2, "generation_from_checkpoint": applied}
        return {"arguments": ",generation_config=checkpoint", "token_counts": [counts]}

    def test_checkpoint_settings_are_a_condition_if_the_log_records_them(self, tmp_path):
        neutral = self.log(tmp_path / "neutral")
        nothing = self.log(tmp_path / "nothing", **self.counts())
        more = self.log(tmp_path / "more", **self.counts(repetition_penalty=1.05))
        same = self.log(tmp_path / "same", **self.counts(repetition_penalty=1.05))
        other = self.log(tmp_path / "other", **self.counts(repetition_penalty=1.2))
        unrecorded = self.log(tmp_path / "unrecorded", arguments=",generation_config=checkpoint")
        for one, two in ((neutral, nothing), (more, same)):
            board = load([one, two])
            assert len(board.rows) == 2 and not any("generation" in one for one in board.remarks)
        assert "setting repetition_penalty 1.05 and 1.2" in refusal([more, other])
        assert "setting repetition_penalty 1.05 and 'unset'" in refusal([more, neutral])
        assert "generation setting" in " ".join(load([more, unrecorded]).remarks)
        path = next(more.rglob("*_samples_*"))
        path.write_text(path.read_text().replace("1.05", "1.3", 1))
        said = refusal([more])
        assert "in one line and" in said and "{'repetition_penalty': 1.3}" in said

    def test_checkpoint_settings_of_lmms_evals_own_models_are_reported_as_unknown(self, tmp_path):
        board = load([self.log(tmp_path / "ours"), self.log(tmp_path / "theirs", model="qwen2_5_vl")])
        assert len(board.rows) == 2
        (said,) = [one for one in board.remarks if "theirs" in one]
        assert "not record the pixel limits and checkpoint's generation config, assumed" in said
        assert not any("generation" in one for one in board.remarks if one != said)


class TestReading:
    def test_one_run_makes_one_row(self, tmp_path):
        lines = [line(n, score, answered=float(n > 0)) for n, score in enumerate([0.0, 1.0, 1.0, 0.0])]
        folder = log_folder(
            tmp_path / "mine", {ID: lines, OOD_R: lines[:2]}, distribution={ID: "id", OOD_R: "ood"}
        )
        board = load([folder])
        assert accuracies(board) == {("mine", ID): 0.5, ("mine", OOD_R): 0.5, ("mine", "OOD mean"): 0.5}
        (row,) = board.rows
        assert row.cells[ID].unanswered == 1
        assert board.tasks[0].conditions["generation argument temperature"] == 0.0

    @pytest.mark.parametrize(
        ("metrics", "said"),
        [
            ([{"acc": None, "length": 4.0}] * 2, "length is 4.0. Scores are fractions"),
            ([{"acc": None, "f1": 0.5, "hit": 1.0}] * 2, "none of its metrics"),
            ([{"acc": {"id": 1}}] * 2, "none of its metrics"),
            ([{"acc": None, "bypass": [["3"]]}] * 2, "digits_r.jsonl --task digits_r`"),
            ([{"acc": None, "wer": 0.5}] * 2, "lower values of wer are better"),
        ],
    )
    def test_a_task_without_a_score_leaves_the_other_tasks_of_its_run(self, tmp_path, metrics, said):
        bad = [line(number, 1.0) | more for number, more in enumerate(metrics)]
        run = {"higher_is_better": {OOD_R: {"wer": False}}}
        folder = log_folder(tmp_path / "mine", {OOD_R: bad, ID: [line(0, 1.0), line(1, 0.0)]}, run=run)
        board = load([folder], choices=Choices({}, {ID: "id"}))
        assert accuracies(board)["mine", ID] == 0.5
        assert [task.name for task in board.tasks] == [ID]
        (one,) = [one for one in board.remarks if "left out" in one]
        assert one.startswith(f"Row mine is without {OOD_R}, which is left out") and said in one
        others = [shutil.copytree(folder, tmp_path / f"other-{number}") for number in range(3)]
        board = load([folder, *others], choices=Choices({}, {ID: "id"}))
        (one,) = [one for one in board.remarks if "left out" in one]  # once for all
        assert one.startswith(f"All 4 rows are without {OOD_R}, which is left out") and said in one
        # Naming a task without a score gives the reason, not "unknown task".
        with pytest.raises(HarnessError, match=said):
            load([folder], choices=Choices({}, {OOD_R: "ood"}))
        other = log_folder(tmp_path / "other", {OOD_R: [line(0, 1.0), line(1, 0.0)]})
        board = load([folder, other], choices=Choices({}, {OOD_R: "ood"}))
        assert [list(row.cells) for row in board.rows] == [[ID], [OOD_R]]
        alone = log_folder(tmp_path / "alone", {OOD_R: bad}, run=run)
        with pytest.raises(HarnessError, match=said):
            load([alone])
        assert load([folder, alone], strict=False).left_out[0].kind == "without a score from 0 to 1"

    def test_the_folder_of_one_model_can_be_given(self, tmp_path):
        folder = log_folder(tmp_path / "mine", {ID: [line(0, 1.0), line(1, 0.0)]})
        assert [row.name for row in load([folder / "org__tiny"]).rows] == ["org__tiny"]

    def test_a_folder_with_an_equals_sign_is_read_as_a_folder(self, tmp_path):
        folder = log_folder(tmp_path / "a=b", {ID: [line(0, 1.0), line(1, 0.0)]})
        assert load([folder]).rows[0].name == "a=b"
        assert named(tmp_path / "nowhere") == (None, tmp_path / "nowhere")

    def test_a_name_may_precede_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        log_folder(tmp_path / "out", {ID: [line(0, 1.0), line(1, 0.0)]})
        scores_folder(tmp_path / "ev", "ev", {OOD_R: [1, 0]})
        board = load([*map(type(tmp_path), ["SFT=out", "SFT-M=ev"])])
        assert [row.name for row in board.rows] == ["SFT", "SFT-M"]

    def test_several_runs_of_one_model_make_one_row(self, tmp_path):
        log_folder(tmp_path / "o", {ID: [line(0, 1.0)]}, date="1")
        log_folder(tmp_path / "o", {OOD_R: [line(0, 0.0)]}, date="2")
        (row,) = load([tmp_path / "o"]).rows
        assert set(row.cells) == {ID, OOD_R}

    def test_models_with_the_same_output_path_make_separate_rows(self, tmp_path):
        log_folder(
            tmp_path / "o",
            {ID: [line(0, 1.0)]},
            date="1",
            model_args="pretrained=a",
            run={"model_name_sanitized": "a"},
        )
        log_folder(
            tmp_path / "o",
            {ID: [line(0, 0.0)]},
            date="2",
            model_args="pretrained=b",
            run={"model_name_sanitized": "b"},
        )
        assert [row.name for row in load([tmp_path / "o"]).rows] == ["a", "b"]

    def test_external_tasks_need_a_single_number_or_a_named_metric(self, tmp_path):
        def other(n, score):
            return {
                "doc_id": n,
                "target": "a",
                "filtered_resps": ["a"],
                "exact": score,
                "f1": score / 2,
                "input": "q",
            }

        folder = log_folder(tmp_path / "o", {"vqa": [other(0, 1.0), other(1, 0.5)]})
        assert "--metric vqa=NAME" in refusal([folder])
        board = load([folder], choices=Choices({"vqa": "f1"}, {"vqa": "ood"}))
        assert accuracies(board)["o", "vqa"] == 0.375
        assert board.tasks[0].distribution == "ood"
        assert "unknown metric of vqa" in refusal([folder], choices=Choices({"vqa": "f"}, {}))
        assert "unknown task 'vqq'" in refusal([folder], choices=Choices({"vqq": "f1", "vqa": "f1"}, {}))

    @pytest.mark.parametrize(("key", "score"), [("hit", 0.5), ("miss", 0.25), ("score", 0.25)])
    def test_a_metric_named_by_score_key_takes_precedence_over_acc(self, tmp_path, key, score):
        lines = [{**line(n, 0.25, cluster=None), "score": 0.75, "hit": 0.5} for n in range(4)]
        folder = log_folder(tmp_path / "o", {"vqa": lines}, run={"configs": {"vqa": {"score_key": key}}})
        assert accuracies(load([folder]))["o", "vqa"] == score

    @pytest.mark.parametrize("named", ["configuration", "choice", "choice beside another key"])
    def test_a_named_metric_may_hold_its_score(self, tmp_path, named):
        """As all of POPE's five metrics do."""
        both = {"accuracy": {"score": 0.5, "id": 1}, "f1": {"score": 1.0, "id": 1}}
        lines = [{**line(n, 0.25, metric="x", cluster=None), **both, "x": "y"} for n in range(4)]
        key = {"configuration": "accuracy", "choice": "score"}.get(named, "other")
        folder = log_folder(tmp_path / "o", {"pope": lines}, run={"configs": {"pope": {"score_key": key}}})
        choices = None if named == "configuration" else Choices({"pope": "accuracy"}, {})
        assert accuracies(load([folder], choices=choices))["o", "pope"] == 0.5

    def test_an_error_rate_is_not_ranked_worst_first(self, tmp_path):
        bare = [line(n, n / 4, cluster=None, metric="wer") for n in range(4)]
        stated = {"higher_is_better": {"asr": {"wer": False, "hit": True}}}
        folder = log_folder(tmp_path / "o", {"asr": bare}, run=stated)
        for choices in (None, Choices({"asr": "wer"}, {})):
            assert "lower values of wer are better" in refusal([folder], choices=choices)
        both = [{**one, "hit": 0.5} for one in bare]
        folder = log_folder(tmp_path / "p", {"asr": both}, run=stated)
        assert accuracies(load([folder], choices=Choices({"asr": "hit"}, {})))["p", "asr"] == 0.5

    def test_rows_with_different_metrics_are_not_compared(self, tmp_path):
        one, other = (
            log_folder(tmp_path / name, {"vqa": [line(n, 0.5, cluster=None, metric=name) for n in range(4)]})
            for name in ("exact", "f1")
        )
        assert "metric 'exact' and 'f1'" in refusal([one, other])
        ours = scores_folder(tmp_path / "s", "s", {"vqa": [1, 0, 1, 0]}, notes={"vqa": {"metric": "f1"}})
        board = load([ours, one], strict=False)
        assert len(board.rows) == 1 and board.left_out

    def test_each_document_is_scored_by_its_own_metric_as_in_evaluate(self, tmp_path):
        """MME's documents have one of two metrics; `dcsft evaluate` records that of the first document."""
        names = ["cognition", "cognition", "perception", "perception"]
        values = [1.0, 0.0, 1.0, 1.0]
        lines = [line(n, values[n], metric=names[n]) for n in (2, 0, 1, 3)]
        figures = {"perception,none": 1.0, "cognition,none": 0.5}
        folder = log_folder(tmp_path / "o", {"mme": lines}, entry=figures)
        notes = {"mme": {**as_logged("mme", 4), "metric": "cognition"}}
        ours = scores_folder(tmp_path / "s", "s", {"mme": values}, notes=notes)
        board = load([ours, folder])
        assert set(accuracies(board).values()) == {0.75}
        assert not any("quotes" in one or "could not be scored" in one for one in summarize(board).remarks)
        table = next(board.results[1].tables()).sort_by("doc_id")
        assert table["score"].to_pylist() == values
        board = load([folder], choices=Choices({"mme": "perception"}, {}))
        assert accuracies(board)["o", "mme"] == 1.0 and board.rows[0].cells["mme"].unscored == 2

    @pytest.mark.parametrize("argument", ["pretrained", "model_version", "model", "lora_path", "peft"])
    def test_one_name_stands_for_one_model_whichever_argument_names_its_weights(self, tmp_path, argument):
        folders = [
            log_folder(tmp_path / task, {task: [line(0, 1.0), line(1, 0.0)]}, model_args=f"{argument}={task}")
            for task in (ID, OOD_R)
        ]
        assert "were not made from the same model" in refusal([type(tmp_path)(f"x={one}") for one in folders])

    @pytest.mark.parametrize(
        ("votes", "shown"),
        [([None, "3", "4", "4"], 2), (["3", None, "4", None], 0), ([None] * 4, None)],
    )
    def test_the_items_table_shows_the_response_with_the_most_votes(self, tmp_path, votes, shown):
        """As in scores: an item without any answer does not count as answered wrongly."""
        scores = [float(vote == "4") for vote in votes]
        texts = [f"text {n}" for n in range(4)]
        more = {"filtered_resps": texts, "extracted": votes, "votes": votes, "scores": scores}
        lines = [line(0, sum(scores) / 4, answered=4 - votes.count(None), **more)]
        (result,) = load([log_folder(tmp_path / "o", {ID: lines})]).results
        for (row,) in (table.to_pylist() for table in result.tables()):
            found = row["response"], row["extracted"], row["n_tokens"]
            assert found == (texts[shown or 0], None if shown is None else votes[shown], None)

    @pytest.mark.parametrize("baseline", ["before", None])
    def test_figures_use_the_metrics_of_the_baseline_or_of_all_rows(self, tmp_path, baseline):
        """One row with greedy results next to K responses must not blank differences and ranks."""

        def drawn(name, share):
            texts = [["3" if (n + at) % 4 < share else "4" for at in range(4)] for n in range(8)]
            judged = [[float(one == "3") for one in some] for some in texts]
            some = [
                line(
                    n,
                    sum(scores) / 4,
                    filtered_resps=texts[n],
                    extracted=texts[n],
                    votes=texts[n],
                    scores=scores,
                )
                for n, scores in enumerate(judged)
            ]
            sides = {ID: "id", OOD_R: "ood"}
            args = f"pretrained=org/{name}"
            return log_folder(
                tmp_path / name, dict.fromkeys(sides, some), model_args=args, distribution=sides
            )

        folders = [drawn("before", 1), drawn("after", 3)]
        greedy = {ID: [line(n, 1.0) for n in range(8)], OOD_R: [line(n, 0.0) for n in range(8)]}
        made = log_folder(
            tmp_path / "greedy",
            greedy,
            model_args="pretrained=org/after",
            distribution={ID: "id", OOD_R: "ood"},
        )
        summary = summarize(load([*folders, type(tmp_path)(f"after={made}")], baseline=baseline))
        assert summary.columns[summary.overall("ood")].label == "OOD mean avg@4"
        assert summary.ranked_by == summary.overall("ood")
        assert {line.name: line.rank.rank for line in summary.lines} == {"before": 2, "after": 1}
        assert baseline is None or summary.lines[1].entries[summary.ranked_by].difference.value == 0.5
        said = "Row before has no OOD mean: it has no one-response results on digits_r, and a mean is never"
        assert any(one.startswith(said) for one in summary.remarks)
        assert not any("not evaluated" in one for one in summary.remarks)

    def test_a_named_metric_is_shown_although_the_responses_have_other_scores(self, tmp_path):
        """The responses' scores are those of `acc`: they must not become avg@K of another metric."""
        more = {"extracted": ["3", "4"], "votes": ["3", "4"], "scores": [1.0, 0.0]}
        lines = [line(n, 0.5, acc_seen={"score": float(n)} if n < 2 else {}, **more) for n in range(3)]
        folder = log_folder(tmp_path / "o", {ID: lines})
        assert accuracies(load([folder]))["o", f"{ID} avg@2"] == 0.5
        (row,) = load([folder], choices=Choices({ID: "acc_seen"}, {})).rows
        assert list(row.cells) == [ID] and row.cells[ID].unscored == 1
        assert row.cells[ID].scores[~np.isnan(row.cells[ID].scores)].mean() == 0.5
        wrong = log_folder(tmp_path / "p", {ID: [line(0, 1.0, **more)]})
        assert "acc is not the mean of the scores beside it" in refusal([wrong])

    def test_choices_of_metric_and_distribution_apply_to_scores_too(self, tmp_path):
        """They also apply to scores folders."""
        scores = scores_folder(tmp_path / "s", "s", {ID: [1, 0]}, notes={ID: {"metric": "acc"}})
        said = refusal([scores], choices=Choices({ID: "answered"}, {}))
        assert f"--metric {ID}=answered: {scores} holds scores by acc alone" in said
        older = scores_folder(tmp_path / "older", "older", {ID: [1, 0]})  # which do not record it
        assert accuracies(load([older], choices=Choices({ID: "acc"}, {})))["older", ID] == 0.5
        assert load([scores], choices=Choices({ID: "acc"}, {})).tasks[0].distribution == "id"
        assert load([scores], choices=Choices({}, {ID: "ood"})).tasks[0].distribution == "ood"

    def test_unscored_samples_stay_unscored(self, tmp_path):
        lines = [line(0, 1.0), line(1, None), {**line(2, 1.0), "acc": {"cluster": "2"}}]
        cell = load([log_folder(tmp_path / "o", {ID: lines})]).rows[0].cells[ID]
        assert cell.unscored == 2


class TestMatching:
    def test_two_logs_match_by_document_prompt_and_gold(self, tmp_path):
        a = log_folder(tmp_path / "a", {ID: [line(n, 1.0) for n in range(4)]})
        b = log_folder(tmp_path / "b", {ID: [line(n, float(n > 1)) for n in reversed(range(4))]})
        summary = summarize(load([a, b], "a"))
        assert summary.lines[1].entries[0].difference.value == -0.5
        c = log_folder(tmp_path / "c", {ID: [line(n, 1.0, target="4") for n in range(4)]})
        assert "item set" in refusal([a, c])

    @pytest.mark.parametrize("log_first", [False, True])
    @pytest.mark.parametrize(
        "written",
        [
            {},
            # Training teaches another text than the gold; the suite's tasks log both.
            {"target": "1 + 2 = 3", "gold": "3", "scorer": {"math": 1}},
        ],
    )
    def test_a_log_adopts_the_content_ids_of_scores(self, tmp_path, log_first, written):
        prompts = json_sha256(["Which digit?"] * 4)
        ids = [f"digits-{n:03}" for n in range(4)]
        said = {ID: {"prompt_sha256": prompts, "items_sha256": json_sha256(ids)}}
        scores = scores_folder(
            tmp_path / "s",
            "s",
            {ID: [1, 0, 1, 1]},
            notes=said,
            clusters={ID: {n: str(n) for n in range(4)}},
            backwards=True,
        )
        lines = [line(n, float(n == 1), **written) for n in range(4)]
        log = log_folder(tmp_path / "log", {ID: lines}, distribution={ID: "id"})
        board = load([log, scores] if log_first else [scores, log], "log" if log_first else "s")
        assert list(board.tasks[0].item_ids) == ids
        # By document the log is right only on 1, where the scores are wrong.
        assert board.row("log").cells[ID].scores.tolist() == [0, 1, 0, 0]
        assert "does not record the pixel limits" in markdown(board)
        (found,) = [result for result in board.results if result.name == "log"]
        assert set(found.tasks[ID].renamed.values()) == set(ids)

    def test_rows_share_equal_item_ids_in_memory(self, tmp_path):
        logs = [log_folder(tmp_path / n, {ID: [line(i, 1.0) for i in range(4)]}) for n in "abc"]
        parts = [result.tasks[ID] for result in load(logs).results]
        assert len({id(part.item_ids) for part in parts}) == len({id(part.clusters) for part in parts}) == 1
        scores = [scores_folder(tmp_path / n, n, {ID: [1, 0]}, backwards=n == "e") for n in "def"]
        parts = [result.tasks[ID] for result in load(scores).results]
        assert len({id(part.item_ids) for part in parts}) == 1

    def test_a_board_of_logs_keeps_prompts_and_golds_once(self, tmp_path):
        """With hundreds of logs they would fill the memory."""
        folders = [
            log_folder(tmp_path / str(n), {ID: [line(0, 1.0), line(1, 0.0)]}, model_args=f"pretrained={n}")
            for n in range(5)
        ]
        gc.collect()
        before = sum(isinstance(one, Documents) for one in gc.get_objects())
        board = load(folders)
        gc.collect()
        assert len(board.rows) == 5
        assert sum(isinstance(one, Documents) for one in gc.get_objects()) == before + 1

    def test_different_golds_or_prompts_do_not_match(self, tmp_path):
        ids = [f"digits-{n:03}" for n in range(2)]
        said = {ID: {"prompt_sha256": json_sha256(["p", "p"]), "items_sha256": json_sha256(ids)}}
        scores = scores_folder(tmp_path / "s", "s", {ID: [1, 0]}, notes=said)
        other = log_folder(
            tmp_path / "o", {ID: [line(0, 1.0), line(1, 1.0, target="4")]}, distribution={ID: "id"}
        )
        assert "prompt hash" in refusal([scores, other])
        asked = log_folder(tmp_path / "q", {ID: [line(n, 1.0) for n in range(2)]}, distribution={ID: "id"})
        assert "prompt hash" in refusal([scores, asked])


class TestBadLogs:
    def lines(self):
        return [line(n, float(n % 2)) for n in range(4)]

    def test_a_truncated_line(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()})
        path = samples_file(folder)
        path.write_bytes(path.read_bytes()[:-40])
        message = refusal([folder])
        assert f"{path}, line 4 is truncated or damaged" in message

    def test_missing_lines(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()})
        path = samples_file(folder)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        assert f"{path} is truncated: it has 3 of 4 documents" in refusal([folder])
        path.write_text("")
        assert "it has 0 of 4" in refusal([folder])

    @pytest.mark.parametrize(("limit", "effective"), [(None, 8), (6, 6)])
    def test_a_run_with_an_offset_is_complete(self, tmp_path, limit, effective):
        """lmms-eval's count does not subtract --offset."""
        config = {"model": "m", "model_args": "", "limit": limit, "offset": 4}
        counted = {"n-samples": {ID: {"original": 8, "effective": effective}}, "config": config}
        lines = [line(n, float(n % 2)) for n in range(4, 8)]
        assert load([log_folder(tmp_path / "o", {ID: lines}, run=counted)]).rows[0].cells[ID].scores.size == 4
        short = log_folder(tmp_path / "p", {ID: lines[:-1]}, run=counted)
        assert "it has 3 of 4 documents" in refusal([short])

    def test_a_task_with_several_filter_lists_leaves_the_other_tasks_of_its_run(self, tmp_path):
        """lmms-eval logs each document once per list."""
        filters = [{"name": "strict", "filter": []}, {"name": "loose", "filter": []}]
        run = {"configs": {"gsm8k": {"filter_list": filters}, ID: {"filter_list": filters[:1]}}}
        folder = log_folder(tmp_path / "o", {ID: self.lines(), "gsm8k": self.lines() * 2}, run=run)
        path = next(folder.glob("*/*_results.json"))
        path.write_text(path.read_text().replace('"effective": 8', '"effective": 4'))
        board = load([folder])
        assert [task.name for task in board.tasks] == [ID]
        (said,) = [one for one in board.remarks if "gsm8k" in one]
        assert "its task has 2 lists of filters, and lmms-eval logs each document once for each" in said

    def test_a_repeated_document(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: [line(0, 1.0), line(1, 1.0), line(0, 1.0)]})
        assert "lines 1 and 3 are both of document 0" in refusal([folder])

    def test_a_result_without_samples(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()})
        samples_file(folder).unlink()
        message = refusal([folder])
        assert "digits without samples" in message and "--log_samples" in message

    def test_samples_without_a_result(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()})
        next(folder.glob("*/*_results.json")).unlink()
        assert "has no results file of lmms-eval beside it" in refusal([folder])

    def test_samples_of_a_task_missing_in_the_results(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()})
        path = samples_file(folder)
        path.with_name(path.name.replace(ID, "other")).write_text(path.read_text())
        assert "has no task 'other'" in refusal([folder])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 58.3, -1.0, 100.0])
    def test_a_score_that_is_not_a_fraction(self, tmp_path, bad):
        folder = log_folder(tmp_path / "o", {ID: [*self.lines()[:-1], line(3, bad)]})
        message = refusal([folder])
        assert f"{samples_file(folder)}, line 4: acc is {bad}" in message and "not percent" in message

    @pytest.mark.parametrize("key", ["score", "hit"])
    def test_a_score_that_is_not_a_number(self, tmp_path, key):
        lines = [line(n, 1.0) | {"acc": {key: score}} for n, score in enumerate(["58.3%", 1.0])]
        folder = log_folder(tmp_path / "o", {ID: lines}, run={"configs": {ID: {"score_key": key}}})
        assert f"line 1: acc is {{'{key}': '58.3%'}}, not a number" in refusal([folder])

    def test_a_damaged_results_file(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()})
        path = next(folder.glob("*/*_results.json"))
        path.write_text(path.read_text()[:100])
        assert f"{path} is truncated or damaged" in refusal([folder])
        path.write_text("[]")
        assert f"{path} holds no results" in refusal([folder])

    def test_a_reported_mean_that_contradicts_the_samples_unless_in_percent(self, tmp_path):
        folder = log_folder(tmp_path / "o", {ID: self.lines()}, entry={"acc,none": 0.75})
        assert "quotes acc 0.7500 for digits; its samples, which this board uses, give 0.5000" in markdown(
            load([folder])
        ).replace("\\", "")
        same = log_folder(tmp_path / "p", {ID: self.lines()}, entry={"acc,none": 50.0})
        assert "quotes" not in markdown(load([same]))

    @pytest.mark.parametrize(("limit", "fits"), [(-1.0, True), (-1, True), (4.0, False), (0.5, False)])
    def test_a_limit_of_minus_one_means_no_limit(self, tmp_path, limit, fits):
        config = {"config": {"model": "dcsft_hf", "model_args": "pretrained=org/tiny", "limit": limit}}
        folders = [
            log_folder(tmp_path / name, {ID: self.lines()}, run=run)
            for name, run in (("a", None), ("b", config))
        ]
        assert len(load(folders, strict=False).rows) == 1 + fits

    @pytest.mark.parametrize(
        ("share", "total", "limit", "fits"),
        [
            (0.5, 8, 4, True),
            (0.45, 8, 4.0, True),
            (0.5, 4, None, True),
            (0.5, 8, None, False),
            (0.5, 8, 5, False),
        ],
    )
    def test_a_share_of_the_documents_is_a_number_of_them(self, tmp_path, share, total, limit, fits):
        """lmms-eval records the share, and the number that it used: here 4 of `total`."""
        folders = [
            log_folder(
                tmp_path / name,
                {ID: self.lines()},
                run={
                    "config": {"model": "dcsft_hf", "model_args": "pretrained=org/tiny", "limit": given},
                    "n-samples": {ID: {"original": total, "effective": 4}},
                },
            )
            for name, given in (("a", share), ("b", limit))
        ]
        assert len(load(folders, strict=False).rows) == 1 + fits

    def test_different_conditions(self, tmp_path):
        a = log_folder(
            tmp_path / "a", {ID: self.lines()}, run={"config": {"model": "m", "model_args": "", "limit": 4.0}}
        )
        b = log_folder(tmp_path / "b", {ID: self.lines()}, run={"versions": {ID: 2}})
        c = log_folder(tmp_path / "c", {ID: self.lines()})
        d = log_folder(
            tmp_path / "d", {ID: self.lines()}, model_args="pretrained=x,max_pixels=1000,min_pixels=4"
        )
        e = log_folder(
            tmp_path / "e", {ID: self.lines()}, model_args="pretrained=x,max_pixels=2000,min_pixels=4"
        )
        assert "limit 4 and None" in refusal([a, c])
        assert "task version 2 and 1" in refusal([b, c])
        assert "pixel limit max_pixels 1000 and 2000" in refusal([d, e])
        load([c, d])


class TestBadFoldersAmongGoodOnes:
    @pytest.fixture
    def good(self, tmp_path):
        return [scores_folder(tmp_path / n, n, {ID: [1, 0, 1]}) for n in ("a", "b")]

    def test_an_unreadable_one_is_left_out_and_reported(self, tmp_path, good):
        bad = scores_folder(tmp_path / "bad", "bad", {ID: [1, math.nan, 1]})
        board = load([good[0], bad, good[1]], "a", strict=False)
        assert [row.name for row in board.rows] == ["a", "b"]
        (left,) = board.left_out
        assert left.folder == bad and "has the score nan" in left.reason
        with pytest.raises(HarnessError, match="has the score nan"):
            load([good[0], bad, good[1]], "a")

    def test_the_reason_names_no_folder_even_with_spaces(self, tmp_path, good):
        bad = scores_folder(tmp_path / "my name" / "bad", "bad", {ID: [1, 0, 1]})
        (bad / "scores.parquet").unlink()
        (left,) = summarize(load([*good, bad], "a", strict=False)).left_out
        assert "bad" in left.reason
        assert all(part not in left.reason for part in ("my name", "name/", str(tmp_path)))

    def test_without_any_readable_folder_there_is_an_error(self, tmp_path):
        bad = scores_folder(tmp_path / "bad", "bad", {ID: [1, math.nan, 1]})
        with pytest.raises(HarnessError, match="has the score nan"):
            load([bad], strict=False)

    def test_an_incomparable_one_is_left_out_or_shown_apart_but_never_averaged(self, tmp_path, good):
        other = scores_folder(tmp_path / "o", "o", {ID: [1, 1, 1], OOD_R: [1, 1]}, notes={ID: {"version": 2}})
        also = scores_folder(tmp_path / "p", "p", {ID: [0, 0, 0]}, notes={ID: {"version": 2}})
        board = load([*good, other, also], strict=False)
        assert [left.folder for left in board.left_out] == [other, also]
        assert "task version 1 and 2" in board.left_out[0].reason
        board = load([*good, other, also], apart=True)
        assert [row.name for row in board.rows] == ["a", "b"] and not board.left_out
        (apart,) = board.apart
        assert [row.name for row in apart.board.rows] == ["o", "p"] and "task version 1 and 2" in apart.reason
        summary = summarize(board)
        assert [column.label for column in summary.columns] == [ID]
        assert summary.apart[0].summary.lines[0].entries[0].accuracy.value == 1.0

    def test_the_first_of_two_results_for_one_cell_is_kept(self, tmp_path, good):
        twin = scores_folder(tmp_path / "twin", "a", {ID: [1, 1, 1]})
        board = load([*good, twin], strict=False)
        assert "both named 'a' and both have digits" in board.left_out[0].reason
        assert board.row("a").cells[ID].scores.tolist() == [1, 0, 1]

    def test_an_unusable_baseline_is_an_error_with_its_reason(self, tmp_path, good):
        # The baseline's second folder is of another model: the row stays, without it.
        bad = scores_folder(tmp_path / "bad", "base", {ID: [1, math.nan, 1]})
        with pytest.raises(HarnessError, match="unknown row 'base'"):
            load([*good, bad], "base", strict=False)

    def test_the_baseline_sets_the_conditions(self, tmp_path, good):
        base = scores_folder(tmp_path / "base", "base", {ID: [1, 1, 1]}, notes={ID: {"version": 2}})
        board = load([*good, base], "base", strict=False)
        assert [row.name for row in board.rows] == ["base"]
        assert len(board.left_out) == 2

    @pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0)])
    def test_a_log_as_the_baseline_sets_the_conditions_in_any_order(self, tmp_path, order):
        base = log_folder(tmp_path / "base", {ID: [line(n, n % 2.0) for n in range(4)]})
        others = [
            scores_folder(
                tmp_path / name,
                name,
                {ID: [1.0] * count},
                notes={ID: {**as_logged(ID, count), "limit": limit, "distribution": None}},
            )
            for name, count, limit in (("few", 2, 2), ("full", 4, None))
        ]
        given = [base, *others]
        board = load([given[at] for at in order], "base", strict=False)
        assert [row.name for row in board.rows] == ["base", "full"]
        assert [left.folder for left in board.left_out] == [others[0]]
        assert board.results[0].tasks[ID].item_ids[0] == f"{ID}-000"
        board = load([base, others[0]], "base", strict=False)  # nothing fits it
        assert [row.name for row in board.rows] == ["base"]

    def test_seeds_form_a_group_that_can_be_the_baseline(self, tmp_path):
        folders = [
            scores_folder(tmp_path / "1", "SFT (seed 1)", {ID: [1, 0, 1, 1], OOD_R: [1, 0, 0, 1]}),
            scores_folder(tmp_path / "2", "SFT (seed 2)", {ID: [1, 1, 1, 0], OOD_R: [1, 1, 0, 0]}),
            scores_folder(tmp_path / "c", "cold", {ID: [0, 0, 1, 0], OOD_R: [0, 0, 0, 1]}),
        ]
        rewrite(folders[1], config={"name": "other", "group": "SFT"})
        summary = summarize(load(folders, "SFT"))
        assert [(line.name, line.is_group, line.group) for line in summary.lines] == [
            ("SFT", True, None),
            ("SFT (seed 1)", False, "SFT"),
            ("other", False, "SFT"),
            ("cold", False, None),
        ]
        group = summary.lines[0]
        assert group.is_baseline and group.entries[0].accuracy.value == 0.75
        assert group.entries[0].deviation == 0.0 and group.entries[0].n == 4
        assert {(one.row, one.other) for one in summary.tested("baseline")} == {("cold", "SFT")}
        assert summary.lines[3].rank.of == 2 and summary.lines[1].rank is None
        assert json.dumps(markdown(summary))

    def test_a_single_seed_can_be_the_baseline_by_its_groups_name(self, tmp_path):
        folders = [
            scores_folder(tmp_path / "c", "cold (seed 0)", {ID: [0, 0, 1, 0]}),
            scores_folder(tmp_path / "1", "SFT (seed 0)", {ID: [1, 0, 1, 1]}),
        ]
        summary = summarize(load(folders, "SFT"))
        assert [(line.name, line.is_baseline) for line in summary.lines] == [
            ("SFT (seed 0)", True),
            ("cold (seed 0)", False),
        ]
        assert summary.lines[1].entries[0].difference.value == -0.5
        assert summary.tested("baseline")
        # One task gives no retention, no front and no worst other task.
        standing = report(summary).partition("## Standing")[2].partition("\n## ")[0]
        header = next(line for line in standing.splitlines() if line.startswith("|"))
        assert [cell.strip() for cell in header.split("|")[1:-1]] == ["", f"rank by {ID}".replace("_", "\\_")]
        assert "Pareto" not in standing and "Rank with its 95 % interval" in standing

    def test_a_group_as_the_baseline_sets_the_conditions(self, tmp_path, good):
        base = scores_folder(
            tmp_path / "seeded", "base (seed 0)", {ID: [1, 1, 1]}, notes={ID: {"version": 2}}
        )
        board = load([*good, base], "base", strict=False)
        assert [row.name for row in board.rows] == ["base (seed 0)"] and len(board.left_out) == 2


class TestOldFolders:
    """Results of weeks of work, as they accumulate on a disk."""

    def run(self, *arguments):
        return main(["leaderboard", "build", *map(str, arguments), "--no-page", "--no-plots"])

    def logged(self, folder, date, scores, model_args, **more):
        tasks = {ID: [line(n, float(score)) for n, score in enumerate(scores)]}
        return log_folder(folder, tasks, date=date, model_args=model_args, **more)

    def names(self, *folders, **more):
        return [row.name for row in load([*map(type(folders[0]), folders)], **more).rows]

    def test_runs_with_the_same_output_path_are_rows_by_model_and_adapter(self, tmp_path):
        self.logged(tmp_path / "out", "20261101_100000", [1, 0], "pretrained=Qwen/VL-3B,batch_size=4")
        self.logged(tmp_path / "out", "20261102_100000", [1, 1], "pretrained=Qwen/VL-3B,adapter=/x/sft")
        self.logged(tmp_path / "out", "20261103_100000", [0, 0], "pretrained=/runs/sft/checkpoint-90")
        board = load([tmp_path / "out"])
        found = {row.name: row.cells[ID].scores.mean() for row in board.rows}
        assert found == {"VL-3B": 0.5, "VL-3B + sft": 1.0, "sft/checkpoint-90": 0.0} and not board.left_out

    def test_equal_names_are_distinguished_by_arguments_then_by_time(self, tmp_path):
        for date, pixels in (("20261101_100000", 10), ("20261102_100000", 20)):
            arguments = f"pretrained=VL,max_pixels={pixels}"
            self.logged(tmp_path / "out", date, [1, 0], arguments)
        assert self.names(tmp_path / "out", strict=False, apart=True) == ["VL (max_pixels=10)"]
        for date, drawn in (("20261101_100000", ""), ("20261102_100000", {"do_sample": True, "top_k": 50})):
            config = {"model": "tiny", "model_args": "pretrained=VL", "gen_kwargs": drawn}
            self.logged(tmp_path / "drawn", date, [1, 0], "", run={"config": config})
        assert self.names(tmp_path / "drawn") == ["VL", "VL (do_sample=True, top_k=50)"]
        for date in ("20261101_100000", "20261102_100000"):
            self.logged(tmp_path / "same", date, [1, 0], "pretrained=VL,device=cuda:" + date[7])
        assert self.names(tmp_path / "same") == ["VL (2026-11-01 10:00:00)", "VL (2026-11-02 10:00:00)"]

    def test_a_parent_folder_is_searched_and_its_rows_sort_naturally(self, tmp_path):
        for step in (100, 90, 10):
            self.logged(
                tmp_path / "all" / f"out-{step}", "20261101_100000", [1, 0], f"pretrained=a/step-{step}"
            )
        for step in (20, 9):
            scores_folder(tmp_path / "all" / "ours" / f"tuned-{step}", f"tuned-{step}", {OOD_R: [1, 0]})
        (tmp_path / "all" / ".cache").mkdir()
        self.logged(tmp_path / "all" / ".cache" / "x", "1", [1, 0], "pretrained=hidden")
        found = self.names(tmp_path / "all")
        assert found == ["a/step-10", "a/step-90", "a/step-100", "tuned-9", "tuned-20"]
        assert self.names(*sorted((tmp_path / "all").glob("out-*"))) == ["out-10", "out-90", "out-100"]

    def test_linked_folders_are_searched_once(self, tmp_path):
        scores_folder(tmp_path / "all/two", "two", {ID: [1, 0]})
        (tmp_path / "all/one").symlink_to(scores_folder(tmp_path / "elsewhere/s", "one", {ID: [1, 0]}).parent)
        (tmp_path / "all/again").symlink_to(tmp_path / "all/two")
        (tmp_path / "all/up").symlink_to(tmp_path / "all")
        assert sorted(self.names(tmp_path / "all")) == ["one", "two"]
        assert find(tmp_path / "all") == [tmp_path / "all/one/s", tmp_path / "all/two"]

    def test_a_folder_given_together_with_its_parent_is_one_row(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("first", "second"):
            self.logged(tmp_path / "all" / name, "20261101_100000", [1, 0], f"pretrained={name}-model")
        kind = type(tmp_path)
        found = [row.name for row in load([kind("all"), kind("base=all/first")], "base").rows]
        assert found == ["base", "second-model"]

    def test_scores_with_equal_names_are_distinguished_by_folder(self, tmp_path):
        for name, scores in (("a", [1, 0]), ("b", [0, 0])):
            scores_folder(tmp_path / "all" / name / "scores", "scores", {ID: scores})
        found = load([tmp_path / "all"]).rows
        assert len({row.name for row in found}) == 2 and all("scores" in row.name for row in found)

    @pytest.mark.parametrize(
        "run", ["20261102_100000", "org__tiny/20261102_100000", "org__tiny/20261102_100000_results.json"]
    )
    def test_one_run_can_be_named(self, tmp_path, monkeypatch, run):
        monkeypatch.chdir(tmp_path)
        for date, scores in (("20261101_100000", [1, 0]), ("20261102_100000", [1, 1])):
            self.logged(tmp_path / "out", date, scores, "pretrained=VL")
        board = load([type(tmp_path)(f"second=out/{run}"), type(tmp_path)("out")])
        assert {row.name: row.cells[ID].scores.mean() for row in board.rows} == {"second": 1.0, "out": 0.5}
        assert "names 2 rows: out/org__tiny/20261101_100000, " in refusal([type(tmp_path)("x=out")])

    def test_names_can_come_from_a_file(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        self.logged(tmp_path / "out", "20261101_100000", [1, 0], "pretrained=VL")
        self.logged(tmp_path / "out", "20261102_100000", [1, 1], "pretrained=VL,adapter=sft")
        file = tmp_path / "names.yaml"
        file.write_text("VL: base\nout/org__tiny/20261102_100000: SFT (seed 1)\n")
        assert self.run("out", "--names", file, "--baseline", "base", "--output", "board") == 0
        assert manifest.read(tmp_path / "board").notes["rows"] == ["base", "SFT (seed 1)"]
        file.write_text("VL: basis\n")
        assert self.run("out", "--names", file, "--baseline", "base", "--output", "board") == 1
        assert "of another run: names: " in capsys.readouterr().err
        file.write_text("VM: base\n")
        assert self.run("out", "--names", file, "--output", "other") == 1
        assert "unknown row or run of --names 'VM'" in capsys.readouterr().err

    def test_refusals_are_grouped(self, tmp_path, capsys):
        for n in range(9):
            self.logged(tmp_path / "all" / f"good-{n}", "1", [1, 0], f"pretrained=good-{n}")
        for n in range(27):
            tasks = {ID: [line(i, 1.0, prompt="Another question?") for i in range(2)]}
            log_folder(tmp_path / "all" / f"p-{n}", tasks, model_args=f"pretrained=p-{n}")
        for n in range(4):
            folder = self.logged(tmp_path / "all" / f"s-{n}", "1", [1, 0], f"pretrained=s-{n}")
            samples_file(folder).unlink()
        assert self.run(tmp_path / "all", "--output", tmp_path / "board") == 0
        said = capsys.readouterr().err
        assert "31 of 40 left out: 27 other prompts, 4 without samples" in said
        assert said.count("such as") == 2 and len(said.splitlines()) < 8
        assert (tmp_path / "board" / "leaderboard.md").read_text().count("without samples") == 4

    def test_nothing_to_compare_is_an_error(self, tmp_path, capsys):
        self.logged(tmp_path / "all" / "a", "1", [1, 0], "pretrained=a")
        log_folder(tmp_path / "all" / "b", {ID: [line(0, 1.0, prompt="Other?")]}, model_args="pretrained=b")
        assert self.run(tmp_path / "all", "--output", tmp_path / "board") == 1
        said = capsys.readouterr().err
        assert "nothing could be compared: 1 of 2 left out: 1 other" in said
        assert not (tmp_path / "board").exists()
        assert self.run(tmp_path / "all", "--apart", "--output", tmp_path / "board") == 0
        assert "1 row, 1 in tables of their own" in capsys.readouterr().err

    def test_samples_of_several_tasks_without_results_are_one_run(self, tmp_path):
        tasks = {task: [line(0, 1), line(1, 0)] for task in (ID, OOD_R)}
        for date in ("20261101_100000", "20261102_100000"):
            log_folder(tmp_path / "out", tasks, date=date, model_args=f"pretrained=m{date[7]}")
        next((tmp_path / "out").rglob("20261101*_results.json")).unlink()
        board = load([tmp_path / "out"], strict=False)
        assert len(board.rows) == 1 and [one.kind for one in board.left_out] == ["without a results file"]

    @pytest.mark.parametrize("name", ["results.json", "results_2024-07-22T10-45-00.123456.json"])
    def test_results_in_the_layout_of_other_programs_are_named(self, tmp_path, name, capsys):
        """Of lmms-eval until 0.2, and of lm-eval."""
        for date, model in (("20261101_100000", "a"), ("20261102_100000", "c")):
            self.logged(tmp_path / "out", date, [1, 0], f"pretrained={model}")
        folder = self.logged(tmp_path / "old", "20241101_100000", [1, 0], "pretrained=b")
        (old,) = folder.rglob("*_results.json")
        old.rename(old.with_name(name))
        for samples in old.parent.glob("*.jsonl"):
            samples.unlink()
        (tmp_path / "old" / "results.json").write_text('{"accuracy": 1}')  # of another program
        board = load([tmp_path], strict=False)
        assert [one.kind for one in board.left_out] == ["in another layout"]
        assert self.run(tmp_path, "--output", tmp_path / "board") == 0
        assert "1 of 3 left out: 1 in another layout" in capsys.readouterr().err
        assert self.run(tmp_path / "old", "--output", tmp_path / "none") == 1
        assert "of an old lmms-eval, whose samples are not read. Run the eval" in capsys.readouterr().err

    def test_a_new_run_in_a_folder_makes_the_board_outdated(self, tmp_path, capsys):
        self.logged(tmp_path / "out", "20261101_100000", [1, 0], "pretrained=a")
        again = (tmp_path / "out", "--output", tmp_path / "board")
        assert self.run(*again) == 0 and self.run(*again) == 0
        assert "already done" in capsys.readouterr().err
        self.logged(tmp_path / "out", "20261102_100000", [1, 0], "pretrained=b")
        assert self.run(*again) == 1
        assert "already holds a leaderboard, of another run: runs: none -> 2" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["without samples", "without results", "damaged", "scores", "limit"])
    def test_repairing_a_left_out_result_makes_the_board_outdated(self, tmp_path, capsys, kind):
        for name in ("a", "b", "c"):
            self.logged(tmp_path / "out" / name, "20261101_100000", [1, 0], f"pretrained={name}")
        given = [tmp_path / "out" / name for name in ("a", "b", "c")]
        if kind == "scores":
            given[2] = scores_folder(tmp_path / "out/d", "d", {ID: [1, math.nan]})
        place = next(
            given[2].rglob(
                {"scores": "manifest.json", "without samples": "*_samples_*"}.get(kind, "*_results.json")
            )
        )
        whole = place.read_bytes()
        if kind.startswith("without"):
            place.unlink()
        elif kind == "damaged":
            place.write_bytes(whole[:-9])
        elif kind == "limit":
            place.write_bytes(whole.replace(b'"limit": null', b'"limit": 1000'))
        again = (*given, "--output", tmp_path / "board")
        assert self.run(*again) == 0 and self.run(*again) == 0
        said = capsys.readouterr().err
        assert "1 left out" in said and "already done" in said
        if kind == "scores":
            shutil.rmtree(given[2])
            scores_folder(given[2], "d", {ID: [1, 0]})
        else:
            place.write_bytes(whole)
        assert self.run(*again) == 1
        said = capsys.readouterr().err
        assert "already holds a leaderboard, of another run: " in said
        assert ("incomplete: " if kind.startswith("without") else "left out 1: ") in said

    def test_equal_remarks_are_merged(self, tmp_path):
        for n in range(36):
            self.logged(tmp_path / "all" / f"step-{n}", "1", [1, 0], f"pretrained=run/step-{n}")
        text = markdown(load([tmp_path / "all"]))
        (said,) = [row for row in text.splitlines() if "do not record" in row]
        assert said.startswith("- All 36 rows: the logs do not record")
        scores_folder(tmp_path / "one", "part", {OOD_R: [1, 0]})
        text = markdown(load([tmp_path / "all", tmp_path / "one"]))
        (said,) = [row for row in text.splitlines() if "do not record" in row]
        assert said.startswith("- 36 rows (run/step-0, run/step-1, ... run/step-35): the logs do not")

    def test_differences_of_tasks_without_a_distribution_are_in_the_table(self, tmp_path):
        for name, scores in (("base", [1, 0, 0]), ("tuned", [1, 1, 1])):
            self.logged(tmp_path / name, "1", scores, f"pretrained={name}")
        text = markdown(load([tmp_path / "base", tmp_path / "tuned"], "base"))
        assert f" {ID} vs base |" in text and "+66.67" in text
