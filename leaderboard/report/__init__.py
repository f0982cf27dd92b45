"""The output formats of a Summary: tables, plots, JSON, Parquet."""
