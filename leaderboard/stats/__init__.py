"""Statistics of a board: intervals, paired tests, seeds, ranks."""
