"""`dcsft card` and `push`, and uploads of what other verbs make."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from dcsft_harness import ranks
from dcsft_harness.cli import bar
from dcsft_harness.errors import HarnessError

FOLDER = click.Path(path_type=Path, file_okay=False)


@contextlib.contextmanager
def pushing(output: Path | None, repo: str | None, private: bool) -> Iterator[None]:
    """Checks before the block that an upload can be expected to work, and uploads behind it.

    Raises:
        HarnessError: it cannot; or `private` says nothing without a repository.
    """
    if private and repo is None:
        raise HarnessError("--private goes with --push-to-hub", "Name a repository, or leave it out")
    if repo is not None:
        check(repo)
    yield
    if repo is not None and output is not None and ranks.rank() == 0:
        push_folder(output, repo, private)


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
    from dcsft_harness.training import hub

    hub.refuse_unfit(artefact)
    check(repo)
    push_folder(artefact, repo, private)


def check(repo: str) -> None:
    """Makes sure that an upload can be expected to work."""
    from dcsft_harness.training import hub

    hub.check(repo)


def push_folder(folder: Path, repo: str, private: bool) -> None:
    """Uploads a finished artefact and says where it went."""
    from dcsft_harness.training import hub

    clock = bar.Clock()
    bar.closing("push", str(folder), clock, hub.push(folder, repo, private))


commands = (card, push)
