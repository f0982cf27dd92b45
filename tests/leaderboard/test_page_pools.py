"""Rollouts on the leaderboard's page: the responses of each item, and its difficulty."""

import pytest

from dcsft_harness import stages
from dcsft_harness.curation.labels import LABELS, label
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build
from dcsft_harness.records import Label, Rollout, read_table
from tests.fixtures.page import rollouts
from tests.fixtures.page_unpacking import content, numbers, scores, texts
from tests.leaderboard.test_leaderboard import ID, scores_folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    drawn = rollouts(folder / "rollouts", count=6)
    made = [scores_folder(folder / "a", "a", {ID: [1.0, 0.0]})]
    options = Options(plots=False, items=False, samples=4, rollouts=[drawn])
    build(made, folder / "board", options=options)
    label(drawn, folder / "labels")
    data = folder / "board/page/data"
    read = [content((data / f"{name}.js").read_text()) for name in ("board", "p0items", "p0r0")]
    return folder, *read


def test_responses_belong_to_their_items(shown):
    folder, board, items, answers = shown
    table = read_table(folder / "rollouts/rollouts.parquet", Rollout).to_pylist()
    starts, said, extracted = (
        numbers(items["starts"]),
        texts(answers["responses"]),
        texts(answers["extracted"]),
    )
    judged = scores(answers["scores"], 0, starts[-1])
    assert items["ids"] == sorted({row["item_id"] for row in table})[:4]
    for n, item in enumerate(items["ids"]):
        own = sorted((row for row in table if row["item_id"] == item), key=lambda row: row["sample_index"])
        at = slice(starts[n], starts[n + 1])
        assert said[at] == [row["response"] for row in own]
        assert extracted[at] == [row["extracted"] for row in own]
        assert list(judged[at]) == [row["score"] for row in own]
        assert (texts(items["prompts"])[n], texts(items["answers"])[n]) == (
            own[0]["prompt"],
            own[0]["answer"],
        )
    assert board["pools"] == [
        {"name": "rollouts", "items": 4, "of": 6, "responses": 16, "task": "dcsft_digits_ground_pool"}
    ]


def test_difficulties_come_from_labels(shown):
    folder, _, items, _ = shown
    table = read_table(folder / "labels" / LABELS, Label).to_pylist()
    known = {row["item_id"]: row["difficulty"] for row in table}
    found = [("easy", "medium", "hard")[n] for n in numbers(items["difficulties"])]
    assert found == [known[item] for item in items["ids"]] and len(set(found)) > 1


def test_images_are_stored_and_paths_are_not(shown):
    folder, _, items, _ = shown
    for ((file, width, height),) in items["pictures"]:
        assert (folder / "board/page/pictures" / file).is_file() and (width, height) == (84, 84)
    assert str(folder) not in (folder / "board/page/data/board.js").read_text()


def test_rollouts_need_a_number_of_items(tmp_path):
    with pytest.raises(HarnessError, match="--samples N"):
        stages.STAGES["leaderboard build"](tmp_path / "board", results=[tmp_path], rollouts=[tmp_path])
