"""`dcsft evaluate`: Score a checkpoint, item by item: adapter -> scores."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness import ranks
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import Settings, flag, option
from dcsft_harness.stages.stage import Notes, Progress, Stage, percent

if TYPE_CHECKING:
    from dcsft_harness.sampling import SamplingConfig


class EvaluateOptions(Settings):
    """What to evaluate, and on what."""

    model: str = option(
        "dcsft_hf", "A checkpoint or adapter; or an lmms-eval model, with --model-args.", reads="checkpoint"
    )
    model_args: str = option(
        "", "Its arguments: pretrained=CKPT,adapter=DIR,...", metavar="K=V,...", reads="model_args"
    )
    tasks: tuple[str, ...] = option(
        about="lmms-eval tasks, groups or tags, comma-separated.", reads="tasks", min_length=1
    )
    name: str | None = option(None, "The row's name in a leaderboard; by default the output folder's name.")
    group: str | None = option(
        None, "Name shared by all seeds of a configuration; by default as in a name like 'SFT (seed 1)'."
    )
    limit: int | None = option(None, "Only the first documents of each task.", ge=1)
    samples: int = option(1, "K, responses per item: avg@k, maj@k and pass@k of every k up to K.", ge=1)
    temperature: float | None = option(
        None, "Softmax temperature; by default 0 (greedy) for one response, and 0.9 for several.", ge=0
    )
    top_p: float | None = option(None, "Of sampled responses: nucleus mass kept; by default 1.", gt=0, le=1)
    top_k: int | None = option(None, "Of sampled responses: tokens kept, 0 for all; by default 50.", ge=0)
    seed: int | None = option(
        None, "Of sampled responses: decides them, with item and sample index; by default 0."
    )

    def sampling(self) -> "SamplingConfig | None":
        """How responses are sampled; None for greedy decoding.

        Raises:
            HarnessError: several greedy responses are asked for, which are all one; or an option of sampling
                goes with greedy decoding.
        """
        from dcsft_harness.sampling import SamplingConfig

        names = ("temperature", "top_p", "top_k", "seed")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.samples > 1 and self.temperature == 0:
            raise HarnessError(
                f"--samples {self.samples} at --temperature 0 are {self.samples} times the same response",
                "Give a temperature above 0, or one sample",
            )
        if self.samples == 1 and not self.temperature:
            for name in names[1:]:
                if name in given:
                    raise HarnessError(
                        f"{flag(name)} {given[name]} has no effect on a greedy response",
                        "Give --samples above 1 or --temperature above 0, or leave it out",
                    )
            return None
        return SamplingConfig(samples=self.samples, limit=self.limit, **given)


def run(options: EvaluateOptions, output: Path, progress: Progress | None) -> Notes:
    """Evaluates."""
    from dcsft_harness import evaluation, lmms
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.data.benchmarks import prepared
    from dcsft_harness.evaluation.subject import as_engine
    from dcsft_harness.sampling import rollout_store
    from dcsft_harness.stages import opening

    ranks.join()
    with ranks.agreed():
        sampled = options.sampling()
        (manifest.refuse_occupied if sampled is None else rollout_store.refuse_taken)(output)
        model, model_args = as_engine(options.model, options.model_args)
        opened = lmms.open_tasks(list(options.tasks))
        arguments, inputs = opening.model_arguments(model_args)
        inputs |= prepared.inputs(opened)
        lmms.check_model(model, arguments)
        opener = partial(lmms.open_model, model, arguments)
        running = None if sampled is not None else opener()
    settings = {"model": model, "model_args": model_args}
    if options.group is not None:
        settings["group"] = options.group
    name = options.name or output.name
    if sampled is not None:
        return evaluation.evaluate_samples(opener, opened, output, name, settings, sampled, progress, inputs)
    assert running is not None
    return evaluation.evaluate(running, opened, output, name, settings, options.limit, progress, inputs)


def summary(notes: Mapping[str, Any]) -> str:
    """Each task's accuracy; of K samples, the metrics at K."""
    return ", ".join(f"{name} {_figures(task)} (n {task['n']})" for name, task in notes["tasks"].items())


def _figures(task: Mapping[str, Any]) -> str:
    k = task.get("samples")
    if k is None:
        return percent(task["accuracy"])
    shown = [
        f"{name}@{k} {percent(task['at_k'][name][-1])}"
        for name in ("avg", "maj", "pass")
        if name in task["at_k"]
    ]
    return " ".join(shown)


STAGE = Stage(
    verb="evaluate",
    options=EvaluateOptions,
    run=run,
    summary=summary,
    writes="scores",
    example="""dcsft evaluate --model adapter --tasks dcsft_digits,dcsft_digits_r --output scores
dcsft evaluate --model dcsft_vllm --model-args pretrained=CKPT --tasks dcsft_digits --output scores""",
    prepared=True,
    then="dcsft leaderboard build {output} OTHER-SCORES... --output board",
)
