"""What the processes of a launch do in test_training_launch.py: runs one after the other, or a command.

several.py runs BASE FOLDER NAME...     the runs of `RUNS` by name, over the sets in FOLDER
several.py train sft ... --num-processes 2     the command, whose processes $BREAK disturbs
"""

import os
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

from datasets import load_from_disk

from dcsft_harness import ranks
from dcsft_harness.training import grpo, launching, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig

SFT = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-3, "save_steps": 2}
GRPO = {"max_steps": 3, "batch_size": 4, "num_generations": 4, "learning_rate": 1e-3, "save_steps": 1}


class Stop(Exception):
    pass


def stopping(step, total, figures):
    if step == 3:
        raise Stop


class Parity:
    """Judges by the parity of the response's length, so that groups of a random model are mixed."""

    task = types.SimpleNamespace(config=types.SimpleNamespace(task="parity"))
    longest = 3
    reads_boxes = False
    scorers = {"parity": 3}

    def __init__(self, count):
        self.doc_ids = {f"item{number}": number for number in range(count)}

    def reward(self, item_id, response, truncated=False):
        return float(len(response) % 2)


def fixed(self, prompt_ids, *rest, **named):
    """Completions that a row and a place in its group decide, whichever process they are drawn in."""
    first = self.accelerator.process_index * len(prompt_ids)
    made = []
    for at, row in enumerate(self._rows):
        place = (first + at) % self.num_generations
        made.append([12 + (3 * row + 5 * place + 7 * token) % 16 for token in range(1 + place % 3)])
    return made, None


def lora(base, data, output, **more):
    return sft.train_sft(base, data, output, SftConfig(**SFT, **more))


def full(base, data, output, **more):
    return sft.train_cold_start(base, data, output, ColdStartConfig(**SFT, epochs=None, **more))


def resumed(base, data, output):
    with suppress(Stop):
        sft.train_sft(base, data, output, SftConfig(**SFT), progress=stopping)
    assert not (output / "manifest.json").exists()
    return sft.train_sft(base, data, output, SftConfig(**SFT))


def rl(base, data, output, draws=None, cut=False, **more):
    original = grpo.GrpoTrainer._generate_single_turn
    config, rows, judge = GrpoConfig(**GRPO, **more), load_from_disk(str(data)), Parity(9)
    try:
        if draws is not None:
            grpo.GrpoTrainer._generate_single_turn = draws
        if cut:
            with suppress(Stop):
                grpo.train_grpo(base, rows, judge, output, config, progress=stopping)
            assert not (output / "manifest.json").exists()
        return grpo.train_grpo(base, rows, judge, output, config)
    finally:
        grpo.GrpoTrainer._generate_single_turn = original


RUNS = {
    "lora": lambda *given: lora(*given, lora_dropout=0.0),
    "weighted": lambda *given: lora(*given, lora_dropout=0.0, micro_batch_size=1),
    "full": lambda *given: full(*given, micro_batch_size=1),
    "grpo": lambda *given: rl(*given, draws=fixed, lora_dropout=0.0),
    "grpo-full": lambda *given: rl(*given, draws=fixed, full=True, micro_batch_size=1),
    "whole": lora,
    "cut": resumed,
    "grpo-whole": rl,
    "grpo-cut": lambda *given: rl(*given, cut=True),
}


def runs(base, folder, names):
    for name in names:
        data = folder / ("weighted set" if name == "weighted" else "set")
        RUNS[name](base, data, folder / str(ranks.world_size()) / name)


def gloo_threads():
    """The names of this process's threads that serve a process group."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in threads if "gloo" in name]


def disturb(how):
    """Makes a loss of rank 1 infinite, or every step slow."""
    original = sft.SftTrainer.compute_loss

    def compute_loss(self, *given, **named):
        loss = original(self, *given, **named)
        if how == "slow":
            time.sleep(0.25)
        elif ranks.rank() == 1 and self.state.global_step == 2:
            return loss * float("nan")
        return loss

    sft.SftTrainer.compute_loss = compute_loss


def command(words):
    from dcsft_harness.cli import main

    if ranks.world_size() > 1:
        if "BREAK" in os.environ:
            disturb(os.environ["BREAK"])
        code = main(words)
        ranks.ending()
        return code
    original = launching.arguments

    def arguments(*given):
        made = original(*given)
        at = made.index("--module")
        return [*made[:at], __file__, *made[at + 2 :]]

    launching.arguments = arguments
    return main(words)


if __name__ == "__main__":
    if sys.argv[1] == "runs":
        ranks.join()
        runs(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        ranks.leave()
        assert not gloo_threads(), "the group outlives the run"
    else:
        sys.exit(command(sys.argv[1:]))
