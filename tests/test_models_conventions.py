"""Box conventions, and the weight of what tasks import to read them."""

import subprocess
import sys

import pytest

from dcsft_harness.models.conventions import PIXEL, BoxConvention, box_space, declare, declared


@pytest.mark.parametrize(
    ("model_type", "space"),
    [
        ("qwen2_5_vl", "resized"),
        ("qwen2_vl", "norm1000"),
        ("qwen3_vl", "norm1000"),
        ("qwen3_vl_moe", "norm1000"),
        ("qwen3_5", "norm1000"),
        ("qwen3_5_moe", "norm1000"),
        ("internvl", "norm1000"),
        ("llava_onevision", "pixel"),
        ("gemma3", "pixel"),
    ],
)
def test_the_space_of_each_family(model_type, space):
    assert box_space(model_type) == space


def test_the_resize_is_that_of_published_examples():
    convention = BoxConvention("resized", 28, 56 * 56, 28 * 28 * 1280)
    assert convention.resized_size((640, 480)) == (644, 476)
    assert convention.resized_size((10, 10)) == (56, 56)
    assert PIXEL.resized_size((640, 480)) is None


def test_the_declared_convention_is_the_last_one():
    before = declared()
    convention = BoxConvention("norm1000")
    declare(convention)
    assert declared() is convention
    declare(before)


def test_reading_the_convention_imports_no_torch_and_no_lmms_eval():
    code = (
        "import sys, dcsft_harness.models, dcsft_harness.models.conventions\n"
        "assert not {'torch', 'transformers', 'numpy', 'lmms_eval'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
