"""`python -m dcsft_harness`, where the console script is not on the path."""

from dcsft_harness.cli import entry

entry()
