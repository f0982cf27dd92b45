"""What a Summary is written as: tables, plots, JSON, Parquet."""
