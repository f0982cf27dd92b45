"""Data: the paper's benchmarks, and the embedded digits suite."""
