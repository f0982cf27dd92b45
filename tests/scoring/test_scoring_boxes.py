"""Boxes: which box a response states, the coordinate spaces, and IoU."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import Verdict
from dcsft_harness.scoring.boxes import box_iou, iou, parse_box, to_pixels

IMAGE = (640, 480)


@pytest.mark.parametrize(
    "response",
    [
        '```json\n[\n\t{"bbox_2d": [10, 20, 110, 220], "label": "dog"}\n]\n```',
        '{"bbox_2d": [10, 20, 110, 220]}',
        "{'bbox': [10, 20, 110, 220]}",
        "[10, 20, 110, 220]",
        "[10,20,110,220]",
        "[ 10.0 , 20.0, 110.00, 220 ]",
        "[[10, 20, 110, 220]]",
        "[[10, 20], [110, 220]]",
        "(10, 20, 110, 220)",
        "(10,20),(110,220)",
        "(10, 20) (110, 220)",
        "{10, 20, 110, 220}",
        "<box>(10,20),(110,220)</box>",
        "<box>10 20 110 220</box>",
        "<|box_start|>(10,20),(110,220)<|box_end|>",
        "10, 20, 110, 220",
        "The bounding box is 10, 20, 110, 220.",
        '{"bbox_2d": "10, 20, 110, 220"}',
        "Bounding box coordinates: 10, 20, 110, 220",
        "10 20 110 220",
        "The dog is at [10, 20, 110, 220].",
        "<answer>[10, 20, 110, 220]</answer>",
        "<think>First [1, 2, 3, 4].</think><answer>{[10, 20, 110, 220]}</answer>",
        "<think>First [1, 2, 3, 4].</think>\n[10, 20, 110, 220]",
        '{"bbox": {"x1": 10, "y1": 20, "x2": 110, "y2": 220}}',
        "x_min=10, y_min=20, x_max=110, y_max=220",
        "Top-left: (10, 20), bottom-right: (110, 220)",
        "from (10, 20) to (110, 220)",
        '{"bbox_2d": [10 20 110 220]}',
        "[10，20，110，220]",
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(10,20),(110,220)<|box_end|>",
        "<ref>the dog</ref><box>[[10, 20, 110, 220]]</box>",
        "<|begin_of_box|>[[10,20,110,220]]<|end_of_box|>",
        "<think>[1, 2, 3, 4]</think>\n<answer>```json\n"
        '[{"bbox_2d": [10, 20, 110, 220], "label": "dog"}]\n```</answer>',
        '```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "do',  # truncated after the box
        "It might be [1, 2, 3, 4]. <answer>[10, 20, 110, 220]</answer>",
        "<answer>[10, 20, 110, 220]",
        "[1, 2, 3], and so [10, 20, 110, 220]",  # three numbers are not a box
        "[1, 2, 3, 4, 5] [10, 20, 110, 220]",  # nor are five
        "[NaN, 2, 3, 4] [10, 20, 110, 220]",
        "[1e999, 2, 3, 4] [10, 20, 110, 220]",
        # the first of several, not the best
        "[10, 20, 110, 220] or [0, 0, 5, 5]",
        '[{"bbox_2d": [10, 20, 110, 220]}, {"bbox_2d": [0, 0, 5, 5]}]',
        'In [0, 0, 640, 480] it is {"bbox_2d": [10, 20, 110, 220]}',  # one with its key comes first
        # tags in the text of a label mark nothing
        '[{"bbox_2d": [10, 20, 110, 220], "label": "<think>the dog</think>"}, {"bbox_2d": [0, 0, 5, 5]}]',
        '{"bbox_2d": [10, 20, 110, 220], "answer": "<answer>a dog</answer>"}',
        '{"bbox_2d": [10, 20, 110, 220], "<think>": "It is left."}',
        # a boxed one after candidates
        "It is [0, 0, 5, 5] or [1, 1, 9, 9], so \\boxed{[10, 20, 110, 220]}",
        "\\boxed{10, 20, 110, 220}",
        '{"left": 10, "top": 20, "right": 110, "bottom": 220}',
        "<x1>10</x1><y1>20</y1><x2>110</x2><y2>220</y2>",
        # named sides in any order, or a corner with its size
        "y1=20, x1=10, y2=220, x2=110",
        '{"xmin": 10, "xmax": 110, "ymin": 20, "ymax": 220}',
        '{"min_x": 10, "min_y": 20, "max_x": 110, "max_y": 220}',
        '{"bbox": {"x": 10, "y": 20, "width": 100, "height": 200}}',
        '{"x1": 10, "y1": 20, "w": 100, "h": 200}',
        "x: 10, y: 20, width: 100, height: 200",
        '{"width": 640, "height": 480} {"x1": 10, "y1": 20, "x2": 110, "y2": 220}',
        "- **x1**: 10\n- **y1**: 20\n- **x2**: 110\n- **y2**: 220",
        "**x1:** 10, **y1:** 20, **x2:** 110, **y2:** 220",
        "the dog: 10, 20, 110, 220",
        # a point far earlier
        '<point x="7" y="9">the dog</point> Its box, with the tail but without the leash, is therefore: '
        "x1=10, y1=20, x2=110, y2=220",
        "The upper left corner is at (10, 20), and the lower right corner of the dog is at (110, 220).",
    ],
)
def test_reads_the_stated_box(response):
    assert parse_box(response) == [10, 20, 110, 220]


@pytest.mark.parametrize(
    "response",
    [
        "<bbox>10, 20, 110, 220</bbox>",
        "边界框是（10，20，110，220）。",
        "【10, 20, 110, 220】",
        "x1: 10\ny1: 20\nx2: 110\ny2: 220",
        "x1=10 y1=20 x2=110 y2=220",
        "\\boxed{[10,\\ 20,\\ 110,\\ 220]}",
        "**the dog: 10, 20, 110, 220**",
        "{“x_min”: 10, “y_min”: 20, “x_max”: 110, “y_max”: 220}",
        "10, 20, 110, 220<|im_end|>",
    ],
)
def test_reads_brackets_and_quotes_of_other_kinds(response):
    assert parse_box(response) == [10, 20, 110, 220]


@pytest.mark.parametrize(
    "response",
    [
        "",
        "There is no dog.",
        "[10, 20, 110]",
        "[10, 20, 110, 220, 330]",
        "[a, b, c, d]",
        "[nan, nan, nan, nan]",
        "[inf, 0, 1, 1]",
        "[10, 20, 110, 220",
        "10 20 110 220 330",
        '{"bbox_2d": [10, 20, 110',  # truncated within the box
        '{"point_2d": [10, 20]}',
        "x1=10, y1=20, x2=110",
        '{"width": 640, "height": 480}',
        '{"center": {"x": 60, "y": 120}, "width": 100, "height": 200}',
        "center x: 60, center y: 120, width: 100, height: 200",
        "x1=10, y1=20, width=100, y2=220",
        '<point x="10" y="20">the dog</point>, width: 100, height: 200',
        "<loc_10><loc_20><loc_110><loc_220>",
        "<think>[10, 20, 110, 220]</think>",
        "[10, 20, 110, 220] <answer>no box</answer>",
        "[1e999, 0, 1, 1]",
    ],
)
def test_finds_no_box(response):
    assert parse_box(response) is None
    assert box_iou(response, answer=[1, 1, 2, 2], image_size=IMAGE) == Verdict(0.0, None)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [0, 0, 10, 5], 0.5),
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),
        ([10, 10, 0, 0], [0, 0, 10, 10], 0.0),  # reversed corners are not sorted
        ([5, 5, 5, 5], [5, 5, 5, 5], 0.0),
    ],
)
def test_iou_of_pairs(a, b, value):
    assert iou(a, b) == pytest.approx(value)


def test_an_iou_at_the_threshold_is_right():
    assert box_iou("[0, 0, 10, 5]", answer=[0, 0, 10, 10], image_size=IMAGE).score == 1.0
    assert box_iou("[0, 0, 10, 4.9]", answer=[0, 0, 10, 10], image_size=IMAGE).score == 0.0
    assert box_iou("[0, 0, 10, 8]", answer=[0, 0, 10, 10], image_size=IMAGE, threshold=0.9).score == 0.0


def test_a_degenerate_box_is_an_answer_and_wrong():
    verdict = box_iou("[110, 220, 10, 20]", answer=[10, 20, 110, 220], image_size=IMAGE)
    assert verdict == Verdict(0.0, [110.0, 220.0, 10.0, 20.0])


def test_the_coordinate_space_is_given_and_never_guessed():
    gold = [64, 48, 128, 96]
    norm = "[100, 100, 200, 200]"
    assert box_iou(norm, answer=gold, image_size=IMAGE, box_space="norm1000") == Verdict(1.0, gold)
    assert box_iou(norm, answer=gold, image_size=IMAGE).score == 0.0
    halved = box_iou(
        "[32, 24, 64, 48]", answer=gold, image_size=IMAGE, box_space="resized", resized_size=(320, 240)
    )
    assert halved == Verdict(1.0, gold)


def test_boxes_are_clipped_to_the_image():
    assert to_pixels([-5, 10, 700, 900], image_size=IMAGE) == [0, 10, 640, 480]


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"answer": [10, 20, 5, 30]}, r"\[10, 20, 5, 30\]"),
        ({"answer": [10, 20, 10, 30]}, "area"),
        ({"answer": [10, 20, 30]}, r"\[10, 20, 30\]"),
        ({"answer": [10, 20, 30, float("nan")]}, "nan"),
        ({"answer": "goose"}, "goose"),
        ({"answer": None}, "None"),
        ({"box_space": "norm1"}, "norm1"),
        ({"box_space": "resized"}, "resized_size"),
        ({"box_space": "resized", "resized_size": (0, 3)}, r"\(0, 3\)"),
        ({"image_size": (640,)}, r"\(640,\)"),
        ({"image_size": (640, -1)}, "-1"),
        ({"threshold": 0.0}, "0.0"),
    ],
)
@pytest.mark.parametrize("response", ["[1, 2, 3, 4]", "no box"])
def test_an_invalid_item_is_refused_whatever_the_response(response, keywords, named):
    with pytest.raises(HarnessError, match=named):
        box_iou(response, **{"answer": [1, 2, 3, 4], "image_size": IMAGE, **keywords})


NUMBERS = st.floats(-1e6, 1e6)
BOXES = st.lists(NUMBERS, min_size=4, max_size=4)


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_in_the_unit_interval(a, b):
    assert 0.0 <= iou(a, b) <= 1.0
    assert iou(a, b) == pytest.approx(iou(b, a))


PIXELS = st.lists(st.integers(0, 500), min_size=4, max_size=4)
SIDES = st.lists(st.integers(0, 500), min_size=2, max_size=2, unique=True).map(sorted)
GOLDS = st.tuples(SIDES, SIDES).map(lambda sides: [sides[0][0], sides[1][0], sides[0][1], sides[1][1]])


@given(PIXELS, GOLDS, st.integers(2, 8))
def test_scaling_image_and_resized_image_together_changes_nothing(predicted, gold, factor):
    plain = box_iou(
        str(predicted), answer=gold, image_size=(500, 500), box_space="resized", resized_size=(500, 500)
    )
    scaled = box_iou(
        str([factor * side for side in predicted]),
        answer=[factor * side for side in gold],
        image_size=(factor * 500, factor * 500),
        box_space="resized",
        resized_size=(factor * 500, factor * 500),
    )
    assert plain.score == scaled.score
    assert [factor * side for side in plain.extracted] == pytest.approx(scaled.extracted)


@given(PIXELS, st.integers(1, 4))
def test_the_size_of_the_resized_image_does_not_matter(predicted, factor):
    small = to_pixels(predicted, image_size=IMAGE, box_space="resized", resized_size=(500, 500))
    large = to_pixels(
        [factor * side for side in predicted],
        image_size=IMAGE,
        box_space="resized",
        resized_size=(factor * 500, factor * 500),
    )
    assert small == pytest.approx(large)


@given(st.text())
def test_any_text_gives_a_box_in_the_image_or_none(response):
    box = box_iou(response, answer=[1, 2, 3, 4], image_size=IMAGE).extracted
    assert box is None or (0 <= min(box) and box[0] <= 640 and box[1] <= 480)


@pytest.mark.parametrize(
    "unit",
    ["[1, 2, ", "(1,2),", "[1 2 3 ", "(1,2) to", "x1=1, y1=", "[", "bbox ", "<answer>", "<box>1 ", " ", "1 "],
)
def test_reads_a_megabyte_in_linear_time(unit):
    start = time.process_time()
    assert parse_box(unit * (1_000_000 // len(unit)) + "x") is None or unit in ("(1,2),", "(1,2) to")
    assert time.process_time() - start < 2.0


def test_truncated_reasoning_holds_no_box():
    text = "<think>" + "It may be at [10, 20, 110, 220]. " * 20 + "Let me look"
    assert parse_box(text) is None
    assert parse_box(text + "</think>[10, 20, 110, 220]") == [10, 20, 110, 220]
    assert parse_box("<think>[10, 20, 110, 220]") == [10, 20, 110, 220]


@pytest.mark.parametrize(
    "text",
    [
        "The box is 10, 20, 110, 220, 5.",
        "The box is 10, 20, 110.",
        "The box is 10, 20, 110, 22%",
        "In the box there are toys. 10, 20, 110, 220 of them",
        "The coordinates of its centre are 10, 20.",
    ],
)
def test_numbers_after_a_box_are_not_a_box(text):
    assert parse_box(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "do', True),
        ("[10, 20, 110, 220], [3,", True),
        ("<think>hm</think>[10, 20, 110, 220] is", True),
        ("Let me see. It may be [10, 20, 110, 220], but", False),  # perhaps reasoning without its tag
        ("<think>It may be [10, 20, 110, 220], but", False),
        ("[10, 20, 110, 220", False),
    ],
)
def test_a_truncated_response_needs_a_closed_bracket(text, found):
    assert (parse_box(text, truncated=True) is not None) == found


BOX = [10.0, 20.0, 110.0, 220.0]


@pytest.mark.parametrize(
    ("response", "box"),
    [
        ("The center is (60, 120), so the box is (10, 20), (110, 220).", BOX),
        ("The image is (640, 480). The box is (10, 20), (110, 220).", BOX),
        ("The dog is at (60, 120) and the cat is at (30, 40).", None),
        ('{"center": [60, 120], "size": [100, 200]}', None),
        ("It is at (10, 20) with a size of (100, 200).", None),
        ("The dog is at [10, 20] in the image, whose size is [640, 480].", None),
        (
            "Top-left: (10, 20), Top-right: (110, 20), Bottom-left: (10, 220), Bottom-right: (110, 220)",
            BOX,
        ),
        ("[[10,20],[110,20],[110,220],[10,220]]", BOX),
        (
            "1. **Top-left corner**: (10, 20)\n2. **Bottom-right corner**: (110, 220)",
            BOX,
        ),
        ("top-left (x1, y1) = (10, 20), bottom-right (x2, y2) = (110, 220)", BOX),
        (
            "The top-left corner is (x=10, y=20) and the bottom-right corner is (x=110, y=220).",
            BOX,
        ),
        (
            "- **Left (x_min):** 10\n- **Top (y_min):** 20\n"
            "- **Right (x_max):** 110\n- **Bottom (y_max):** 220",
            BOX,
        ),
        ('{"bbox_2d": ["10", "20", "110", "220"]}', BOX),
        ("{x: 10, y: 20, w: 100, h: 200}", BOX),
        ("(10, 20), (110, 220)", BOX),
        ("[10, 20], [110, 220]", BOX),
        ("from (10, 20) to (110, 220)", BOX),
        ("The box in the image is [10, 20, 110, 220].", BOX),
        ("[(10, 20), (110, 220)]", BOX),
        ("The dog in the image is at (10, 20) to (110, 220).", BOX),
        ("top-left corner (10, 20) and bottom-right corner (110, 220)", BOX),
        ("(10, 20), (10, 220)", [10.0, 20.0, 10.0, 220.0]),
    ],
)
def test_points_are_a_box_if_they_are_corners(response, box):
    assert parse_box(response) == box
