"""What takes how long, side by side with the ways of others: `python -m benchmarks` (`make bench`)."""
