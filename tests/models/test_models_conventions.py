"""Box conventions, and what tasks import to read them."""

import subprocess
import sys

import pytest

from dcsft_harness.coordinates import PIXEL, BoxConvention, box_space, declare, declared
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.tasks.grounding.doc import process_box


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
        ("llava_onevision", None),
        ("gemma3", None),
    ],
)
def test_each_family_has_its_box_space(model_type, space):
    assert box_space(model_type) == space


def test_the_box_space_of_an_unlisted_family_must_be_given(monkeypatch):
    monkeypatch.setenv("DCSFT_BOX_SPACE", "norm1000")
    assert (box_space("glm4v"), box_space("qwen2_5_vl")) == ("norm1000", "resized")
    monkeypatch.setenv("DCSFT_BOX_SPACE", "thousandths")
    with pytest.raises(HarnessError, match="DCSFT_BOX_SPACE is 'thousandths'.*pixel.*norm1000"):
        box_space("glm4v")


def test_resizing_matches_published_examples():
    convention = BoxConvention("resized", 28, 56 * 56, 28 * 28 * 1280)
    assert convention.resized_size((640, 480)) == (644, 476)
    assert convention.resized_size((10, 10)) == (56, 56)
    assert PIXEL.resized_size((640, 480)) is None


def test_the_last_declared_convention_applies():
    declare(PIXEL)
    convention = BoxConvention("norm1000")
    declare(convention)
    assert declared() is convention


def test_boxes_of_a_model_without_a_declaration_are_not_scored(monkeypatch):
    """lmms-eval's own models declare nothing; thousandths read as pixels would look plausible."""
    doc = {"answer": "[100.0, 100.0, 200.0, 200.0]", "width": 500, "height": 500, "cluster": "a"}
    with pytest.raises(HarnessError, match="unknown box coordinate space for this model.*DCSFT_BOX_SPACE"):
        process_box(doc, ["[200, 200, 400, 400]"])
    scores = {}
    for given in ("norm1000", "pixel"):
        monkeypatch.setenv("DCSFT_BOX_SPACE", given)
        scores[given] = process_box(doc, ["[200, 200, 400, 400]"])["acc"]["score"]
    assert scores == {"norm1000": 1.0, "pixel": 0.0}
    monkeypatch.setenv("DCSFT_BOX_SPACE", "resized")
    with pytest.raises(HarnessError, match="DCSFT_BOX_SPACE is 'resized', which is not a coordinate space"):
        declared()


def test_a_model_declares_its_convention_when_it_is_opened():
    """With lmms-eval's response cache it may never be asked to generate."""
    model = DcsftStub(default="[1, 2, 3, 4]")
    assert declared() is model.box_convention


def test_reading_the_convention_imports_no_torch_and_no_lmms_eval():
    code = (
        "import sys, dcsft_harness.models, dcsft_harness.coordinates\n"
        "assert not {'torch', 'transformers', 'numpy', 'lmms_eval'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
