"""Where the suite keeps what it can make again."""

import os
from pathlib import Path

import platformdirs


def root() -> Path:
    """`$DCSFT_CACHE`, else the user's cache folder for dcsft."""
    return Path(os.environ.get("DCSFT_CACHE") or platformdirs.user_cache_dir("dcsft"))
