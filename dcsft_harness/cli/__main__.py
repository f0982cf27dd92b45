"""`python -m dcsft_harness.cli`, for environments where the console script is not on the path."""

from dcsft_harness.cli import entry

entry()
