"""`python -m dcsft_harness`, for environments where the console script is not on the path."""

from dcsft_harness.cli import entry

entry()
