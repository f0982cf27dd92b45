"""What the page's data files hold, read without the page's own code."""

import base64
import json
import struct

import numpy as np

LETTERS = {1: "B", 2: "H", 4: "I"}


def content(text):
    """The content of a data file."""
    call = text.strip()
    assert call.startswith('dcsft.take("') and call.endswith(");")
    return json.loads(call[call.index(",") + 1 : -2])


def numbers(packed):
    data, width = base64.b64decode(packed["d"]), packed["w"]
    values = struct.unpack(f"<{len(data) // width}{LETTERS[width]}", data)
    return [-1 if value == 256**width - 1 else value for value in values]


def texts(packed):
    return [None if code < 0 else packed["v"][code] for code in numbers(packed["c"])]


def scores(packed, row, n):
    data, width = base64.b64decode(packed["r"][row]), packed["w"]
    if width == 0.25:
        codes = [byte >> shift & 3 for byte in data for shift in (0, 2, 4, 6)][:n]
    else:
        codes = struct.unpack(f"<{len(data) // width}{LETTERS[width]}", data)
    return np.array([packed["v"][code] if code < len(packed["v"]) else np.nan for code in codes])
