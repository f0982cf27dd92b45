"""`dcsft merge`, `card` and `push`: what becomes of a trained adapter."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from dcsft_harness import ranks
from dcsft_harness.cli import bar
from dcsft_harness.cli.running import run_stage
from dcsft_harness.errors import HarnessError

FOLDER = click.Path(path_type=Path, file_okay=False)


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a command takes that can upload what it makes."""
    for option in (
        click.option("--private", is_flag=True, help="Make a new repository private."),
        click.option("--push-to-hub", metavar="REPO", help="Upload the result to this repository."),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def pushing(output: Path, repo: str | None, private: bool) -> Iterator[None]:
    """Checks before the block that an upload can be expected to work, and uploads behind it.

    Raises:
        HarnessError: it cannot; or `private` says nothing without a repository.
    """
    if private and repo is None:
        raise HarnessError("--private goes with --push-to-hub", "Name a repository, or leave it out")
    if repo is not None:
        check(repo)
    yield
    if repo is not None and ranks.rank() == 0:
        push_folder(output, repo, private)


@click.command()
@click.argument("adapter", type=FOLDER)
@click.option("--base", metavar="CKPT", help="The base; default the one that the adapter was trained on.")
@click.option("--prompts", default=4, show_default=True, help="Real prompts to compare the two models on.")
@click.option("--max-new-tokens", default=32, show_default=True, help="Longest greedy answer compared.")
@click.option("--device", help="cpu, cuda or cuda:N; default CUDA where there is any.")
@hub_options
@click.option("--output", type=FOLDER, required=True)
def merge(output: Path, push_to_hub: str | None, private: bool, **options: Any) -> None:  # noqa: ANN401
    """Merge an adapter into its base: adapter -> checkpoint.

    The checkpoint is read back from disk and compared with base and adapter on real prompts with
    pictures; where it answers otherwise nothing is kept. The report is in its parity.json.

    \b
    dcsft merge adapter --output merged
    """  # noqa: D301 - click reads the \b
    with pushing(output, push_to_hub, private):
        run_stage("merge", output, options)


@click.command()
@click.argument("artefact", type=FOLDER)
@click.option(
    "--scores", type=FOLDER, multiple=True, help="A folder of scores, its own or its base's; repeatable."
)
def card(artefact: Path, scores: tuple[Path, ...]) -> None:
    """Write the README.md of an adapter or checkpoint again, with its scores.

    \b
    dcsft card adapter --scores after --scores before
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.training.card import write

    clock = bar.Clock()
    write(artefact, scores)
    bar.closing("card", f"{len(scores)} folders of scores", clock, artefact / "README.md")


@click.command()
@click.argument("artefact", type=FOLDER)
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a new repository private.")
def push(artefact: Path, repo: str, private: bool) -> None:
    """Upload a finished adapter or checkpoint, with its card, to the model hub."""
    from dcsft_harness import hub

    hub.refuse_unfit(artefact)
    check(repo)
    push_folder(artefact, repo, private)


def check(repo: str) -> None:
    """Makes sure that an upload can be expected to work."""
    from dcsft_harness import hub

    hub.check(repo)


def push_folder(folder: Path, repo: str, private: bool) -> None:
    """Uploads a finished artefact and says where it went."""
    from dcsft_harness import hub

    clock = bar.Clock()
    bar.closing("push", str(folder), clock, hub.push(folder, repo, private))


commands = (merge, card, push)
