"""Timings of this package next to the alternatives: `python -m benchmarks` (`make bench`)."""
