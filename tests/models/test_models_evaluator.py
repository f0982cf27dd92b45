"""The models inside lmms-eval itself: registry, evaluator, repeats, several processes."""

import io
import json
import os

import datasets
import pytest
from lmms_eval import evaluator, models
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks import TaskManager

from dcsft_harness.errors import HarnessError
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import forked
from tests.fixtures.tiny_checkpoints import checkpoint, documents

TASK = """
task: {name}
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
repeats: 4
doc_to_visual: !function functions.doc_to_visual
doc_to_text: !function functions.doc_to_text
doc_to_messages: !function functions.doc_to_messages
doc_to_target: "answer"
process_results: !function functions.process_results
generation_kwargs:
  max_new_tokens: 6
  temperature: {temperature}
filter_list:
  - name: all
    filter:
      - function: take_first_k
        k: 4
metric_list:
  - metric: distinct
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
def doc_to_visual(doc):
    return [doc["image"]]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["text"]}]
    return [{"role": "user", "content": content}]


def process_results(doc, results):
    return {"distinct": len(set(results)) / len(results)}
"""
LAUNCH = """
import json, sys
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager
tasks, pretrained, output = sys.argv[1:]
results = evaluator.simple_evaluate(
    model="dcsft_hf", model_args=f"pretrained={pretrained},batch_size=2,device=cpu,seed=0",
    tasks=["tiny_sampled"],
    task_manager=TaskManager(include_path=tasks, include_defaults=False), bootstrap_iters=0, log_samples=True,
    distributed_executor_backend="accelerate",
)
if results is not None:
    rows = {sample["doc_id"]: sample["filtered_resps"][0] for sample in results["samples"]["tiny_sampled"]}
    open(output, "w").write(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of two tasks over five documents with images, on disk."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [doc | {"answer": "goose"} for doc in documents()[:5]]
    data = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    data.save_to_disk(folder / "data")
    (folder / "functions.py").write_text(FUNCTIONS)
    for name, temperature in (("tiny_sampled", 1.0), ("tiny_greedy", 0)):
        task = TASK.format(name=name, data=folder / "data", temperature=temperature)
        (folder / f"{name}.yaml").write_text(task)
    return folder


def evaluate(model, tasks, name, **given):
    return evaluator.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **given,
    )


def logged(results, name):
    """Document -> its responses; lmms-eval wraps a filter's result in a list of one."""
    return {sample["doc_id"]: list(sample["filtered_resps"][0]) for sample in results["samples"][name]}


def test_the_entry_point_adds_our_models_and_keeps_the_others():
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests(overwrite=True)
    assert registry.get_model_class("dcsft_hf") is DcsftHF
    assert models.get_model("dcsft_hf") is DcsftHF
    assert models.get_model("dcsft_stub") is DcsftStub
    assert models.get_model("huggingface").__name__ == "Huggingface"


def test_the_task_and_the_observers_receive_all_four_repeats(tasks):
    model = DcsftHF(pretrained=checkpoint("qwen2_5_vl"), device="cpu", batch_size=2)
    seen = []
    model.on_batch = seen.extend
    results = evaluate(model, tasks, "tiny_sampled")
    assert results["results"]["tiny_sampled"]["distinct,all"] >= 0.8
    responses = logged(results, "tiny_sampled")
    assert len(seen) == 20
    for doc_id in range(5):
        ours = [generation.response for generation in seen if generation.doc_id == doc_id]
        assert [index.sample_index for index in seen if index.doc_id == doc_id] == [0, 1, 2, 3]
        assert responses[doc_id] == ours


def test_opening_a_model_by_name_with_text_arguments_changes_no_draw(tasks):
    direct = DcsftHF(pretrained=checkpoint("qwen2_5_vl"), device="cpu")
    arguments = (
        f"pretrained={checkpoint('qwen2_5_vl')},seed=0,dtype=float32,trust_remote_code=False,adapter=None"
    )
    named = evaluate("dcsft_hf", tasks, "tiny_sampled", model_args=arguments, batch_size="4", device="cpu")
    assert logged(named, "tiny_sampled") == logged(evaluate(direct, tasks, "tiny_sampled"), "tiny_sampled")


def test_greedy_repeats_are_one_response(tasks):
    model = DcsftHF(pretrained=checkpoint("idefics3"), device="cpu", batch_size=8)
    results = evaluate(model, tasks, "tiny_greedy")
    assert results["results"]["tiny_greedy"]["distinct,all"] == 0.25


def test_generation_arguments_of_the_command_line_are_checked_in_the_evaluator(tasks):
    with pytest.raises(HarnessError, match="num_beams=4"):
        evaluate(DcsftStub(default="x"), tasks, "tiny_sampled", gen_kwargs="num_beams=4")


def test_the_stub_runs_as_a_model(tasks, tmp_path):
    answers = tmp_path / "answers.jsonl"
    rows = [{"task": "tiny_sampled", "doc_id": 1, "responses": ["a", "b"]}]
    rows += [{"prompt": documents()[2]["text"], "responses": ["c"]}]
    answers.write_text("\n".join(json.dumps(row) for row in rows))
    results = evaluate(
        "dcsft_stub", tasks, "tiny_sampled", model_args=f"answers={answers},default=none of it"
    )
    responses = logged(results, "tiny_sampled")
    assert responses[1] == ["a", "b", "a", "b"]
    assert responses[2] == ["c"] * 4
    assert responses[0] == ["none of it"] * 4


@pytest.mark.slow
def test_two_processes_draw_the_samples_of_one(tasks, tmp_path):
    script, output = tmp_path / "launch.py", tmp_path / "responses.json"
    script.write_text(LAUNCH)
    command = [*forked.TORCHRUN, str(script), str(tasks), checkpoint("qwen2_5_vl"), str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = forked.run(command, env=environment, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    together = {int(doc_id): responses for doc_id, responses in json.loads(output.read_text()).items()}
    model = DcsftHF(pretrained=checkpoint("qwen2_5_vl"), device="cpu")
    alone = logged(evaluate(model, tasks, "tiny_sampled"), "tiny_sampled")
    assert together == alone


@pytest.mark.parametrize(("kept", "outcome"), [(20, "refused"), (3000, "warned")])
def test_a_damaged_image_of_a_data_set_names_its_document(kept, outcome, tmp_path, caplog):
    whole = io.BytesIO()
    documents()[0]["image"].save(whole, "PNG")
    # lmms-eval looks at the first document before any model does.
    images = [whole.getvalue(), whole.getvalue()[:kept]]
    rows = [{"image": {"bytes": image, "path": None}, "text": "?", "answer": "x"} for image in images]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "data")
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    task = TASK.format(name="tiny_damaged", data=tmp_path / "data", temperature=0)
    (tmp_path / "tiny_damaged.yaml").write_text(task)
    model = DcsftHF(pretrained=checkpoint("qwen2_5_vl"), device="cpu")
    if outcome == "warned":
        evaluate(model, tmp_path, "tiny_damaged")
        assert "'tiny_damaged', doc_id 1: an image is truncated" in caplog.text
    else:
        with pytest.raises(HarnessError, match="'tiny_damaged', doc_id 1"):
            evaluate(model, tmp_path, "tiny_damaged")
