"""Folders as `lmms-eval --log_samples --output_path` 0.7.3 leaves them, written by hand."""

import json

NULL_HASH = "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"


def line(number, score, *, target="3", prompt="Which digit?", cluster="own", metric="acc", **more):
    """One sample; `cluster` None makes the metric a bare number, "own" gives it the document's."""
    found = (
        score
        if cluster is None
        else {"score": score, "cluster": str(number) if cluster == "own" else cluster}
    )
    return {
        "doc_id": number,
        "target": target,
        "filtered_resps": target if score else "x",
        "token_counts": [{"input_tokens": 38, "output_tokens": 2}],
        "doc_hash": NULL_HASH,
        metric: found,
        "input": prompt,
        **more,
    }


def log_folder(
    folder,
    tasks,
    *,
    model_args="pretrained=org/tiny",
    date="20261125_113829",
    distribution=None,
    run=None,
    entry=None,
):
    """Writes one run of `tasks`, {task: [line, ...]}; `entry` and `run` override the results file."""
    inner = folder / "org__tiny"
    inner.mkdir(parents=True, exist_ok=True)
    said = {}
    for task, lines in tasks.items():
        path = inner / f"{date}_samples_{task}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
        scores = [one["acc"].get("score") for one in lines if isinstance(one.get("acc"), dict)]
        scores = [score for score in scores if isinstance(score, int | float)]
        said[task] = {"alias": task, **({"acc,none": sum(scores) / len(scores)} if scores else {})}
    data = {
        "results": {task: {**found, **(entry or {})} for task, found in said.items()},
        "configs": {
            task: {
                "task": task,
                "generation_kwargs": {"temperature": 0.0, "max_new_tokens": 8},
                "cluster_key": "cluster",
                "score_key": "score",
                "metadata": {"version": 1, "distribution": (distribution or {}).get(task)},
            }
            for task in tasks
        },
        "versions": dict.fromkeys(tasks, 1),
        "n-samples": {task: {"original": 300, "effective": len(lines)} for task, lines in tasks.items()},
        "config": {"model": "dcsft_hf", "model_args": model_args, "limit": None},
        "date": date,
        "model_name_sanitized": "org__tiny",
        **(run or {}),
    }
    (inner / f"{date}_results.json").write_text(json.dumps(data, indent=2), encoding="utf-8")
    return folder
