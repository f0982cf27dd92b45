"""The classes that the paper's classification sets name: a word each, and how often each occurs."""

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple


class ImageClass(NamedTuple):
    """A class of ImageNet, as the paper asks for it.

    Attributes:
        wnid: its WordNet id ("n01498041"), which is the name of its folder.
        word: the answer, case kept ("Chihuahua").
        label: its index among ImageNet's 1,000 classes.
        trained: whether it is one of the 100 classes of pool, cold start and validation.
        renditions: its images in ImageNet-R, 0 where the paper does not use it.
        adversarial: its images in ImageNet-A, 0 where the paper does not use it.
    """

    wnid: str
    word: str
    label: int
    trained: bool
    renditions: int
    adversarial: int


@cache
def table() -> dict[str, ImageClass]:
    """The 186 classes by wnid, in order of wnid."""
    text = (
        resources.files("dcsft_harness.data.benchmarks")
        .joinpath("imagenet_classes.csv")
        .read_text(encoding="utf-8")
    )
    found = {}
    for row in csv.DictReader(text.splitlines()):
        found[row["wnid"]] = ImageClass(
            row["wnid"],
            row["word"],
            int(row["label"]),
            row["trained"] == "1",
            int(row["renditions"]),
            int(row["adversarial"]),
        )
    return found


def trained() -> dict[str, ImageClass]:
    """The 100 classes of pool, cold start and validation by wnid."""
    return {wnid: some for wnid, some in table().items() if some.trained}
