"""A leaderboard with its page, of real items of the digits suite: what tests of the page look at."""

import json

import numpy as np

from dcsft_harness import lmms
from dcsft_harness.artifacts import manifest
from dcsft_harness.leaderboard import Options, build
from dcsft_harness.records import Label, Score, write_table

CLASSIFY, SHIFTED, GROUND = "dcsft_digits", "dcsft_digits_r", "dcsft_digits_ground"
POOL = "dcsft_digits_ground_pool"
DISTRIBUTION = {CLASSIFY: "id", SHIFTED: "ood", GROUND: "id"}
ITEMS = 30
SHARES = {"base": 0.5, "SFT": 0.7, "SFT-EM": 0.9}

HOSTILE = [
    "<script>window.ran = 1; alert(1)</script>",
    '"><img src=x onerror="window.ran = 2; alert(2)">',
    "javascript:alert(3)",
    "<svg onload='window.ran = 4; alert(4)'><a href='javascript:alert(4)'>x</a></svg>",
    "\u202egnihtemos\u2066 \u200fרשע\u2069",
    "{{ 7*7 }} ${7*7} <%= 7*7 %> {% raw %}",
    "<!-- --!> <!--<script> ]]> </style></title></textarea>",
    "one\u2028two\u2029three\x00four\x7f",
    "=HYPERLINK(\"http://example.invalid/\",\"x\")",
    "</script><script>window.ran = 5; alert(5)</script>",
    "../../../../etc/passwd",
    "__proto__",
    "constructor",
    "<iframe srcdoc='<script>parent.ran = 6</script>'></iframe><base href='http://example.invalid/'>",
    "<link rel=stylesheet href=http://example.invalid/x.css><meta http-equiv=refresh content='0;url=http://example.invalid/'>",
]  # fmt: skip


def items(tasks, count=ITEMS):
    """Task -> its first items."""
    opened = lmms.open_tasks(list(tasks))
    return {name: [lmms.describe(opened[name], at)[0] for at in range(count)] for name in tasks}


def folder_of(folder, name, known, answer):
    """A scores folder of real items: `answer(item)` gives (score, extracted, response)."""
    rows, told = [], {}
    for task, some in known.items():
        made = [Score(task, i.item_id, i.doc_id, *answer(i), i.answer, 7, None) for i in some]
        rows += made
        scored = [row.score for row in made if row.score is not None]
        told[task] = {
            "version": 1,
            "distribution": DISTRIBUTION.get(task),
            "family": "classification",
            "n": len(scored),
            "accuracy": sum(scored) / len(scored) if scored else None,
            "unanswered": sum(row.extracted is None and row.score is not None for row in made),
            "unscored": len(made) - len(scored),
            "prompt_sha256": "p",
            "generation": {"temperature": 0.0},
            "limit": len(some),
            "items_sha256": f"items of {task}",
        }
    with manifest.writing("scores", folder, {"name": name}) as draft:
        write_table(draft.folder / "scores.parquet", Score, rows)
        draft.notes |= {"tasks": told, "pixels": None}
    return folder


def answering(share, seed):
    """Answers that are right so often; of boxes, wrong ones lie beside the gold."""
    rng = np.random.default_rng(seed)

    def answer(item):
        good = bool(rng.random() < share)
        if item.task == GROUND:
            box = [float(x) for x in json.loads(item.answer)]
            moved = [x + float(rng.integers(-3, 4)) if good else x + 25.0 for x in box]
            said = json.dumps(moved)
        else:
            said = item.answer if good else f"not {item.answer}"
        if rng.random() < 0.05:
            return 0.0, None, "I cannot tell."
        return float(good), said, f"<think>It looks like one.</think> <answer>{said}</answer>"

    return answer


def hostile(item):
    """Answers that would do harm if anything but text were made of them."""
    text = HOSTILE[item.doc_id % len(HOSTILE)]
    if item.doc_id == ITEMS - 1:
        return 0.0, None, "1 MB </script> " + "x" * (1 << 20)
    return 0.0, text, f"{text}\n{HOSTILE[(item.doc_id + 1) % len(HOSTILE)]}"


def labels(folder, known):
    """Labels of all items: a third each."""
    kinds = (("easy", 8), ("medium", 4), ("hard", 0))
    rows = [
        Label(item.item_id, 8, kinds[i % 3][1], kinds[i % 3][1] / 8, 0.0, 1.0, kinds[i % 3][0], task)
        for task, some in known.items()
        for i, item in enumerate(some)
    ]
    with manifest.writing("labels", folder, {}) as draft:
        write_table(draft.folder / "labels.parquet", Label, rows)
    return folder


def rollouts(folder, samples=4, count=12):
    """Real rollouts of the grounding pool, by a scripted model."""
    from dcsft_harness import stages

    answers = folder.parent / "answers.jsonl"
    lines = []
    task = lmms.open_tasks([POOL])[POOL]
    for at in range(count):
        item, _ = lmms.describe(task, at)
        right, beside = item.answer, json.dumps([x + 20 for x in json.loads(item.answer)])
        said = [
            right if k < at % 5 else beside if k < 3 else HOSTILE[at % len(HOSTILE)] for k in range(samples)
        ]
        lines.append({"task": POOL, "doc_id": at, "responses": [f"<answer>{one}</answer>" for one in said]})
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    stages.STAGES["sample"](
        folder, model="dcsft_stub", model_args=f"answers={answers}", task=POOL, samples=samples, limit=count
    )
    return folder


def board(folder, samples=ITEMS):
    """Three plain rows, two seeds and a row for each hostile text -> the page's folder."""
    known = items([CLASSIFY, SHIFTED, GROUND])
    made = [
        folder_of(folder / f"scores-{n}", name, known, answering(share, n))
        for n, (name, share) in enumerate(SHARES.items())
    ]
    made += [
        folder_of(folder / f"seed-{n}", f"GRPO (seed {n})", known, answering(0.8, 100 + n)) for n in (1, 2)
    ]
    made += [folder_of(folder / f"hostile-{n}", text, known, hostile) for n, text in enumerate(HOSTILE)]
    options = Options(
        baseline="base", labels=[labels(folder / "labels", known)], plots=False, items=False, samples=samples,
        pairs=10, rollouts=[rollouts(folder / "rollouts")],
    )  # fmt: skip
    build(made, folder / "board", options=options)
    return folder / "board" / "page"
