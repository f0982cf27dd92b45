"""Models as users have them: any lmms-eval class, old adapters, run folders, own task files."""

import json
import shutil
import sys
from contextvars import ContextVar

import pytest
import torch
from lmms_eval.api.model import lmms as Lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import dcsft_harness as dcsft
from dcsft_harness import lmms, records, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.data import digits
from dcsft_harness.data.digits import resolve
from dcsft_harness.errors import HarnessError, causes
from dcsft_harness.evaluation.subject import as_engine, open_subject
from dcsft_harness.models import adapters, batching
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures.lmms_eval_logs import line, log_folder


class Simple(Lmms):
    """A model like most of lmms-eval's: it receives a text and a function that returns the images."""

    def __init__(self, pretrained="nothing", says="", batch_size=1):
        super().__init__()
        self.pretrained, self.says, self.seen = pretrained, says, []

    def generate_until(self, requests):
        answers = []
        for context, arguments, doc_to_visual, doc_id, task, split in (one.args for one in requests):
            pictures = doc_to_visual(self.task_dict[task][split][doc_id]) or []
            assert isinstance(arguments, dict) and all(picture.mode == "RGB" for picture in pictures)
            self.seen.append((context, len(pictures)))
            answers.append(self.says or context)
        return answers

    def loglikelihood(self, requests):
        raise NotImplementedError

    generate_until_multi_round = loglikelihood


class Odd(Simple):
    """A model that takes no checkpoint."""

    def __init__(self, says="x"):
        super().__init__(says=says)


@pytest.fixture(autouse=True, scope="module")
def registered():
    lmms.task_index()
    for name, kind in (("own_simple", Simple), ("own_odd", Odd)):
        path = f"{__name__}.{kind.__name__}"
        MODEL_REGISTRY_V2.register_manifest(ModelManifest(name, simple_class_path=path), overwrite=True)


@pytest.fixture
def own_rows(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"problem": "Say goose", "solution": "goose"}, {"problem": "Say swan", "solution": "swan"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


class TestSimpleClasses:
    def test_are_sampled_and_evaluated_as_by_lmms_eval(self, own_rows, tmp_path):
        options = {
            "engine": "own_simple",
            "model_args": "says=goose",
            "data": own_rows,
            "scorer": "exact_word",
        }
        notes = stages.STAGES["sample"](tmp_path / "rollouts", samples=3, **options)
        assert (notes["responses"], notes["accuracy"]) == (6, 0.5)
        notes = stages.STAGES["evaluate"](tmp_path / "scores", **options)
        assert notes["tasks"]["mine"]["accuracy"] == 0.5

    def test_receive_images_apart_from_the_text(self):
        (task,) = lmms.open_tasks(["dcsft_digits"]).values()
        model = Simple(says="seven")
        lmms.run(model, {"dcsft_digits": task}, 2)
        assert [pictures for _, pictures in model.seen] == [1, 1]
        assert "construct_requests" not in vars(task)
        # A chat model receives messages of the same task afterwards.
        stub = DcsftStub(answers=lambda question: "seven")
        assert len(lmms.run(stub, {"dcsft_digits": task}, 2)[0]["dcsft_digits"]) == 2

    def test_unknown_arguments_are_refused_in_one_sentence(self, own_rows, tmp_path, capsys):
        given = [
            "--engine=own_simple",
            "--model-args=color=red",
            f"--data={own_rows}",
            "--scorer=exact_word",
        ]
        assert main(["evaluate", *given, f"--output={tmp_path / 'out'}"]) == 1
        said = capsys.readouterr().err
        assert "model own_simple cannot be opened with 'color=red': TypeError" in said
        assert "Traceback" not in said


ENGINES = {
    # (model, model_args, engine) -> the lmms-eval model and its arguments; BASE is digits' folder
    ("digits", "", None): ("dcsft_hf", "pretrained=BASE"),
    ("digits", "batch_size=4", "dcsft_hf"): ("dcsft_hf", "pretrained=BASE,batch_size=4"),
    ("digits", "", "dcsft_vllm"): ("dcsft_vllm", "pretrained=BASE"),
    ("owner/name", "", "dcsft_vllm"): ("dcsft_vllm", "pretrained=owner/name"),
    ("digits", "", "own_simple"): ("own_simple", "pretrained=BASE"),
    ("owner/name", "says=x", "own_simple"): ("own_simple", "pretrained=owner/name,says=x"),
    ("dcsft_hf", "says=x", "own_simple"): ("own_simple", "says=x"),
    # As before --engine existed.
    ("dcsft_hf", "pretrained=cold", None): ("dcsft_hf", "pretrained=cold"),
    ("dcsft_vllm", "pretrained=cold", None): ("dcsft_vllm", "pretrained=cold"),
    ("own_simple", "says=x", None): ("own_simple", "says=x"),
}


class TestEngines:
    @pytest.mark.parametrize("given", ENGINES)
    def test_load_the_named_model(self, given):
        name, arguments = ENGINES[given]
        assert as_engine(*given) == (name, arguments.replace("BASE", resolve("digits")))

    def test_refusals(self, tmp_path):
        with pytest.raises(HarnessError, match="both name a checkpoint"):
            as_engine("digits", "pretrained=x", "dcsft_vllm")
        with pytest.raises(HarnessError, match="unknown model 'dcsft_vlm'. Did you mean dcsft_vllm"):
            as_engine("digits", "", "dcsft_vlm")
        with pytest.raises(HarnessError, match="--engine own_odd has no argument for a checkpoint"):
            as_engine("digits", "", "own_odd")

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("digitz", "--model digitz is not a folder, .* Did you mean digits?"),
            ("adaptor", "--model adaptor is not a folder, .* Did you mean adapter?"),
            ("dcsft_hff", "Did you mean dcsft_hf?"),
            ("zzzzzzzz", "Check the path or the name"),
        ],
    )
    def test_a_misspelled_checkpoint_is_not_an_unknown_engine(self, tmp_path, monkeypatch, name, said):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
        with pytest.raises(HarnessError, match=said):
            as_engine(name, "")

    def test_score_opens_them_like_evaluate(self, own_rows, lora, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("dcsft_harness.lmms.tasks._INCLUDED", ContextVar("_INCLUDED", default=()))
        (tmp_path / "rows.json").write_text(json.dumps([{"question": "Say goose", "answer": "goose"}]))
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "own.yaml").write_text(TASK.format(file=tmp_path / "rows.json"))
        given = ["score", "--suite=own_yaml_task", "--include-path=tasks", "--board=board"]
        engine = ["--engine=own_simple", "--model-args=says=goose"]
        for _ in range(2):
            assert main([*given, *engine, "digits", "--name=ours"]) == 0
        assert "already scored" in capsys.readouterr().err
        assert main([*given, *engine, "own/er", "--name=hub"]) == 0
        assert main([*given, *engine, "own/er", "--name=hub"]) == 0
        assert "hub: already scored" in capsys.readouterr().err
        assert main([*given, *engine, "own/other", "--name=hub"]) == 1
        assert "another checkpoint" in capsys.readouterr().err
        assert main([*given, *engine, str(lora), "--name=lora"]) == 1
        assert "own_simple takes no adapter" in capsys.readouterr().err
        assert main([*given, "--engine=own_odd", "digits", "--name=odd"]) == 1
        assert "own_odd has no argument for a checkpoint" in capsys.readouterr().err

    def test_only_our_engines_take_an_adapter(self, lora):
        name, arguments = as_engine(str(lora), "", "dcsft_vllm")
        assert (name, arguments) == ("dcsft_vllm", f"pretrained={resolve('digits')},adapter={lora}")
        with pytest.raises(HarnessError, match=r"own_simple takes no adapter.*Merge it with `dcsft merge"):
            as_engine(str(lora), "", "own_simple")


@pytest.fixture(scope="module")
def network():
    return AutoModelForImageTextToText.from_pretrained(resolve("digits"))


@pytest.fixture
def lora(tmp_path):
    """An adapter on language and vision layers, as PEFT saves it today."""
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(resolve("digits"))
    config = LoraConfig(r=2, target_modules=["q_proj", "qkv"], init_lora_weights=False, alpha_pattern={})
    peft = get_peft_model(base, config)
    peft.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def logits(adapter):
    base = AutoModelForImageTextToText.from_pretrained(resolve("digits"))
    model = base if adapter is None else adapters.attach(base, str(adapter), "digits")
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 15)[None]).logits


class TestAdapters:
    def test_names_from_before_transformers_4_52_are_converted(self, lora, tmp_path):
        old = tmp_path / "old"
        shutil.copytree(lora, old)
        tensors = {
            name.replace("model.model.language_model.", "model.model.").replace(
                "model.model.visual", "model.visual"
            ): one
            for name, one in load_file(lora / adapters.WEIGHTS).items()
        }
        assert any(".model.visual." in name for name in tensors)
        assert not any("language_model" in name for name in tensors)
        save_file(tensors, old / adapters.WEIGHTS)
        config = json.loads((old / "adapter_config.json").read_text())
        # A pattern that used to match only the language model matches the vision tower, too.
        config["target_modules"] = "^(model|visual).*(q_proj|qkv|gate_proj)$"
        (old / "adapter_config.json").write_text(json.dumps(config))
        assert torch.equal(logits(old), logits(lora))
        assert not torch.equal(logits(old), logits(None))

    def test_unexplained_names_are_refused(self, lora):
        tensors = {
            name.replace("q_proj", "p_proj"): one for name, one in load_file(lora / adapters.WEIGHTS).items()
        }
        save_file(tensors, lora / adapters.WEIGHTS)
        with pytest.raises(HarnessError, match="does not fit"):
            logits(lora)

    def test_a_pickled_one_is_refused_with_a_safe_conversion(self, lora, capsys, tmp_path):
        torch.save(load_file(lora / adapters.WEIGHTS), lora / adapters.PICKLED)
        (lora / adapters.WEIGHTS).unlink()
        with pytest.raises(HarnessError, match="a pickle file, which can run code") as error:
            adapters.read_config(str(lora), "digits")
        assert "weights_only=True" in str(error.value) and str(lora) in str(error.value)


class TestBases:
    """An adapter whose base has moved."""

    @pytest.fixture(params=["manifest", "peft"])
    def orphan(self, request, lora, tmp_path):
        from dcsft_harness.artifacts import manifest

        base = tmp_path / "cold"
        config = json.loads((lora / "adapter_config.json").read_text())
        (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
        if request.param == "peft":
            return lora
        shutil.copytree(resolve("digits"), base)
        adapter = tmp_path / "adapter"
        with manifest.writing("adapter", adapter, {}, {"model": base}) as draft:
            shutil.copytree(lora, draft.folder, dirs_exist_ok=True)
        shutil.rmtree(base)
        return adapter

    @pytest.mark.parametrize("verb", ["sample", "evaluate", "score", "merge", "data inspect"])
    def test_a_missing_base_is_named_with_the_remedy(self, orphan, own_rows, tmp_path, capsys, verb):
        out, data = f"--output={tmp_path / 'out'}", [f"--data={own_rows}", "--scorer=exact_word"]
        given = {
            "sample": ["sample", f"--model={orphan}", *data, out],
            "evaluate": ["evaluate", f"--model={orphan}", *data, out],
            "score": ["score", str(orphan), "--suite=dcsft_digits", f"--board={tmp_path / 'out'}"],
            "merge": ["merge", str(orphan), out],
            "data inspect": ["data", "inspect", str(own_rows), f"--model={orphan}", "--scorer=exact_word"],
        }
        assert main(given[verb]) == 1
        error = " ".join(capsys.readouterr().err.split())
        assert f"the base of adapter {orphan} is missing: {orphan}/" in error
        assert f"names {tmp_path / 'cold'}, which does not exist" in error
        assert "Restore it, or name it: --base DIR" in error and "--model-args pretrained=DIR" in error
        assert not (tmp_path / "out" / "manifest.json").exists()

    def test_a_base_that_looks_like_a_hub_name_may_be_a_folder(self, orphan, tmp_path, capsys):
        """PEFT writes the path as it was given, relative to where training ran."""
        (orphan / "manifest.json").unlink(missing_ok=True)
        path = orphan / "adapter_config.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "models/cold"})
        )
        assert main(["merge", str(orphan), f"--output={tmp_path / 'out'}"]) == 1
        error = " ".join(capsys.readouterr().err.split())
        assert "model models/cold cannot be opened" in error
        assert "a folder that adapter" in error and "--base DIR" in error and "pretrained=DIR" in error

    def test_a_base_can_be_given_with_the_adapter(self, orphan):
        for engine in (None, "dcsft_hf", "dcsft_vllm"):
            name, arguments = as_engine(str(orphan), "pretrained=digits,batch_size=2", engine)
            assert name == (engine or "dcsft_hf")
            assert arguments == f"pretrained={resolve('digits')},adapter={orphan},batch_size=2"

    def test_a_hub_name_is_looked_up_when_it_is_loaded(self, lora):
        config = json.loads((lora / "adapter_config.json").read_text())
        (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "own/er"}))
        assert as_engine(str(lora), "")[1] == f"pretrained=own/er,adapter={lora}"


class TestRunFolders:
    def test_stand_for_their_newest_checkpoint(self, lora, tmp_path):
        run = tmp_path / "run"
        for step in (5, 90, 100):
            shutil.copytree(lora, run / f"checkpoint-{step}")
        (run / "checkpoint-110").mkdir()  # not written yet
        assert resolve(str(run)) == str(run / "checkpoint-100")
        assert open_subject(str(run), None).adapter == run / "checkpoint-100"
        assert as_engine(str(run), "")[1].endswith(f"adapter={run / 'checkpoint-100'}")

    def test_with_weights_stand_for_themselves(self, lora):
        shutil.copytree(lora, lora / "checkpoint-5")
        assert resolve(str(lora)) == str(lora)


TASK = """
task: own_yaml_task
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


class TestOwnTasks:
    def test_are_found_by_include_path(self, tmp_path, monkeypatch, capsys):
        folder = tmp_path / "tasks"
        folder.mkdir()
        (tmp_path / "rows.json").write_text(json.dumps([{"question": "Say goose", "answer": "goose"}]))
        (folder / "own.yaml").write_text(TASK.format(file=tmp_path / "rows.json"))
        given = ["evaluate", "--model=dcsft_stub", "--model-args=default=goose", "--tasks=own_yaml_task"]
        assert main([*given, f"--output={tmp_path / 'none'}"]) == 1
        assert "unknown task 'own_yaml_task'" in capsys.readouterr().err
        assert main([*given, f"--include-path={folder}", f"--output={tmp_path / 'scores'}"]) == 0
        (row,) = records.read_table(tmp_path / "scores" / "scores.parquet", records.Score).to_pylist()
        assert (row["task"], row["score"]) == ("own_yaml_task", 1.0)
        notes = stages.STAGES["sample"](
            tmp_path / "rollouts",
            model="dcsft_stub",
            model_args="default=goose",
            task="own_yaml_task",
            samples=2,
            include_path=folder,
        )
        assert notes["responses"] == 2

    def test_of_one_name_are_those_of_the_calls_own_folder(self, tmp_path, monkeypatch):
        """In a notebook, too, where folders of earlier calls were found first and for later calls."""
        monkeypatch.setattr("dcsft_harness.lmms.tasks._INCLUDED", ContextVar("_INCLUDED", default=()))
        monkeypatch.chdir(tmp_path)
        for gold in ("goose", "swan"):
            (tmp_path / gold).mkdir()
            (tmp_path / gold / "rows.json").write_text(json.dumps([{"question": "Say it", "answer": gold}]))
            (tmp_path / gold / "own.yaml").write_text(TASK.format(file="rows.json"))

        def score(name, task="own_yaml_task", **given):
            made = dcsft.evaluate(
                "dcsft_stub", model_args={"default": "goose"}, tasks=task, output=name, **given
            )
            return made.table()["score"].to_pylist()

        assert [score(f"scores-{one}", include_path=one) for one in ("goose", "swan")] == [[1.0], [0.0]]
        assert score("again", include_path="goose", samples=2) == [1.0]
        with pytest.raises(HarnessError, match="unknown task 'own_yaml_task'"):
            score("none")
        own = (tmp_path / "swan" / "own.yaml").read_text()
        (tmp_path / "swan" / "new.yaml").write_text(own.replace("own_yaml_task", "new_yaml_task"))
        assert score("new", "new_yaml_task", include_path="swan") == [0.0]
        with pytest.raises(HarnessError, match="unknown task 'new_yaml_task'"):
            score("none", "new_yaml_task", include_path="goose")

    @pytest.mark.parametrize("others", [(), ("mme",)])
    def test_come_before_lmms_evals_of_the_same_name(self, tmp_path, monkeypatch, others):
        monkeypatch.setattr("dcsft_harness.lmms.tasks._INCLUDED", ContextVar("_INCLUDED", default=()))
        (tmp_path / "own.yaml").write_text("task: ok_vqa_val2014")
        lmms.include(tmp_path)
        found = lmms.task_index(["ok_vqa_val2014", *others])
        assert found["ok_vqa_val2014"]["yaml_path"] == str(tmp_path / "own.yaml")

    def test_score_their_logs(self, tmp_path, capsys):
        """`label` finds a user's own task as `sample` does, and its labels can be curated."""
        folder, name = tmp_path / "tasks", "own_logged_task"
        folder.mkdir()
        (tmp_path / "rows.json").write_text(json.dumps([{"question": "Say goose", "answer": "goose"}]))
        own = TASK.format(file=tmp_path / "rows.json").replace("own_yaml_task", name)
        (folder / "own.yaml").write_text(own)
        said = line(0, 1.0, target="goose", prompt="Say goose", resps=[["goose", "swan"]])
        given = ["label", str(log_folder(tmp_path / "log", {name: [said]}))]
        assert main([*given, f"--output={tmp_path / 'none'}"]) == 1
        assert f"unknown task {name!r}" in capsys.readouterr().err
        assert main([*given, f"--include-path={folder}", f"--output={tmp_path / 'labels'}"]) == 0
        assert manifest.read(tmp_path / "labels").notes["medium"] == 1
        read = manifest.read(tmp_path / "labels-rollouts").inputs
        assert f"task {folder / 'own.yaml'}" in read
        curated = ["curate", str(tmp_path / "labels"), "--keep=medium", f"--output={tmp_path / 'set'}"]
        assert main(curated) == 0
        given[1] = str(tmp_path / "labels-rollouts")
        assert main([*given, f"--include-path={folder}", f"--output={tmp_path / 'none'}"]) == 1
        assert "--include-path need lmms-eval logs" in capsys.readouterr().err

    def test_rollouts_of_a_log_by_another_scorer_are_not_reused(self, tmp_path, monkeypatch):
        """As after `labels` was removed, to make them by the changed scorer."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        said = line(0, 1.0, target="goose", prompt="Say goose", resps=[["goose", "swan"]])
        given = {"rollouts": log_folder(tmp_path / "log", {"some": [said]}), "scorer": "judge_of_logs:judge"}
        file = tmp_path / "judge_of_logs.py"
        file.write_text("def judge(response, *, answer):\n    return response == answer\n")
        assert dcsft.label(**given, output="labels").notes["medium"] == 1
        shutil.rmtree("labels")
        assert dcsft.label(**given, output="labels").notes["medium"] == 1
        file.write_text("def judge(response, *, answer):\n    return True\n")
        shutil.rmtree("labels")
        with pytest.raises(HarnessError, match="labels-rollouts already holds rollouts"):
            dcsft.label(**given, output="labels")
        shutil.rmtree("labels-rollouts")
        assert dcsft.label(**given, output="labels").notes["easy"] == 1

    def test_an_error_in_a_scorer_ends_the_stage_and_its_correction_resumes_it(self, tmp_path, monkeypatch):
        """lmms-eval's retries wrapped it so that a search of its causes went round and round."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        rows = [{"question": f"Say {word}", "answer": word} for word in ("goose", "swan")]
        given = {
            "data": rows,
            "scorer": "raising_judge:judge",
            "model_args": {"default": "goose"},
            "samples": 2,
        }
        code = "def judge(response, *, answer):\n    return {}\n"
        file = tmp_path / "raising_judge.py"
        file.write_text(code.format("[1][answer == 'swan' and response == 'goose']"))
        with pytest.raises(HarnessError, match="raises IndexError .*; raising_judge.py, line 2") as caught:
            dcsft.sample("dcsft_stub", **given, output="rollouts")
        *_, last = causes(caught.value)
        assert isinstance(last, IndexError) and last.__cause__ is None
        file.write_text(code.format("response != answer"))
        rollouts = dcsft.sample("dcsft_stub", **given, output="rollouts").table()
        assert rollouts["score"].to_pylist() == [
            float(one == "swan") for one in rollouts["answer"].to_pylist()
        ]

    def test_can_be_named_by_file(self, own_rows, tmp_path, capsys):
        (tmp_path / "rows.json").write_text(json.dumps([{"question": "Say goose", "answer": "goose"}]))
        task = tmp_path / "own.yaml"
        task.write_text(TASK.format(file=tmp_path / "rows.json"))
        more = tmp_path / "more.jsonl"
        more.write_text(json.dumps({"problem": "Say duck", "solution": "duck"}))
        given = ["evaluate", "--model=dcsft_stub", "--model-args=default=goose", "--scorer=exact_word"]
        given += [f"--tasks={task},{own_rows},{more}", f"--output={tmp_path / 'scores'}"]
        assert main(given) == 0
        scores = records.read_table(tmp_path / "scores" / "scores.parquet", records.Score).to_pylist()
        found = [(row["task"], row["score"]) for row in scores]
        assert sorted(found) == [("mine", 0.0), ("mine", 1.0), ("more", 0.0), ("own_yaml_task", 1.0)]
        assert main(given) == 0
        assert "already done" in capsys.readouterr().err
        more.write_text(json.dumps({"problem": "Say swan", "solution": "swan"}))
        assert main(given) == 1  # the scores are of other rows
        assert "changed since" in capsys.readouterr().err
        sampled = stages.STAGES["sample"](
            tmp_path / "rollouts",
            model="dcsft_stub",
            model_args="default=goose",
            task=str(task),
            samples=2,
        )
        assert sampled["responses"] == 2

    @pytest.mark.parametrize(
        ("verb", "option", "name", "said"),
        [
            ("evaluate", "--tasks", "none.yaml", "none.yaml does not exist"),
            ("evaluate", "--tasks", "group.yaml", "group.yaml holds no task"),
            ("evaluate", "--tasks", "text.yaml", "text.yaml holds no task"),
            ("evaluate", "--tasks", "broken.yaml", "broken.yaml is not valid YAML"),
            ("evaluate", "--tasks", "rows.jsonl", "--data needs --scorer"),
            ("sample", "--task", "none.yaml", "none.yaml does not exist"),
            ("sample", "--task", "rows.jsonl", "Pass it as --data rows.jsonl"),
            ("score", "--suite", "group.yaml", "--suite group.yaml is a file. Name its task"),
        ],
    )
    def test_files_without_a_task_are_refused(self, tmp_path, monkeypatch, capsys, verb, option, name, said):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "group.yaml").write_text("group: mine\ntask: [a, b]\n")
        (tmp_path / "text.yaml").write_text("some text")
        (tmp_path / "broken.yaml").write_text("task: [")
        (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "Say goose", "solution": "goose"}))
        model = ["digits", "--board=out"] if verb == "score" else ["--model=dcsft_stub", "--output=out"]
        assert main([verb, *model, option, name]) == 1
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
        assert not (tmp_path / "out" / "manifest.json").exists()

    def test_a_missing_package_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "own.yaml").write_text(f"{TASK.format(file='x')}doc_to_visual: !function own.visual\n")
        (tmp_path / "own.py").write_text("import no_such_package_here")
        with pytest.raises(HarnessError, match="needs the package no_such_package_here.*pip install no_such"):
            lmms.open_tasks([str(tmp_path / "own.yaml")])

    def test_a_folder_without_tasks_is_refused(self, tmp_path):
        with pytest.raises(HarnessError, match="has no YAML files"):
            lmms.include(tmp_path)
        with pytest.raises(HarnessError, match="is not a folder"):
            lmms.include(tmp_path / "none")


def test_a_repeated_prompt_is_processed_once(monkeypatch):
    """And again for another text, other pixels, other limits, and after the block."""
    processor = AutoProcessor.from_pretrained(digits.path())
    asked = []
    whole = batching.process

    def counted(*given):
        asked.append(given[1])
        return whole(*given)

    monkeypatch.setattr(batching, "process", counted)
    black, white = (Image.new("RGB", (56, 56), color) for color in ("black", "white"))
    text = "<|vision_start|><|image_pad|><|vision_end|>Which digit?"

    def features(images, text=text, processor=processor):
        return batching.process_one(processor, text, images)

    with batching.remembering():
        first, again = features([black]), features([black.copy()])
        assert len(asked) == 1 and first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)
        # A processor that was opened again, as for the next checkpoint, counts as the same.
        features([black], processor=AutoProcessor.from_pretrained(digits.path()))
        assert len(asked) == 1
        assert not torch.equal(features([white])["pixel_values"], first["pixel_values"])
        features([black], text + "!")
        other = AutoProcessor.from_pretrained(digits.path(), max_pixels=28 * 28)
        assert len(features([black], processor=other)["pixel_values"]) < len(first["pixel_values"])
        assert len(asked) == 4
    features([black])
    assert len(asked) == 5


def test_the_cache_of_prompts_is_bounded(monkeypatch):
    monkeypatch.setattr(batching, "REMEMBERED", 3 * 400)
    calls = []

    def made(processor, texts, images):
        calls.append(texts[0])
        return {"input_ids": torch.zeros(100)}

    monkeypatch.setattr(batching, "process", made)
    processor = AutoProcessor.from_pretrained(digits.path())
    with batching.remembering():
        for text in "abcadbc":
            batching.process_one(processor, text, [])
    assert calls == ["a", "b", "c", "d", "b", "c"]  # "a" was used when "d" replaced "b"
